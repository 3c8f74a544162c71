"""The page: what a working directory holds, finished or not, as one file without a network."""

import contextlib
import dataclasses
import html
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daaa_jax.baselines import OURS
from daaa_jax.errors import UserError
from daaa_jax.evaluation import diagnostics
from daaa_jax.report import (
    attention_maps,
    charts,
    embedding,
    parts,
    posterior,
    second_view,
    selection,
    translations,
)
from daaa_jax.runtime import markers, metrics
from daaa_jax.training import rounds

NAME = Path("report") / "index.html"
_STAGES = ("pair", "source", "adapt")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a working directory holds of a run so far.

    Attributes:
      name: of the working directory.
      about: `config.json`: `config`, `command` and `versions`.
      result: `result.json`; None while the run goes on.
      lines: of `metrics.jsonl`.
      pairs: the picture of the pairs, a PNG.
      refreshes: of `posterior.json`, see `rounds.soft_labels`.
      figures: of `audit.json`.
      arrays: of `audit.npz`.
      ceiling: the same of a run beside it that was trained on target labels, if there is one.
    """

    name: str
    about: Mapping[str, Any]
    result: Mapping[str, Any] | None
    lines: Sequence[Mapping[str, Any]]
    pairs: bytes | None
    refreshes: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    ceiling: Mapping[str, np.ndarray]


def write(workdir: Path) -> Path:
    """Writes the report of a working directory, of a run still going on too.

    Returns:
      The page's path.

    Raises:
      UserError: if it is no working directory.
    """
    path = workdir / markers.CONFIG_NAME
    content = markers.read_json(path) if path.is_file() else None
    if not isinstance(content, dict) or "config" not in content:
        raise UserError(f"--workdir={workdir} is no working directory: it holds no {path.name}")
    result = workdir / "result.json"
    found = Found(
        name=workdir.name,
        about=content,
        result=markers.read_json(result) if result.is_file() else None,
        lines=metrics.read(workdir),
        pairs=_pairs(workdir),
        refreshes=_json(workdir / "adapt" / rounds.POSTERIOR) or [],
        figures=_json(workdir / "adapt" / diagnostics.FIGURES) or {},
        arrays=_arrays(workdir),
        ceiling={},
    )
    found = dataclasses.replace(found, ceiling=_ceiling(workdir, found))
    markers.write_bytes(workdir / NAME, render(found).encode())
    return workdir / NAME


def _json(path: Path) -> Any:
    return markers.read_json(path) if path.is_file() else None


def _arrays(workdir: Path) -> dict[str, np.ndarray]:
    path = workdir / "adapt" / diagnostics.ARRAYS
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def _ceiling(workdir: Path, found: Found) -> dict[str, np.ndarray]:
    """Of a run beside this one that was trained on target labels: same images, same layers."""
    own = workdir.absolute()
    try:
        others = sorted(other for other in own.parent.iterdir() if other != own)
    except OSError:
        return {}
    for other in others:
        # What is wrong with a neighbour is not this run's concern.
        with contextlib.suppress(OSError, UserError, ValueError, KeyError, zipfile.BadZipFile):
            config = (_json(other / markers.CONFIG_NAME) or {}).get("config", {})
            layers = (_json(other / "adapt" / diagnostics.FIGURES) or {}).get("layers")
            if config.get("method") == "upper_bound" and layers == found.figures.get("layers"):
                arrays = _arrays(other)
                if np.array_equal(arrays["examples"], found.arrays["examples"]):
                    return arrays
    return {}


def _pairs(workdir: Path) -> bytes | None:
    """The four-tuples of the CycleGAN, of this run or of the one that it has taken them from."""
    notes = workdir / "reused.json"
    homes = [workdir]
    if notes.is_file() and (note := markers.read_json(notes).get("pair")):
        homes.append(Path(note["from"]))
    found = [home / "pair" / "pairs.png" for home in homes]
    return next((path.read_bytes() for path in found if path.is_file()), None)


def render(found: Found) -> str:
    """The page as HTML."""
    result, about = found.result, found.about
    title = result["task"] if result else found.name
    classes = list(result["per_class"]) if result else []
    method = about["config"].get("method", OURS)
    sections = [
        _head(found.name, about, result),
        _accuracies(result) if result else "",
        _rounds(found.lines),
        posterior.section(found.lines, found.refreshes, classes, method),
        second_view.section(
            found.refreshes,
            (result or {}).get("em"),
            about["config"].get("em", {}),
        ),
        selection.section(found.lines),
        _classes(result) if result else "",
        translations.section(
            found.pairs,
            (result or {}).get("translation_colours", {}),
            found.figures,
            found.arrays,
            classes,
        ),
        attention_maps.section(found.arrays, found.figures.get("layers", []), found.ceiling),
        embedding.section(found.arrays, classes),
        _losses(found.lines),
        _time(result) if result else "",
        _settings(about),
    ]
    return parts.document(title, sections)


def _head(name: str, about: Mapping, result: Mapping | None) -> str:
    title = result["task"] if result else name
    config = about["config"]
    seeds = (result or {}).get("seeds", [config.get("seed")])  # once one run could have several
    how = f"method {config['method']}, " if config.get("method", OURS) != OURS else ""
    how = f"{name}, {how}seed {', '.join(map(str, seeds))}"
    going = "" if result else "<p><strong>The run is not finished.</strong></p>"
    if config.get("smoke"):
        going += (
            "<p><strong>A trial in little: its figures say nothing but that every stage runs."
            "</strong></p>"
        )
    return (
        f"<h1>{html.escape(title)}</h1>\n<p class=faint>{html.escape(how)}: "
        f"<code>{html.escape(about.get('command', ''))}</code></p>{going}"
    )


def _accuracies(result: Mapping) -> str:
    reached = result["accuracy"]
    target = reached["target_test"]
    items = [
        (target["last"], "after the last round"),
        (target["selected"], "chosen without labels"),
        (target["oracle"], "best by target labels, for reference"),
        (reached["source_only"], "source network alone"),
    ]
    if "paired_last" in target:
        items[3:3] = [
            (target[f"paired_{name}"], f"image and translation, {name}")
            for name in ("last", "selected")
        ]
        items.append((reached["source_translated"], "source network on translations"))
    shown = "".join(f"<li><b>{parts.percent(value)}</b>{text}</li>" for value, text in items)
    if all(value is None for value, _ in items):
        shown = "<li>The target has no labels to measure with.</li>"
    images = result.get("images", {})
    counts = (
        f"{images['source_train']:,} labelled and {images['target_train']:,} unlabelled training "
        "images. "
        if images
        else ""
    )
    own, where = ("source_test", "test images of")
    if own not in reached:
        own, where = "source_train", "the training images of"
    labels = (
        "The network was trained on the target's own labels: this is the ceiling for the others."
        if result.get("method") == "upper_bound"
        else "Target labels are read for these figures and for nothing that trains or selects."
    )
    return (
        f"<h2>Accuracy on the target domain</h2><ul class=figures>{shown}</ul>"
        f"<p class=faint>Measured on {html.escape(result['evaluated_on'])}. {counts}The source "
        f"network has {parts.percent(reached[own])} on {where} its own domain. {labels}</p>"
    )


def _rounds(lines: Sequence[Mapping]) -> str:
    rounds = metrics.rounds(lines)
    if not rounds:
        return ""
    accuracy = {
        "target": parts.curve(rounds, "target_test"),
        "source, test images": parts.curve(rounds, "source_test"),
        "source, training images": parts.curve(rounds, "source_train"),
    }
    shown = [
        parts.chart(charts.lines, "accuracy", accuracy, "round", "accuracy", percent=True),
        parts.chart(
            charts.lines,
            "alignment",
            {"L_AT": parts.curve(rounds, "round_alignment")},
            "round",
            "L_AT",
        ),
    ]
    falls = (
        "<p class=faint>L_AT falls where the target network learns to attend as the source network "
        "does.</p>"
        if shown[1]
        else ""
    )
    return f"<h2>Rounds</h2><div class=charts>{''.join(shown)}</div>{falls}"


def _classes(result: Mapping) -> str:
    names, confusion = list(result["per_class"]), np.array(result["confusion"])
    if not confusion.sum():
        return ""
    bars = charts.bars("classes", result["per_class"], "accuracy, %")
    matrix = charts.matrix("confusion", confusion, names, "true class", "predicted class")
    worst = [
        (confusion[row, column], names[row], names[column])
        for row, column in np.ndindex(*confusion.shape)
        if row != column and confusion[row, column]
    ]
    worst = sorted(worst, key=lambda item: (-item[0], *item[1:]))[:5]
    told = "; ".join(f"{html.escape(a)} taken for {html.escape(b)} ({n})" for n, a, b in worst)
    often = f"<p>Most frequent errors: {told}.</p>" if told else ""
    return (
        f"<h2>Classes</h2>{often}<div class=charts><figure>{bars}</figure>"
        f"<figure>{matrix}</figure></div><p class=faint>The network after the last round, on the "
        "target domain; shades are shares of each row.</p>"
    )


def _losses(lines: Sequence[Mapping]) -> str:
    shown = []
    for stage in _STAGES:
        here = [line for line in lines if line["stage"] == stage and "loss" in line]
        names = dict.fromkeys(k for line in here for k in line if k not in ("stage", "step"))
        for name in names:
            curves = {name: parts.curve(here, name, "step")}
            shown.append(
                parts.chart(charts.lines, f"{stage}-{name}", curves, f"{stage}, updates", name)
            )
    inside = "".join(shown)
    return inside and (
        f"<h2>Training</h2><details><summary>Every logged figure of every stage</summary>"
        f"<div class=charts>{inside}</div></details>"
    )


def _time(result: Mapping) -> str:
    seconds, sizes = result["seconds"], result.get("step_bytes", {})
    rows = [
        (
            stage,
            f"{value / 60:.1f} min"
            + (f", an update takes {sizes[stage] / 2**20:,.0f} MiB" if sizes.get(stage) else ""),
        )
        for stage, value in seconds.items()
    ]
    rows.append(("all", f"{sum(seconds.values()) / 60:.1f} min"))
    return (
        f"<h2>Time and memory</h2>{parts.table(rows)}<p class=faint>Memory is of each device.</p>"
    )


def _settings(about: Mapping) -> str:
    versions = about.get("versions", {})
    return (
        "<h2>Settings and versions</h2><details><summary>Show</summary>"
        f"{parts.table(parts.flat(about['config']))}{parts.table(versions.items())}</details>"
    )
