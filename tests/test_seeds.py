"""Several seeds at once: each as its lone run, in a folder of its own."""

import json

import jax
import numpy as np
import pytest
from commands import call, refused
from tiny import MODEL, give_weight, make_config, make_images, make_labelled, surroundings

from daaa_jax import adaptation, evaluation, outcome, seeds, settings, target_stage
from daaa_jax.baselines import training
from daaa_jax.data.augment import decode
from daaa_jax.data.pairs import all_images
from daaa_jax.data.types import MeasuredData, UnlabelledImages
from daaa_jax.errors import UserError
from daaa_jax.models import initial_variables
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime import metrics

SOURCE, TARGET = make_labelled(24, seed=1), make_labelled(20, seed=2)
IMAGES = all_images(SOURCE.images, make_images(24, 3), TARGET.images, make_images(20, 4))
STEPS = 10
FIGURES = ("loss", "cross_entropy", "alignment", "em", "grad_norm", "kept")


def config_of(count, **changes):
    small = {"adapt.round_steps": 5, "adapt.rounds": 2, "augment.shift": 2, "seeds": count}
    return make_config(small | changes)


def plan_of(config):
    variables = initial_variables(jax.random.key(9), MODEL, decode(SOURCE.images[:1]))
    if config.method == "daaa":
        return adaptation.plan(config, MODEL, variables, IMAGES, SOURCE.labels, 1)
    unlabelled = UnlabelledImages(TARGET.images)
    return training.plan(config, MODEL, variables, SOURCE, unlabelled, TARGET.labels)


def train(workdir, config, devices=1, keep=None):
    measured = MeasuredData(SOURCE, TARGET, TARGET)
    with surroundings(workdir, config, devices) as context:
        evaluate = evaluation.make_evaluator(MODEL, context.mesh, config_of(1))
        if config.seeds == 1:
            return target_stage.run(plan_of(config), config, evaluate, measured, context)
        plans = {seed: plan_of(alone) for seed, alone in seeds.configs(config).items()}
        keep = keep or {seed: lambda *_: None for seed in plans}
        return seeds.run(plans, config, evaluate, measured, context, keep)


def lines(workdir):
    return [line for line in metrics.read(workdir) if "loss" in line]


@pytest.mark.parametrize(
    ("devices", "changes"),
    [
        (1, {}),
        (1, {"run.resident_mib": 0}),
        (3, {}),
        (1, {"em.refresh_every": 2, "em.start_step": 2}),
        (1, {"method": "dann"}),
    ],
)
def test_each_seed_trains_as_its_lone_run(devices, changes, tmp_path, monkeypatch):
    give_weight(monkeypatch)
    config = config_of(3, **changes)
    found = train(tmp_path / "all", config, devices)
    assert list(found) == [0, 1, 2]
    together = lines(tmp_path / "all")
    for seed, alone in seeds.configs(config).items():
        variables, memory = train(tmp_path / str(seed), alone)
        ours, theirs = lines(seeds.home(tmp_path / "all", seed)), lines(tmp_path / str(seed))
        assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
        for line, twin in zip(ours, theirs, strict=True):
            assert line.keys() == twin.keys()
            for name in line.keys() & set(FIGURES):
                assert line[name] == pytest.approx(twin[name], rel=1e-5, abs=1e-6), (seed, name)
        own, memory_of_own = found[seed]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), own, variables
        )
        assert memory_of_own["last"]["step"] == memory["last"]["step"] == STEPS
        if config.method == "daaa":
            weight = pytest.approx(0.2 * (1 + seed))
            assert memory_of_own["em"]["gamma"] == memory["em"]["gamma"] == weight
    losses = [[line["loss"] for line in lines(tmp_path / str(seed))] for seed in range(3)]
    np.testing.assert_allclose([t["loss"] for t in together], np.mean(losses, axis=0), rtol=1e-4)
    assert len({loss[-1] for loss in losses}) == 3


def test_rounds_of_each_seed_are_written_beside_the_mean_of_all(tmp_path):
    kept = {seed: [] for seed in range(2)}
    keep = {seed: lambda step, _, to=kept[seed]: to.append(step) for seed in kept}
    found = train(tmp_path, config_of(2), keep=keep)
    whole = metrics.rounds(metrics.read(tmp_path))
    each = [metrics.rounds(metrics.read(seeds.home(tmp_path, seed))) for seed in range(2)]
    for number, line in enumerate(whole):
        own = [rounds[number]["target_test"] for rounds in each]
        assert line["target_test"] == pytest.approx(np.mean(own))
        assert not any("/" in name for name in line)
    for seed in range(2):
        refreshes = json.loads((seeds.home(tmp_path, seed) / "adapt/posterior.json").read_text())
        assert [refresh["step"] for refresh in refreshes] == [5, 10]
        assert kept[seed][0] == 5 and found[seed][1]["selected"]["step"] == kept[seed][-1]


