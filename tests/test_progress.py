"""A bar on a terminal; plain lines at long intervals elsewhere."""

import io
import re

import pytest

from daaa_jax.runtime import progress as module
from daaa_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Pending:
    """A metric that is still being computed: reading it waits for it."""

    reads = 0

    def __float__(self):
        self.reads += 1
        return 0.5


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_log_gets_plain_lines_with_metrics_speed_and_time_left(clock):
    log = io.StringIO()
    with Progress("pair", 3000, stream=log) as progress:
        for step in range(1, 401):
            clock.now += 60 if step == 1 else 0.25
            progress.update(step, {"loss": 2.0, "accuracy": 0.98765})
    lines = log.getvalue().splitlines()
    assert re.fullmatch(r"pair 1/3000\W+loss\W+2\W+accuracy\W+0\.9877", lines[0])
    assert re.match(
        r"pair 41/3000\W+loss\W+2\W+accuracy\W+0\.9877\b.*\b0\.25 s/step\b.*\b12 min\b", lines[1]
    )
    assert "\r" not in log.getvalue()
    assert len(lines) == 1 + 399 // 40 + 1  # one each ten seconds, and where it ended


def test_resumed_run_continues_the_count_and_measures_only_its_own_steps(clock):
    log = io.StringIO()
    with Progress("adapt", 1000, initial=500, stream=log) as progress:
        for step in range(501, 1001):
            clock.now += 1
            progress.update(step, {})
    lines = log.getvalue().splitlines()
    assert re.match(r"adapt 510/1000\W+1 s/step\W+8 min\b", lines[0])
    assert re.match(r"adapt 1000/1000\W+1 s/step\W+0 s\b", lines[-1])


def test_metrics_are_not_waited_for_unless_shown(clock):
    metric = Pending()
    with Progress("pair", 1000, stream=io.StringIO()) as progress:
        for step in range(1, 101):
            clock.now += 0.01
            progress.update(step, {"loss": metric})
        assert metric.reads == 0
    assert metric.reads == 1


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_line_is_shown_on_a_terminal_and_in_a_log(stream):
    log = stream()
    with Progress("adapt", 10, stream=log) as progress:
        progress.update(1, {"loss": 1.0})
        progress.line("adapt 1/5  kept 0.8")
    assert "adapt 1/5  kept 0.8\n" in log.getvalue()


def test_terminal_gets_a_bar_with_metrics_and_time_left():
    terminal = Terminal()
    with Progress("pair", 10, initial=4, stream=terminal) as progress:
        for step in range(5, 11):
            progress.update(step, {"loss": 0.125, "accuracy": 0.5})
    last = terminal.getvalue().split("\r")[-1]
    assert "\r" in terminal.getvalue()
    assert re.search(r"pair: 100%.*10/10 \[.*loss=0.125, accuracy=0.5", last)


def test_finished_stage_prints_nothing():
    log = io.StringIO()
    with Progress("pair", 10, initial=10, stream=log):
        pass
    assert log.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_time_left_has_a_unit_that_suits_it(seconds, text):
    assert text in module._duration(seconds)
