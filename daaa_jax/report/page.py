"""Writes the report of a run or of a sweep as one self-contained HTML file."""

import base64
import contextlib
import dataclasses
import urllib.parse
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daaa_jax.errors import UserError
from daaa_jax.experiment.stages import OURS
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.report import sections, templates
from daaa_jax.runtime import files, metrics

_RUNS = "runs"


@dataclasses.dataclass(frozen=True)
class RunArtifacts:
    """The files of a run, finished or not.

    Attributes:
      name: name of the working directory.
      about: content of `config.json`: `config`, `command` and `versions`.
      result: content of `result.json`; None until the run is finished.
      lines: lines of `metrics.jsonl`.
      pairs: sheet of image pairs, a PNG.
      syncs: soft labels of each round, see `rounds.soft_labels`.
      diagnostics: metrics written by `diagnostics.write`.
      arrays: arrays written by `diagnostics.write`.
      upper_bound: such arrays of a run in the same folder with `method=upper_bound`; empty if none.
    """

    name: str
    about: Mapping[str, Any]
    result: Mapping[str, Any] | None
    lines: Sequence[Mapping[str, Any]]
    pairs: bytes | None
    syncs: Sequence[Mapping[str, Any]]
    diagnostics: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    upper_bound: Mapping[str, np.ndarray]


def write(workdir: Workdir) -> Path:
    """Writes the report of a run, finished or not.

    Returns:
      Path of the page.

    Raises:
      UserError: if it is not a working directory.
    """
    diagnostics, arrays = _json(workdir.diagnostics_json) or {}, _arrays(workdir)
    artifacts = RunArtifacts(
        name=workdir.path.name,
        about=workdir.about(),
        result=workdir.result(),
        lines=metrics.read(workdir.metrics_jsonl),
        pairs=_pairs(workdir),
        syncs=_json(workdir.posterior_json) or [],
        diagnostics=diagnostics,
        arrays=arrays,
        upper_bound=_upper_bound(workdir, diagnostics, arrays),
    )
    files.write_bytes(workdir.report, render(artifacts).encode())
    return workdir.report


def render(found: RunArtifacts) -> str:
    """Renders the page as HTML."""
    result, about = found.result, found.about
    config = about["config"]
    class_names = list(result["per_class"]) if result else []
    method = config.get("method", OURS)
    seeds = (result or {}).get("seeds", [config.get("seed")])  # runs of older versions have several
    return templates.render(
        "run.html",
        title=result["task"] if result else found.name,
        name=found.name,
        how=("" if method == OURS else f"method {method}, ") + f"seed {', '.join(map(str, seeds))}",
        command=about.get("command", ""),
        finished=result is not None,
        smoke=config.get("smoke"),
        ours=method == OURS,
        upper_bound=(result or {}).get("method") == "upper_bound",
        accuracies=sections.accuracies(result) if result else None,
        rounds=sections.rounds(found.lines),
        aligned=any("round_alignment" in line for line in found.lines),
        soft_labels=sections.soft_labels(found.lines, found.syncs, class_names),
        second_view=sections.second_view(
            found.syncs, (result or {}).get("em"), config.get("em", {})
        ),
        validators=sections.validators(found.lines),
        classes=sections.classes(result) if result else None,
        translations=sections.translations(
            found.pairs,
            (result or {}).get("translation_colours", {}),
            found.diagnostics,
            found.arrays,
            class_names,
        ),
        attention=sections.attention(
            found.arrays, found.diagnostics.get("layers", []), found.upper_bound
        ),
        features=sections.features(found.arrays, class_names),
        losses=sections.losses(found.lines),
        time=sections.time(result) if result else None,
        settings=sections.settings(config),
        versions=list(about.get("versions", {}).items()),
    )


def _json(path: Path) -> Any:
    return files.read_json(path) if path.is_file() else None


def _arrays(workdir: Workdir) -> dict[str, np.ndarray]:
    if not workdir.diagnostics_npz.is_file():
        return {}
    with np.load(workdir.diagnostics_npz) as arrays:
        return dict(arrays)


def _upper_bound(
    workdir: Workdir, diagnostics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays of an upper-bound run in the same folder, with the same images and layers."""
    own = workdir.path.absolute()
    others: list[Path] = []
    with contextlib.suppress(OSError):
        others = sorted(place for place in own.parent.iterdir() if place != own)
    for other in map(Workdir, others):
        # Skip damaged runs.
        with contextlib.suppress(OSError, UserError, ValueError, KeyError, zipfile.BadZipFile):
            layers = (_json(other.diagnostics_json) or {}).get("layers")
            method = (_json(other.config_json) or {}).get("config", {}).get("method")
            if method == "upper_bound" and layers == diagnostics.get("layers"):
                found = _arrays(other)
                if np.array_equal(found["examples"], arrays["examples"]):
                    return found
    return {}


def _pairs(workdir: Workdir) -> bytes | None:
    """The sheet of image pairs, of this run or of the run whose stage `pair` it reuses."""
    found = (place.pair_sheet for place in (workdir, workdir.origin("pair")))
    return next((path.read_bytes() for path in found if path.is_file()), None)


def is_sweep(folder: Path) -> bool:
    """Whether a folder was written by `daaa_jax.reproduce`."""
    return (folder / _RUNS).is_dir() and not Workdir(folder).config_json.exists()


def write_sweep(folder: Path) -> Path:
    """Writes the page of a sweep, finished or not.

    Args:
      folder: output of `daaa_jax.reproduce`: `<table>.json`, `<figure>.svg` and `runs/`.

    Returns:
      Path of the page.
    """
    path = Workdir(folder).report
    title = f"Tables and figures in {folder.absolute().name}"
    names = sorted({path.stem for path in folder.glob("*") if path.suffix in (".json", ".svg")})
    parts = []
    for name in names:
        svg, sheet = folder / f"{name}.svg", folder / f"{name}.json"
        drawn = base64.b64encode(svg.read_bytes()).decode() if svg.is_file() else ""
        parts.append({"name": name, "svg": drawn, "sheet": _json(sheet)})
    page = templates.render("sweep.html", title=title, parts=parts, runs=_runs(folder))
    files.write_bytes(path, page.encode())
    return path


def _runs(folder: Path) -> list[dict[str, Any]]:
    """The finished runs of a sweep, each with a link to its report."""
    rows = []
    for place in sorted((folder / _RUNS).glob("*/result.json")):
        workdir = Workdir(place.parent)
        try:
            result = files.read_json(workdir.result_json)
            target = result["accuracy"]["target_test"]
            minutes = sum(result["seconds"].values()) / 60
        except (UserError, KeyError, TypeError, AttributeError):
            continue  # damaged
        name = workdir.path.name
        page = workdir.report.relative_to(workdir.path)
        shown = (sections.percent(target[which]) for which in ("last", "selected", "oracle"))
        rows.append(
            {
                "name": name,
                "link": urllib.parse.quote(f"../{_RUNS}/{name}/{page}", safe="/="),
                "cells": [*shown, f"{minutes:.1f} min"],
            }
        )
    return rows
