"""Writes the report of a run or of a sweep as one self-contained HTML file."""

import base64
import contextlib
import urllib.parse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from daaa_jax.errors import UserError, writable
from daaa_jax.experiment.stages import OURS
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.report import sections, templates
from daaa_jax.runtime import files, metrics

_RUNS = "runs"


def write(workdir: Workdir) -> Path:
    """Writes the report of a run, finished or not.

    Returns:
      Path of the page.

    Raises:
      UserError: if it is not a working directory.
    """
    return _write(workdir.report, render(workdir))


def render(workdir: Workdir) -> str:
    """Renders the page of a run as HTML."""
    about, result, name = workdir.about(), workdir.result() or {}, workdir.path.name
    config, lines = about["config"], metrics.read(workdir.metrics_jsonl)
    syncs = files.read_json_or(workdir.posterior_json, [])  # see `rounds.soft_labels`
    # Written by `diagnostics.write` at the end of the run.
    diagnostics, arrays = files.read_json_or(workdir.diagnostics_json, {}), _arrays(workdir)
    class_names = list(result.get("per_class", ()))
    method = config.get("method", OURS)
    return templates.render(
        "run.html",
        title=result.get("task", name),
        name=name,
        about=about,
        result=result,
        method=method,
        ours=method == OURS,
        seeds=result.get("seeds", [config.get("seed")]),  # runs of older versions have several
        accuracies=sections.accuracies(result) if result else None,
        rounds=sections.rounds(lines),
        aligned=any("round_alignment" in line for line in lines),
        soft_labels=sections.soft_labels(lines, syncs, class_names),
        second_view=sections.second_view(syncs, result.get("em"), config.get("em", {})),
        validators=sections.validators(lines),
        classes=sections.classes(result) if result else None,
        translations=sections.translations(
            _pairs(workdir), result.get("translation_colours", {}), diagnostics, arrays, class_names
        ),
        pair_run=workdir.reused().get("pair", {}).get("from"),
        attention=sections.attention(
            arrays, diagnostics.get("layers", []), _upper_bound(workdir, diagnostics, arrays)
        ),
        features=sections.features(arrays, class_names),
        losses=sections.losses(lines),
        settings=traverse_util.flatten_dict(config, sep=".").items(),
    )


def _arrays(workdir: Workdir) -> dict[str, np.ndarray]:
    if not workdir.diagnostics_npz.is_file():
        return {}
    with np.load(workdir.diagnostics_npz) as arrays:
        return dict(arrays)


def _upper_bound(
    workdir: Workdir, diagnostics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays of an upper-bound run in the same folder, with the same images and layers."""
    for other in workdir.siblings():
        # Skip damaged runs.
        with contextlib.suppress(OSError, UserError, ValueError, KeyError, zipfile.BadZipFile):
            layers = files.read_json_or(other.diagnostics_json, {}).get("layers")
            method = files.read_json_or(other.config_json, {}).get("config", {}).get("method")
            if method == "upper_bound" and layers == diagnostics.get("layers"):
                found = _arrays(other)
                if np.array_equal(found["examples"], arrays["examples"]):
                    return found
    return {}


def _pairs(workdir: Workdir) -> bytes | None:
    """The sheet of image pairs, of this run or of the run whose stage `pair` it reuses."""
    found = (place.pair_sheet for place in (workdir, workdir.origin("pair")))
    return next((path.read_bytes() for path in found if path.is_file()), None)


def _write(path: Path, page: str) -> Path:
    with writable(path):
        files.write_text(path, page)
    return path


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
        parts.append({"name": name, "svg": drawn, "sheet": files.read_json_or(sheet, None)})
    page = templates.render("sweep.html", title=title, parts=parts, runs=_runs(folder))
    return _write(path, page)


def _runs(folder: Path) -> list[tuple[str, str, list[str]]]:
    """The finished runs of a sweep: name, link to its report, cells of the table."""
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
        link = urllib.parse.quote(f"../{_RUNS}/{name}/{page}", safe="/=")
        rows.append((name, link, [*shown, f"{minutes:.1f} min"]))
    return rows
