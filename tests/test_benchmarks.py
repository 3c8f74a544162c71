"""Benchmarks compare equal computations: from the same weights, PyTorch gives the same losses."""

import json
import os
import shutil

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

from benchmarks import performance  # noqa: E402


@pytest.mark.parametrize(
    "make",
    [
        lambda: performance.cyclegan(32, 4),
        lambda: performance.adaptation("digits", 16),
        lambda: performance.adaptation("resnet50", 4, 64, 5),
        lambda: performance.adaptation("efficientnet_lite0", 4, 64, 5),
        lambda: performance.translation(8, 32, 4),
        lambda: performance.evaluation(1024),
    ],
    ids=["cyclegan", "digits", "resnet50", "efficientnet_lite0", "translation", "evaluation"],
)
def test_first_losses_are_those_of_pytorch(make):
    make_ours, theirs = make()
    ours = make_ours()
    mine, others = ([side() for _ in range(2)] for side in (ours, theirs))
    assert mine[0] == pytest.approx(others[0], rel=1e-3)
    # One update changes the loss alike, so gradients agree. Later updates differ more and more.
    assert mine[1] - mine[0] == pytest.approx(others[1] - others[0], rel=0.05, abs=1e-5)
    assert min(ours.cost.flops, ours.cost.bytes, ours.cost.memory) > 0


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([float("nan"), 1.0], [1.0, 0.9]),
        ([1.0, float("nan")], [1.0, 0.9]),
        ([1.1, 1.0], [1.0, 0.9]),
        ([1.0, 1.0], [1.0, 0.9]),  # no update
    ],
)
def test_losses_that_differ_are_refused(mine, theirs):
    case = performance.CASES["digits_128"]
    with pytest.raises(ValueError, match="digits"):
        performance.check(case, mine, theirs)
    performance.check(case, [1.0, 0.9], [1.0, 0.9001])


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_sides_that_do_not_fit_in_memory_together_are_timed_in_separate_processes():
    found = performance.in_own_processes("digits_128", compiled=True, rounds=2)
    assert {side: len(times) for side, times in found["seconds"].items()} == {
        "ours": 2, "eager": 2, "compiled": 2, "ours with compiled": 2
    }  # fmt: skip
    mine, eager, compiled = (found["losses"][side] for side in ("ours", "eager", "compiled"))
    assert mine == pytest.approx(eager, rel=1e-3) and compiled == pytest.approx(eager, rel=1e-3)
    assert found["torch_compiled_in"] > max(found["seconds"]["compiled"])
    assert found["cost"]["flops"] > 0


def end_early(*_):
    """What the system does to a process that takes too much memory."""
    os.abort()


def test_side_whose_process_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(performance, "alone", end_early)
    with pytest.raises(RuntimeError, match=r"\bours\b"):
        performance.in_own_processes("digits_128", compiled=False, rounds=1)


def test_ratios_of_sides_timed_separately_are_of_medians():
    seconds = {"ours": [1.0, 8.0, 2.0], "eager": [4.0, 1.0, 8.0]}
    assert performance.ratio({"apart": True, "seconds": seconds}, "ours", "eager") == 0.5
    assert performance.ratio({"apart": False, "seconds": seconds}, "ours", "eager") == 0.25


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("flags\t\t: fma avx avx2 avx512f", "A: 1 with AVX-512"),
        ("flags\t\t: fma avx avx2", "A: 1 with AVX2"),
        ("Features\t: fp asimd", "A: 1"),
    ],
)
def test_a_processor_is_named_with_the_widest_vectors_it_has(flags, name):
    assert performance.processor(f"model name\t: A: 1\n{flags}\n\n" * 2) == name


def test_measurements_are_kept_beside_those_of_other_devices(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"another": {"cases": {"old": {}}}}))
    case = performance.Case("little", lambda: performance.evaluation(64), 64)
    monkeypatch.setattr(performance, "CASES", {"little": case})
    monkeypatch.setattr(performance.peaks, "copying", lambda: 1e9)
    monkeypatch.setattr(performance.peaks, "matmul", lambda dtype: 1e11)
    command = ["performance", f"--out={path}", "--rounds=3", "--no_compile"]
    monkeypatch.setattr("sys.argv", command)
    performance.main()
    kept = json.loads(path.read_text())
    assert kept["another"] == {"cases": {"old": {}}}
    found = kept[performance.device_name()]["cases"]["little"]
    assert len(found["seconds"]["ours"]) == len(found["seconds"]["eager"]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("| little |")
