"""Profiles: which updates are traced, and what the summary says of nested operations."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from daaa_jax.runtime import profiling

PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main {
  ROOT %dot.2 = f32[] dot(), metadata={op_name="jit(step)/network/convolution1/dot" line=3}
}"""


def event(name, start, duration, hlo_op=None, hlo_module="jit_step"):
    stats = [("hlo_op", hlo_op), ("hlo_module", hlo_module)] if hlo_op else []
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats)


def trace_of(*lines):
    lines = [SimpleNamespace(name="thread", events=events) for events in lines]
    return SimpleNamespace(planes=[SimpleNamespace(lines=lines)])


def rows(text):
    text = text.split("\n\n")[-1]  # the table of operations
    assert len({line.count("|") for line in text.splitlines()}) == 1
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells[2:]}


def test_time_inside_another_operation_counts_once():
    line = [
        event("while", 0, 10e6, hlo_op="while.1"),
        event("dot", 1e6, 3e6, hlo_op="dot.2"),
        event("dot", 5e6, 2e6, hlo_op="dot.2"),
        event("wait", 0, 50e6),  # of the host, no operation
        event("add", 10e6, 5e6, hlo_op="add.3"),
        event("add", 20e6, 5e6, hlo_op="add.3", hlo_module="jit_evaluate"),
    ]
    text = profiling.summary(trace_of(line), PROGRAM, updates=2)
    assert rows(text) == {
        "while.1": ["", "0.5", "2.500", "33.3%"],
        "dot.2": ["network/convolution1/dot", "1", "2.500", "33.3%"],
        "add.3": ["", "0.5", "2.500", "33.3%"],
    }
    assert "2 updates, 7.500 ms" in text
    assert "| network/convolution1 | 1 | 2.500 | 33.3% |" in text
    assert "| no layer | 1 | 5.000 | 66.7% |" in text


def test_operations_of_parallel_lines_are_not_nested():
    lines = ([event("a", 0, 4e6, hlo_op="a")], [event("b", 1e6, 2e6, hlo_op="b")])
    found = rows(profiling.summary(trace_of(*lines), PROGRAM, updates=1))
    assert [found[name][2] for name in "ab"] == ["4.000", "2.000"]


def test_what_is_not_shown_is_summed_up():
    line = [event("x", i * 1e6, 1e6, hlo_op=f"op.{i}") for i in range(45)]
    program = PROGRAM + "".join(
        f'%op.{i} = f32[] add(), metadata={{op_name="jit(step)/layer{i}/add" line=3}}\n'
        for i in range(45)
    )
    text = profiling.summary(trace_of(line), program, updates=1)
    assert rows(text)["5 others"] == ["", "", "5.000", "11.1%"]
    assert "| 5 others |  | 5.000 | 11.1% |" in text.split("\n\n")[-2]  # of the layers


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        ("jvp(Network)/convolution1/dot_general", "jvp(Network)/convolution1"),
        (
            "transpose(jvp(Network))/block/enter/jit(_pad)/pad",
            "transpose(jvp(Network))/block/enter",
        ),
        ("Network/jit(relu)/max", "Network"),
        ("vmap()/while/body/closed_call/jit(_randint)/add", "no layer"),
        ("jvp()/jit(_where)/select_n", "no layer"),
        ("add", "no layer"),
        ("", "no layer"),
    ],
)
def test_layer_of_an_operation(place, layer):
    assert profiling.layer(place) == layer


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
    (tmp_path / "x.xplane.pb").touch()
    monkeypatch.setattr(profiling.ProfileData, "from_file", lambda path: trace_of([]))
    program = SimpleNamespace(as_text=lambda: PROGRAM)
    with profiling.Profile(tmp_path, start, steps, round_steps) as profile:
        for step in range(start + 1, steps + 1):
            profile.before(step, jnp.zeros(1))
            if open_now:
                seen.append(step)
            profile.after(step, jnp.zeros(1), program)
    assert seen == list(traced) and not open_now
    assert "names no operations" in (tmp_path / profiling.SUMMARY).read_text()


def test_interrupted_trace_is_ended(tmp_path):
    for _ in range(2):  # a second trace could not begin beside the first
        with (
            pytest.raises(KeyboardInterrupt),
            profiling.Profile(tmp_path, 0, 8, 8) as profile,
        ):
            profile.before(1, jnp.zeros(1))
            raise KeyboardInterrupt
    assert not (tmp_path / profiling.SUMMARY).exists()


def test_several_devices_are_averaged():
    line = [event("a", 0, 4e6, hlo_op="a"), event("a", 5e6, 2e6, hlo_op="a")]
    found = rows(profiling.summary(trace_of(line), PROGRAM, updates=1, devices=2))
    assert found == {"a": ["", "1", "3.000", "100.0%"]}


def test_trace_of_a_real_program_names_its_operations(tmp_path, capsys):
    def step(x):
        with jax.named_scope("network"):
            return jnp.tanh(x @ x)

    x = jnp.full((256, 256), 1e-3)
    program = jax.jit(step).lower(x).compile()
    with profiling.Profile(tmp_path, 0, 8, 8) as profile:
        for number in range(1, 9):
            profile.before(number, x)
            x = program(x)
            profile.after(number, x, program)
    text = (tmp_path / profiling.SUMMARY).read_text()
    assert text.startswith("8 updates") and "network/" in text
    assert list(tmp_path.rglob("*.trace.json.gz")) and list(tmp_path.rglob("*.xplane.pb"))
    assert "profile of 8 updates" in capsys.readouterr().out


def test_without_a_folder_nothing_happens(tmp_path):
    profile = profiling.Profile(None, 0, 10, 10)
    for number in range(1, 11):
        profile.before(number, None)
        profile.after(number, None, None)
    assert not list(tmp_path.iterdir())
