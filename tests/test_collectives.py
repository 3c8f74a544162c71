"""The bytes that benchmarks read from compiled programs, and the plans they make of them."""

import pytest

from benchmarks import collectives, scaling

PROGRAM = """
  %a = f32[128,10]{1,0} all-reduce(f32[128,10]{1,0} %x), replica_groups={{0,1}}
  %b = (f32[16]{0}, bf16[4,4]{1,0}) all-reduce(f32[16]{0} %y, bf16[4,4]{1,0} %z), to_apply=%sum
  %c = f32[8]{0} all-reduce-start(f32[8]{0} %w), to_apply=%sum
  %d = (f32[4,2]{1,0}, f32[8,2]{1,0}) all-gather-start(f32[4,2]{1,0} %v), dimensions={0}
  %e = f32[8,2]{1,0} all-gather-done((f32[4,2]{1,0}, f32[8,2]{1,0}) %d)
  %f = (u8[6]{0}, u8[6]{0}, u32[], u32[]) collective-permute-start(u8[6]{0} %u)
  %h = (f32[5]{0}, /*index=1*/f32[6]{0}) all-reduce(f32[5]{0} %s, /*index=1*/f32[6]{0} %t)
  %g = f32[3]{0} add(f32[3]{0} %all-reduce, f32[3]{0} %all-reduce.1)
"""


def test_bytes_are_those_of_what_each_operation_gives():
    assert collectives.bytes_by_kind(PROGRAM) == {
        "all-reduce": 4 * 1280 + (4 * 16 + 2 * 16) + 4 * 8 + 4 * 11,
        "all-gather": 4 * 16,
        "collective-permute": 6,
    }


def test_step_takes_as_long_as_the_slower_of_computing_and_of_moving_bytes():
    machine = scaling.Machine("v5e", 4, "v5e:2x2", link=1e9)
    cost = {"flops": 197e9, "bytes": 819e3, "sent": {"all-reduce": 4e6, "all-gather": 8e6}}
    computing, sending = scaling.step_seconds(cost, machine, "bfloat16")
    assert computing == pytest.approx(1e-3 / scaling.REACHED)
    assert sending == pytest.approx((2 * 4e6 + 8e6) * 3 / 4 / 1e9)
    cost["bytes"] = 819e7
    computing, _ = scaling.step_seconds(cost, machine, "bfloat16")
    assert computing == pytest.approx(1e-2 / scaling.REACHED)


def test_whole_benchmark_has_the_steps_of_all_its_pairs_sources_and_tasks():
    office = scaling.TASKS["Office-31, six tasks"]
    steps = scaling.steps_of(office, scaling.config_of("photos", 1))
    assert steps["pair"] == 100 * (2817 + 2817 + 795)
    assert steps["source"] == 30 * (2817 + 795 + 498) / 64
    assert steps["adapt"] == 6 * 4000
