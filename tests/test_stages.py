"""A stage is valid if its inputs have the same hash; finished stages of other runs are reused."""

import copy
import functools
import json
from pathlib import Path

import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from configs import base
from daaa_jax.errors import UserError
from daaa_jax.experiment import stages as rules
from daaa_jax.experiment.stages import Stages
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import files

INPUTS = {"pair": {"epochs": 3}}


def stages(path, reuse="", inputs=INPUTS):
    return Stages(Workdir(path), reuse, inputs, {"pair": lambda place: True})


def finish(path):
    files.write_json(path / "config.json", {})
    stages(path, "none").finish("pair", {"seconds": 1})


def test_run_resumes_with_the_sibling_that_it_was_started_with(tmp_path):
    finish(tmp_path / "m")
    ours = stages(tmp_path / "run")
    ours.record_reuse("pair")
    finish(tmp_path / "a")  # meanwhile, and before it by name
    assert ours.workdir_of("pair") == Workdir(tmp_path / "m")
    assert stages(tmp_path / "other").workdir_of("pair") == Workdir(tmp_path / "a")
    (tmp_path / "m" / "config.json").unlink()  # tidied up
    assert ours.workdir_of("pair") == Workdir(tmp_path / "a")


def test_reused_workdir_is_recorded_as_an_absolute_path(tmp_path, monkeypatch):
    finish(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    stages(tmp_path / "runs" / "run", "given").record_reuse("pair")
    reused = files.read_json(tmp_path / "runs" / "run" / "reused.json")
    assert reused["pair"]["from"] == str(tmp_path / "given")


def test_stage_is_found_where_the_given_run_took_it_from(tmp_path):
    first, second = tmp_path / "first", tmp_path / "others" / "second"
    finish(first)
    files.write_json(second / "config.json", {})
    stages(second, str(first)).record_reuse("pair")
    third = stages(tmp_path / "more" / "third", str(second))
    assert third.workdir_of("pair") == Workdir(first)
    (first / "pair" / "finished.json").unlink()
    assert str(first) in third.why_not_reused("pair")
    stages(second).finish("pair", {})  # trained there after all
    assert third.workdir_of("pair") == Workdir(second)


def test_stage_that_the_given_run_took_is_not_found_without_its_files(tmp_path):
    first, second = tmp_path / "first", tmp_path / "others" / "second"
    finish(first)
    files.write_json(second / "config.json", {})
    stages(second, str(first)).record_reuse("pair")
    complete = {"pair": lambda place: place != Workdir(first)}
    third = Stages(Workdir(tmp_path / "third" / "run"), str(second), INPUTS, complete)
    assert third.finished("pair") is None
    assert str(first) in third.why_not_reused("pair")


def test_marker_is_read_as_written(tmp_path):
    assert Workdir(tmp_path).marker("pair") is None
    stages(tmp_path, inputs={"pair": ConfigDict(INPUTS["pair"])}).finish("pair", {"seconds": 1.5})
    marker = Workdir(tmp_path).marker("pair")
    assert marker["fingerprint"] == files.settings_hash(INPUTS["pair"])
    assert (marker["settings"], marker["extra"]) == (INPUTS["pair"], {"seconds": 1.5})
    assert [path.name for path in (tmp_path / "pair").iterdir()] == ["finished.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "pair"}', ""])
def test_damaged_marker_is_named(tmp_path, content):
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "finished.json").write_text(content)
    with pytest.raises(UserError, match=r"finished\.json") as caught:
        stages(tmp_path).finished("pair")
    assert "\n" not in str(caught.value)


def test_stage_started_with_other_inputs_is_refused_and_they_are_named(tmp_path):
    stages(tmp_path).start("pair")
    stages(tmp_path).check_started("pair")
    with pytest.raises(UserError, match=r"\bepochs\b.*\b3\b.*\b4\b"):
        stages(tmp_path, inputs={"pair": {"epochs": 4}}).check_started("pair")
    assert json.loads((tmp_path / "pair" / "started.json").read_text()) == INPUTS["pair"]


def test_finished_run_stays_finished_on_other_devices_and_in_later_versions(tmp_path):
    """And without the stages that it reused; not with other settings."""
    inputs = {"model": {"name": "resnet50", "dtype": "bfloat16"}, "version": 3, "beta": 0.1}
    stages(tmp_path, inputs={"adapt": inputs}).finish("adapt", {})
    now = {"model": {"name": "resnet50", "dtype": "float32"}, "version": 4, "beta": 0.1}
    assert not stages(tmp_path, inputs={"adapt": now}).has_result()
    files.write_json(tmp_path / "result.json", {})
    assert stages(tmp_path, inputs={"adapt": now}).has_result()
    assert not stages(tmp_path, inputs={"adapt": now | {"beta": 0.2}}).has_result()


@pytest.mark.parametrize("name", ["pair.warmth", "pair.optimizer.warmth", "warmth"])
def test_setting_added_later_is_not_an_input_while_it_has_its_default(monkeypatch, name):
    monkeypatch.setitem(rules.ADDED_LATER, name, 0.0)
    before = {"pair": {"epochs": 3, "optimizer": {"name": "adam"}}}
    for value in (0.0, 0.5):
        now = copy.deepcopy(before)
        *groups, last = name.split(".")
        functools.reduce(dict.__getitem__, groups, now)[last] = value
        assert rules._without_later_defaults(now) == (now if value else before)


def test_later_settings_are_in_the_configs_with_their_defaults():
    """Or runs of earlier versions would not be recognised, but for those with other defaults."""
    settings = traverse_util.flatten_dict(base.get_config().to_dict(), sep=".")
    assert rules.ADDED_LATER.items() <= settings.items()


def test_parent_folder_that_cannot_be_listed_holds_no_siblings(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert stages(tmp_path / "run").workdir_of("pair") == Workdir(tmp_path / "run")
