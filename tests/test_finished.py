"""Stages that are finished elsewhere are found there, and found again where they were."""

from daaa_jax.runtime import markers
from daaa_jax.runtime.finished import NOTES, Stages

SETTINGS = {"pair": {"epochs": 3}}


def stages(workdir, reuse=""):
    return Stages(workdir, reuse, SETTINGS, {"pair": lambda home: True})


def finish(workdir):
    markers.write_json(workdir / markers.CONFIG_NAME, {})
    markers.write_marker(workdir / "pair", "pair", SETTINGS["pair"], {"seconds": 1})


def test_run_goes_on_with_the_sibling_that_it_has_begun_with(tmp_path):
    finish(tmp_path / "m")
    ours = stages(tmp_path / "run")
    ours.note("pair")
    finish(tmp_path / "a")  # meanwhile, and before it by name
    assert ours.home("pair") == tmp_path / "m"
    assert stages(tmp_path / "other").home("pair") == tmp_path / "a"
    (tmp_path / "m" / "config.json").unlink()  # tidied up
    assert ours.home("pair") == tmp_path / "a"


def test_place_that_was_given_is_noted_for_readers_in_any_folder(tmp_path, monkeypatch):
    finish(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    stages(tmp_path / "runs" / "run", "given").note("pair")
    notes = markers.read_json(tmp_path / "runs" / "run" / NOTES)
    assert notes["pair"]["from"] == str(tmp_path / "given")
