"""The time left of a run: the cost of the remaining stages, in updates of the current one."""

import pytest
from tiny import make_config, make_labelled

from daaa_jax.data.types import MeasuredData, Task, UnlabelledImages
from daaa_jax.training import time_left

SOURCE, TARGET = make_labelled(10, 1), make_labelled(7, 2)
TASK = Task(
    source_name="a",
    target_name="b",
    class_names=("one", "two", "three", "four"),
    source_train=SOURCE,
    target_train=UnlabelledImages(TARGET.images),
    evaluation=MeasuredData(SOURCE, TARGET, TARGET),
)
STAGES = ("pair", "translate", "source", "adapt")


def test_remaining_cost_falls_to_zero_and_grows_with_the_remaining_updates():
    found = time_left.later(make_config(), TASK, STAGES)
    assert list(found) == list(STAGES) and found["adapt"] == 0
    assert all(found[name] > 0 for name in STAGES[:-1])
    longer = time_left.later(make_config({"adapt.rounds": 20}), TASK, STAGES)
    assert longer["source"] == pytest.approx(10 * found["source"])
    assert time_left.later(make_config(), TASK, ("source",)) == {"source": 0}


def test_update_of_a_cyclegan_costs_what_its_passes_cost():
    """A quarter of the batch, a quarter of the operations; as many images in all."""
    counts = {}
    for size in (2, 8):
        updates, cost = time_left._units(make_config({"pair.batch_size": size}), TASK)["pair"]
        counts[size] = cost
        assert updates == 2 * -(-10 // size)
    assert counts[8] == pytest.approx(4 * counts[2])


def test_baselines_cost_does_not_depend_on_the_cyclegan():
    costs_of = [
        time_left.later(make_config({"method": "dann", "pair.blocks": blocks}), TASK, STAGES[2:])
        for blocks in (1, 3)
    ]
    assert costs_of[0] == costs_of[1] and costs_of[0]["source"] > 0


def test_there_is_no_estimate_where_operations_are_not_counted(monkeypatch):
    monkeypatch.setattr(time_left, "_operations", lambda *_, **__: 0.0)
    assert time_left.later(make_config(), TASK, STAGES) == {}
