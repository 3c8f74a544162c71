"""Profiles: which updates are traced, and that viewers can open the trace."""

import re

import jax
import jax.numpy as jnp
import pytest

from daaa_jax.runtime import profiling


@pytest.mark.parametrize(
    ("start", "steps", "round_steps", "traced"),
    [
        (0, 100, 100, range(6, 26)),
        (0, 12, 12, range(1, 13)),
        (0, 100, 10, range(6, 11)),
        (98, 103, 50, range(99, 101)),
        (99, 100, 100, [100]),
    ],
)
def test_some_updates_after_the_first_are_traced_within_a_round(
    tmp_path, monkeypatch, start, steps, round_steps, traced
):
    open_now, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: open_now.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", open_now.clear)
    with profiling.Profile(tmp_path, start, steps, round_steps) as profile:
        for step in range(start + 1, steps + 1):
            profile.before(step, jnp.zeros(1))
            if open_now:
                seen.append(step)
            profile.after(step, jnp.zeros(1))
    assert seen == list(traced) and not open_now


def test_interrupted_trace_is_ended(tmp_path):
    for _ in range(2):  # a second trace could not start beside the first
        with (
            pytest.raises(KeyboardInterrupt),
            profiling.Profile(tmp_path, 0, 8, 8) as profile,
        ):
            profile.before(1, jnp.zeros(1))
            raise KeyboardInterrupt


def test_trace_is_one_that_viewers_open(tmp_path, capsys):
    x, step = jnp.full((256, 256), 1e-3), jax.jit(lambda x: jnp.tanh(x @ x))
    with profiling.Profile(tmp_path, 0, 8, 8) as profile:
        for number in range(1, 9):
            profile.before(number, x)
            x = step(x)
            profile.after(number, x)
    assert list(tmp_path.rglob("*.trace.json.gz")) and list(tmp_path.rglob("*.xplane.pb"))
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed
    assert "8" in re.findall(r"\d+", printed.replace(str(tmp_path), ""))


def test_without_a_folder_nothing_happens(tmp_path):
    profile = profiling.Profile(None, 0, 10, 10)
    for number in range(1, 11):
        profile.before(number, None)
        profile.after(number, None)
    assert not list(tmp_path.iterdir())
