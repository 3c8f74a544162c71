"""Values of p_t and β that each validator chooses without target labels (Fig. A1)."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from daaa_jax.evaluation.model_selection import VALIDATORS
from daaa_jax.paper import cells, summary, tables


def choices(task: str, sweep: tables.Sweep, plan: cells.Plan, folder: Path) -> list[list[str]]:
    """For each axis and validator, the value with the highest score after the last round.

    Args:
      task: the task of the sweep.
      sweep: points of the figure.
      plan: settings shared by all runs.
      folder: the working directory of the sweep.

    Returns:
      Rows of `sheet`: task, axis, validator, chosen value, accuracy at that value and the best of
      all points, both in per cent, means over seeds. Points with unfinished runs are left out.
    """
    rows = []
    for axis, points in sweep.items():
        reached = {x: _last_round(task, change, plan, folder) for x, change in points.items()}
        accuracies = {
            x: 100 * last["target_test"] for x, last in reached.items() if "target_test" in last
        }
        for name in VALIDATORS:
            scores = {x: last[name] for x, last in reached.items() if name in last}
            if len(scores) < 2:
                continue
            chosen = max(scores, key=scores.__getitem__)
            known = [accuracies[x] for x in scores if x in accuracies]
            shown = ["no labels"] * 2
            if len(known) == len(scores):
                shown = [f"{accuracies[chosen]:.1f}", f"{max(known):.1f}"]
            rows.append([task, axis, name, f"{chosen:g}", *shown])
    return rows


def _last_round(task, change, plan, folder) -> Mapping[str, float]:
    """Metrics of the last round that all seeds have, as means; empty if a run is unfinished."""
    rounds = cells.finished_rounds(task, change, plan, folder)
    if len(rounds) < plan.seeds or not all(rounds):
        return {}
    each = [of_seed[-1] for of_seed in rounds]
    names = ("target_test", *VALIDATORS)
    return {
        name: statistics.mean(line[name] for line in each)
        for name in names
        if all(line.get(name) is not None for line in each)
    }


def sheet(title: str, rows: Sequence[Sequence[str]]) -> summary.Sheet:
    """The table of the rows of `choices`."""
    columns = ["task", "setting", "validator", "chosen value", "accuracy at it", "best accuracy"]
    title = f"{title}: what validators without target labels choose"
    return summary.Sheet(title, columns, rows, [] if rows else ["Too few runs are finished."])
