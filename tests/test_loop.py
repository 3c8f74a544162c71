"""The loop shared by the stages: killed at any point and rerun, it ends with the same result."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    MODEL,
    assert_same_bits,
    make_config,
    make_context,
    make_images,
    make_labelled,
)

from daaa_jax import adaptation, cyclegan, evaluation, source
from daaa_jax.data import batches
from daaa_jax.data.augment import decode
from daaa_jax.data.pairs import all_images
from daaa_jax.data.types import MeasuredData
from daaa_jax.errors import Diverged
from daaa_jax.models import initial_variables
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime import metrics as metric_files
from daaa_jax.runtime.checkpoints import Checkpoints
from daaa_jax.runtime.preemption import Notice, Preempted
from daaa_jax.training import loop, rounds

STEPS, ROUND = 10, 4


class Numbers:
    """In place of a `Feed`: batches are numbers, given to each update alone."""

    steps, streams = STEPS, True

    def __init__(self, batch_at):
        self.at = lambda step: (batch_at(step),)

    def bind(self, train_step):
        return train_step


class Killed(BaseException):
    """Ends a run at once, as a kill does: nothing between it and the test handles it."""


def create_state():
    return {"key": jax.random.key(0), "step": jnp.int32(0), "w": jnp.zeros(3)}


def positive_part(values):
    """A group of images that is of another size at each step."""
    positive = values > 0
    return loop.Average(total=(values * positive).sum(), count=positive.sum())


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, batch):
    noise = jax.random.normal(jax.random.fold_in(state["key"], state["step"]), (3,))
    w = 0.9 * state["w"] + noise * batch
    metrics = {"loss": loop.mean(w**2), "part": positive_part(w)}
    return state | {"step": state["step"] + 1, "w": w}, metrics


def run(
    workdir, *, batch_at=jnp.float32, end_of_round=None, step=train_step, profiled=False, **settings
):
    """Ten steps of a little stage."""
    changes = {f"run.{name}": value for name, value in settings.items()}
    config = make_config({"run.log_every": 2, "run.checkpoint_every": 3} | changes)

    def summary(step, state, metrics, loop_state):
        loop_state.setdefault("rounds", []).append(step)
        return {"round_loss": float(metrics["loss"].compute()), "w": float(state["w"].sum())}

    with make_context(workdir, config) as context:
        return loop.run(
            "little",
            create_state,
            step,
            Numbers(batch_at),
            images=7,
            round_steps=ROUND,
            end_of_round=end_of_round or summary,
            context=dataclasses.replace(context, profiled=profiled),
        )


def test_profiled_stage_ends_with_the_same_parameters_and_a_trace(tmp_path):
    state, _ = run(tmp_path / "profiled", profiled=True)
    plain, _ = run(tmp_path / "plain")
    assert_same_bits(state, plain)
    assert list((tmp_path / "profiled" / "profile" / "little").rglob("*.xplane.pb"))
    assert not (tmp_path / "plain" / "profile").exists()


def lines_of(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def newest(workdir):
    with Checkpoints(workdir / "little" / "checkpoints") as checkpoints:
        return checkpoints.latest_step()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder, final state and loop state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, *run(workdir)


def assert_ended_like(whole, workdir, state, loop_state):
    expected_workdir, expected_state, expected_loop_state = whole
    assert_same_bits(state, expected_state)
    assert loop_state.keys() == expected_loop_state.keys()
    for name in loop_state.keys() - {"seconds", "device_seconds"}:
        assert loop_state[name] == expected_loop_state[name], name
    assert lines_of(workdir) == lines_of(expected_workdir)


# Resuming


@pytest.mark.parametrize("kill", range(STEPS))
def test_run_killed_before_any_update_ends_with_the_same_bits_and_lines(tmp_path, whole, kill):
    def killed_at(step):
        if step == kill:
            raise Killed
        return jnp.float32(step)

    with pytest.raises(Killed):
        run(tmp_path, batch_at=killed_at)
    resumed_from = []
    state, loop_state = run(tmp_path, batch_at=lambda s: resumed_from.append(s) or jnp.float32(s))
    # Saved after every third update, and at the end of each round of four.
    assert resumed_from[0] == max([0] + [s for s in (3, 4, 6, 8, 9) if s <= kill])
    assert_ended_like(whole, tmp_path, state, loop_state)


def test_run_killed_while_it_evaluates_evaluates_again(tmp_path, whole):
    def killed(*_):
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, end_of_round=killed)
    assert newest(tmp_path) == 3
    assert_ended_like(whole, tmp_path, *run(tmp_path))


def test_preempted_run_saves_and_when_rerun_ends_with_the_same_bits(tmp_path, whole, monkeypatch):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(Notice, "after_update", lambda _: asked.append(0) or len(asked) == 5)
        with pytest.raises(Preempted, match=r"\blittle\b.*\b5\b.*\b10\b"):
            run(tmp_path)
    assert newest(tmp_path) == 5 and lines_of(tmp_path)[-1].count('"step": 5')
    state, loop_state = run(tmp_path)
    assert_same_bits(state, whole[1])
    assert loop_state["sha256"] == whole[2]["sha256"]


def test_finished_run_does_nothing(tmp_path):
    state, loop_state = run(tmp_path)
    before = lines_of(tmp_path)

    def refuse(*_):
        raise AssertionError("a finished stage was trained")

    again, loop_state_again = run(tmp_path, batch_at=refuse, end_of_round=refuse)
    assert_same_bits(again, state)
    assert loop_state_again == loop_state
    assert lines_of(tmp_path) == before


def test_how_often_it_logs_and_saves_changes_no_bit(tmp_path, whole):
    state, loop_state = run(tmp_path, log_every=5, checkpoint_every=7)
    assert_same_bits(state, whole[1])
    assert loop_state["sha256"] == whole[2]["sha256"]


def test_throughput_counts_the_images_of_all_starts(tmp_path, whole, capsys):
    run(tmp_path)
    shown = capsys.readouterr().err
    assert re.search(r"little: \S+ images/s on each device, \S+ device hours", shown)
    assert whole[2]["images"] == 7 * STEPS
    assert 0 < whole[2]["device_seconds"] == whole[2]["seconds"]


# What is written


def test_lines_are_averages_since_the_last_line_and_over_the_round(tmp_path):
    values, state = [], create_state()
    for number in range(STEPS):
        state, _ = train_step(state, jnp.float32(number))
        values.append(np.asarray(state["w"], np.float64))

    def step(state, batch):
        state, _ = train_step(state, batch)
        return state, {"w2": loop.mean(state["w"] ** 2), "part": positive_part(state["w"])}

    rounds = {}

    def end_of_round(step, state, metrics, loop_state):
        rounds[step] = {name: float(m.compute()) for name, m in metrics.items()}
        return {}

    run(tmp_path, step=step, end_of_round=end_of_round)

    def averages(first, last):
        seen = np.concatenate(values[first:last])
        means = {"w2": (seen**2).mean()}
        return means | ({"part": seen[seen > 0].mean()} if (seen > 0).any() else {})

    ends = [0, 2, 3, 4, 6, 8, 9, 10]
    written = [line for line in metric_files.read(tmp_path / "metrics.jsonl") if "w2" in line]
    assert [line["step"] for line in written] == ends[1:]
    for line, first, last in zip(written, ends, ends[1:], strict=False):
        logged = {k: v for k, v in line.items() if k not in ("stage", "step")}
        assert logged == pytest.approx(averages(first, last), rel=1e-5)
    assert rounds.keys() == {4, 8, 10}
    for first, last in ((0, 4), (4, 8), (8, 10)):
        assert rounds[last] == pytest.approx(averages(first, last), rel=1e-5)


@pytest.mark.parametrize(("bad", "good"), [(8, 6), (1, None)])
def test_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(tmp_path, bad, good):
    """The update number `bad` is the first whose loss is not finite."""
    with pytest.raises(Diverged) as error:
        run(tmp_path, batch_at=lambda s: jnp.float32(jnp.nan if s + 1 == bad else s))
    message = str(error.value)
    assert "little" in message and "loss" in message and "\n" not in message
    assert good is None or str(good) in re.findall(r"\d+", message)
    assert newest(tmp_path) == good
    for line in lines_of(tmp_path):
        assert None not in json.loads(line).values()
    # Once the cause is fixed, the run resumes from there.
    state, _ = run(tmp_path)
    assert state["step"] == STEPS and np.isfinite(state["w"]).all()


# The stages


SOURCE, TARGET = make_labelled(16, seed=1), make_labelled(12, seed=2)


def pair(config, context):
    return cyclegan.run(config.pair, SOURCE.images, TARGET.images, context)


def train_source(config, context):
    evaluate = evaluation.make_evaluator(
        MODEL, context.mesh, make_config({"evaluate.batch_size": 8, "em.threshold": 0.5})
    )
    return source.run(
        config, MODEL, SOURCE, lambda v: {"accuracy": evaluate(v, SOURCE).accuracy}, context
    )


def adapt(config, context):
    evaluate = evaluation.make_evaluator(
        MODEL, context.mesh, make_config({"evaluate.batch_size": 8, "em.threshold": 0.5})
    )
    images = all_images(
        SOURCE.images, make_images(16, seed=3), TARGET.images, make_images(12, seed=4)
    )
    variables = initial_variables(jax.random.key(1), MODEL, decode(images[:1]))
    measured = MeasuredData(SOURCE, TARGET, TARGET)
    devices = context.mesh.size
    training = adaptation.target_training(config, MODEL, variables, images, SOURCE.labels, devices)
    return rounds.run(training, config, evaluate, measured, context)


def every_leaf(workdir, stage):
    """The state of the newest checkpoint, as saved: name to array."""
    import orbax.checkpoint as ocp

    with Checkpoints(workdir / stage / "checkpoints") as checkpoints:
        folder = checkpoints.directory / str(checkpoints.latest_step()) / "state"
    tree = ocp.StandardCheckpointer().restore(folder)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("train", [pair, train_source, adapt])
def test_blocks_of_updates_agree_with_single_ones(train, tmp_path, monkeypatch):
    changes = {"run.log_every": 2, "run.checkpoint_every": 2, "adapt.round_steps": 4}
    changes |= {f"{stage}.optimizer.name": "sgd" for stage in ("pair", "source", "adapt")}
    drawn, ends = [], []
    shard = meshes.shard_batches
    monkeypatch.setattr(meshes, "shard_batches", lambda *given: drawn.append(0) or shard(*given))
    for size in (1, 2):
        config = make_config(changes | {"run.block_steps": size})
        with make_context(tmp_path / str(size), config) as context:
            variables, _ = train(config, context)
        lines = metric_files.read(tmp_path / str(size) / "metrics.jsonl")
        ends.append((variables, [line for line in lines if "loss" in line]))
        assert bool(drawn) == (size == 2)
    (one, single), (two, together) = ends
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert [line["step"] for line in single] == [line["step"] for line in together]
    for a, b in zip(single, together, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_length_of_blocks(tmp_path, monkeypatch):
    def length(profiled=False, state=None, **settings):
        config = make_config({f"run.{name}": value for name, value in settings.items()})
        with make_context(tmp_path, config) as context:
            context = dataclasses.replace(context, profiled=profiled)
            return loop._block_length(context, create_state() if state is None else state)

    assert length(block_steps=0) == 1  # on a CPU
    assert length(block_steps=30) == 30 and length(profiled=True, block_steps=30) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert length(block_steps=0) == loop._BLOCK > 1
    large = np.zeros(loop._SMALL_STATE // 4 + 1, np.float32)
    assert length(block_steps=0, state=large) == 1 and length(block_steps=30, state=large) == 30


@pytest.mark.parametrize("steps", [3126, 450, 13])
@pytest.mark.parametrize("round_steps", [1563, 150, 7])
def test_blocks_end_where_intervals_do_also_in_a_resumed_run(steps, round_steps):
    intervals = round_steps, 50, 500
    step, starts, blocks = 0, [], 0
    while step < steps:
        count = loop._dispatched(step, 25, intervals, steps)
        assert not any(at % n == 0 for at in range(step + 1, step + count) for n in intervals)
        starts.append(step)
        blocks += count == 25
        step += count
    assert step == steps
    if round_steps > 50 and steps > 50:  # 25 of at least 50 updates
        assert 25 * blocks >= steps // 2
    for resumed in starts:  # a run is saved after a dispatch
        again, step = [], resumed
        while step < steps:
            again.append(step)
            step += loop._dispatched(step, 25, intervals, steps)
        assert again == [at for at in starts if at >= resumed]


@pytest.mark.parametrize("train", [pair, train_source, adapt])
def test_nothing_is_compiled_after_the_first_round(train, tmp_path, monkeypatch):
    compiled, listening, by_step = [], True, {}

    def listen(event, _, **about):
        if listening and event.endswith("jaxpr_to_mlir_module_duration"):
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    save = Checkpoints.save

    def count(checkpoints, step, state, loop_state):
        by_step[step] = len(compiled)
        return save(checkpoints, step, state, loop_state)

    monkeypatch.setattr(Checkpoints, "save", count)
    config = make_config({"adapt.rounds": 3, "source.epochs": 3, "pair.epochs": 3})
    with make_context(tmp_path, config) as context:
        train(config, context)
    listening = False
    ends = [step for step in by_step if step % (3 if train is adapt else 2) == 0]
    assert len(ends) > 2 and by_step[ends[0]] > 0
    assert by_step[ends[-1]] == by_step[ends[0]], compiled[by_step[ends[0]] :]


@pytest.mark.parametrize(
    ("stage", "train", "kept", "block_steps"),
    [
        ("pair", pair, ("pools", "opt_state", "key"), 1),
        ("source", train_source, ("opt_state", "batch_stats", "key"), 1),
        ("adapt", adapt, ("posterior", "source", "opt_state", "key"), 1),
        ("adapt", adapt, ("posterior", "source", "opt_state", "key"), 2),
    ],
)
def test_killed_stage_ends_with_the_same_state_and_metrics(
    stage, train, kept, block_steps, tmp_path, monkeypatch
):
    # Killed after 5 of 6 updates, resumed after 4: within a round, where M^post is not the target.
    settings = {"pair.pool_size": 10, "source.epochs": 3, "augment.shift": 1}
    settings |= {"run.checkpoint_every": 2, "run.block_steps": block_steps}
    config = make_config(settings | {"em.start_step": 1, "pair.epochs": 3})

    def run_stage(workdir):
        with make_context(workdir, config) as context:
            _, loop_state = train(config, context)
        return loop_state

    expected = run_stage(tmp_path / "whole")
    at = batches.IndexStream.at

    def killed_at(stream, step):
        if step == 5:
            raise Killed
        return at(stream, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batches.IndexStream, "at", killed_at)
        run_stage(tmp_path / "killed")
    assert not (tmp_path / "killed" / stage / "checkpoints" / "6").exists()
    loop_state = run_stage(tmp_path / "killed")

    for name in loop_state.keys() - {"seconds", "device_seconds"}:
        assert loop_state[name] == expected[name], name
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    leaves = {name: every_leaf(tmp_path / name, stage) for name in ("whole", "killed")}
    assert_same_bits(leaves["killed"], leaves["whole"])
    for part in kept:
        assert any(part in name for name in leaves["whole"]), part


def test_update_that_changes_the_types_of_the_state_is_refused(tmp_path):
    def halve(state, batch):
        state, metrics = train_step(state, batch)
        return state | {"w": state["w"].astype(jnp.float16)}, metrics

    with pytest.raises(TypeError, match=r"\blittle\b.*'w'.*float32.*float16"):
        run(tmp_path, step=halve)