def test_killed_run_ends_with_the_same_networks(tmp_path, monkeypatch):
    config = config_of(2)
    whole = train(tmp_path / "whole", config)
    end, calls = seeds.rounds.end, []

    def killed(*arguments, **options):
        calls.append(arguments[0])
        if len(calls) == 4:  # the second seed, at the end of the second round
            raise KeyboardInterrupt
        return end(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(seeds.rounds, "end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", config)
    again = train(tmp_path / "killed", config)
    for seed in range(2):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), whole[seed][0], again[seed][0])
        assert all(jax.tree.leaves(same))
        folders = [seeds.home(tmp_path / name, seed) for name in ("whole", "killed")]
        assert metrics.read(folders[0]) == metrics.read(folders[1])


def test_seeds_that_do_not_divide_among_devices_are_refused():
    mesh = meshes.data_mesh(jax.devices()[:2])
    with pytest.raises(UserError, match="seeds is 3, which does not split evenly over 2 devices"):
        settings.check(make_config({"seeds": 3}), mesh)
    with pytest.raises(UserError, match="set run.parameter_shards to 1"):
        settings.check(make_config({"seeds": 2, "run.parameter_shards": 2}), mesh)
    with pytest.raises(UserError, match="seeds=0 must be at least 1"):
        settings.check(make_config({"seeds": 0}), mesh)


def result_of(seed, last, per_class):
    return {
        "seed": seed,
        "accuracy": {"source_only": 0.3, "target_test": {"last": last}},
        "per_class": per_class,
        "confusion": [[seed, 1], [0, 2]],
        "seconds": {"pair": 10.0, "adapt": 2.0},
    }


def test_result_of_several_seeds_is_their_mean_and_deviation():
    found = outcome.average(
        {3: result_of(3, 0.8, {"a": 0.5, "b": None}), 4: result_of(4, 0.9, {"a": 1.0, "b": 0.1})}
    )
    assert found["seeds"] == [3, 4] and "seed" not in found
    assert found["accuracy"]["target_test"]["last"] == pytest.approx(0.85)
    assert found["accuracy_std"]["target_test"]["last"] == pytest.approx(0.1 / 2**0.5)
    assert found["accuracy_std"]["source_only"] == 0
    assert found["per_class"] == {"a": 0.75, "b": None}
    assert found["confusion"].tolist() == [[7, 2], [0, 4]]
    # The CycleGAN is one for all, the target networks are not.
    assert found["seconds"] == {"pair": 10.0, "adapt": 4.0}


@pytest.mark.slow
def test_command_leaves_a_working_directory_for_each_seed(tmp_path):
    """Which predicts and reports like that of a lone run."""
    lone, whole = tmp_path / "lone", tmp_path / "all"
    argument = "--config=configs/digits.py:smoke,adapt.rounds=2"
    shared = (f"{argument},seed=1,pair.seed=0,source.seed=0", f"--workdir={lone}")
    done = call("main", f"{argument},seeds=2", f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    assert "mean of seeds 0, 1" in done.stdout
    result = json.loads((whole / "result.json").read_text())
    each = [json.loads((seeds.home(whole, s) / "result.json").read_text()) for s in range(2)]
    accuracies = [one["accuracy"]["target_test"]["last"] for one in each]
    assert result["accuracy"]["target_test"]["last"] == pytest.approx(np.mean(accuracies))
    assert [one["seed"] for one in each] == [0, 1]
    # The same stages serve the lone run of a seed.
    done = call("main", *shared, f"--config.run.reuse={whole}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("taken from another run") == 3
    alone = json.loads((lone / "result.json").read_text())
    # Rounding becomes differences within some steps; of 256 test images.
    assert abs(alone["accuracy"]["target_test"]["last"] - accuracies[1]) < 0.1
    for name in ("adapt/last.safetensors", "adapt/selected.safetensors", "report/index.html"):
        assert (seeds.home(whole, 1) / name).is_file()
    assert "Translations" in (seeds.home(whole, 1) / "report/index.html").read_text()
    assert f"has its source network from {whole}" in refused(
        "predict", f"--workdir={seeds.home(whole, 1)}", "--network=source", "a.png"
    )
