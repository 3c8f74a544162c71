"""Plots of the paper's Fig. A1, accuracy against p_t and β, and Fig. 4, over the rounds."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daaa_jax.paper import cells, choices, summary, tables
from daaa_jax.report import charts
from daaa_jax.runtime import files

FIGURES = {
    "figA1": tables.Subject("Fig. A1: accuracy against p_t and β", "office", ("D->A",)),
    "fig4": tables.Subject("Fig. 4: L_AT and accuracy over the rounds", "office", ("W->A", "D->A")),
}
_SWEPT = ("p_t", "β")
_COLUMNS = ("task", "curve", "x", "y", "seeds", "mean", "std")  # of a point of a curve


def runs_of(figure: tables.Subject, tasks: Sequence[str], plan: cells.Plan) -> list[cells.Run]:
    """All runs of a figure, each once."""
    runs = []
    for task in tasks:
        points: list[Mapping[str, str]] = list(tables.CURVES.values())
        if figure is FIGURES["figA1"]:
            points = [point for axis in _sweep(task, plan).values() for point in axis.values()]
        runs += [cells.Run(task, point, seed) for seed in range(plan.seeds) for point in points]
    return list({run.argument(plan): run for run in runs}.values())


def _sweep(task: str, plan: cells.Plan) -> tables.Sweep:
    config = cells.Run(task, {}, 0).config(plan)
    return tables.sweep_settings(config.em.threshold, config.adapt.beta)


def write(name: str, tasks: Sequence[str], plan: cells.Plan, folder: Path) -> None:
    """Writes a figure of the finished runs as CSV and SVG, named by `Plan.file_name`.

    For Fig. A1 also writes a Markdown file with the choices of validators without target labels.
    """
    path = folder / plan.file_name(name, FIGURES[name], tasks)
    make = {"figA1": _sweep_points, "fig4": _curve_points}[name]
    points = [point for task in tasks for point in make(task, plan, folder)]
    files.write_text(Path(f"{path}.csv"), summary.csv_text(_COLUMNS, points))
    title = f"{FIGURES[name].title}, on {plan.where}"
    if name == "figA1":
        chosen = []
        for task in tasks:
            chosen += choices.choices(task, _sweep(task, plan), plan, folder)
        choices.sheet(title, chosen).write(path)
    line = tables.BEST_EARLIER if name == "figA1" and plan.is_as(FIGURES[name].data) else None
    note = _note(runs_of(FIGURES[name], tasks, plan), plan, folder)
    files.write_text(Path(f"{path}.svg"), draw(title, points, line, note))


def _note(runs: Sequence[cells.Run], plan: cells.Plan, folder: Path) -> str:
    """The note below the plot: seeds, unfinished and diverged runs, changed settings."""
    diverged = sum(cells.has_diverged(run, plan, folder) for run in runs)
    missing = sum(cells.result(run, plan, folder) is None for run in runs) - diverged
    lines = {
        f"mean ± std over {plan.seeds} seeds" if plan.seeds > 1 else "one seed": True,
        f"{missing} of {len(runs)} runs not finished": missing,
        f"{diverged} of {len(runs)} runs diverged": diverged,
        f"with {', '.join(plan.changed_settings)}": plan.changed_settings,
        "some runs had other settings": cells.settings_of_earlier_versions(runs, plan, folder),
        "smoke run: metrics are not meaningful": "smoke" in plan.words,
    }
    return "\n".join(line for line, holds in lines.items() if holds)


def _point(task: str, curve: str, x: float, y: str, values: Sequence[float]) -> dict[str, Any]:
    mean, std = summary.mean_and_std(values)
    rounded = round(mean, 4), None if std is None else round(std, 4)
    return dict(zip(_COLUMNS, (task, curve, x, y, len(values), *rounded), strict=True))


def _sweep_points(task: str, plan: cells.Plan, folder: Path) -> list[dict[str, Any]]:
    points = []
    for axis, changes in _sweep(task, plan).items():
        for x, change in changes.items():
            runs = (cells.Run(task, change, seed) for seed in range(plan.seeds))
            found = [cells.result(run, plan, folder) for run in runs]
            reached = [r["accuracy"]["target_test"]["last"] for r in found if r is not None]
            known = [100 * accuracy for accuracy in reached if accuracy is not None]
            if known:
                points.append(_point(task, axis, x, "accuracy", known))
    return points


def _curve_points(task: str, plan: cells.Plan, folder: Path) -> list[dict[str, Any]]:
    points = []
    for curve, change in tables.CURVES.items():
        runs = cells.finished_rounds(task, change, plan, folder)
        for metric, y, factor in (
            ("round_alignment", "L_AT", 1.0),
            ("target_test", "accuracy", 100.0),
        ):
            for number, lines in enumerate(itertools.zip_longest(*runs, fillvalue={}), start=1):
                values = [factor * line[metric] for line in lines if metric in line]
                if values:
                    points.append(_point(task, curve, number, y, values))
    return points


def draw(
    title: str, points: Sequence[Mapping[str, Any]], line: tuple[float, str] | None, note: str = ""
) -> str:
    """Plots curves as SVG.

    Args:
      title: heading.
      points: rows with `task`, `curve`, `x`, `y` (name of the quantity), `mean`, `std`.
      line: an accuracy to compare with, per cent, and its label.
      note: text below the plot.
    """
    # Imported here, as importing matplotlib takes most of a second.
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    sweep = {point["curve"] for point in points} <= set(_SWEPT)
    shown = "curve" if sweep else "y"  # one panel per axis of a sweep, or per quantity over rounds
    panels = sorted({(p["task"], p[shown]) for p in points})
    canvas = Canvas(figsize=(4 * max(2, len(panels)), 3.6), layout="constrained")
    canvas.suptitle(title if points else f"{title}: no run is finished")
    canvas.supxlabel(note, fontsize="small", color="gray")
    axes = canvas.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axis, (task, panel) in zip(axes, panels, strict=False):
        here = [p for p in points if (p["task"], p[shown]) == (task, panel)]
        for curve in dict.fromkeys(p["curve"] for p in here):
            of = [(p["x"], p["mean"], p["std"] or 0) for p in here if p["curve"] == curve]
            x, mean, std = zip(*of, strict=True)
            label = None if sweep else curve
            axis.errorbar(x, mean, std, marker="o", markersize=3, linewidth=1, label=label)
        if line and sweep:
            axis.axhline(line[0], linestyle="--", color="gray", label=line[1])
        if sweep and panel == "β":
            least = min((p["x"] for p in here if p["x"]), default=1)
            axis.set_xscale("symlog", linthresh=least)
            axis.set_xlim(left=-least / 4)
        if not sweep:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        y = "accuracy, %" if sweep or panel == "accuracy" else panel
        axis.set(title=task, xlabel=panel if sweep else "round", ylabel=y)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return charts.to_svg(canvas, title)
