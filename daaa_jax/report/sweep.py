"""The page of a sweep: its tables and figures, and every run with a link to its own report."""

import base64
import html
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from daaa_jax.errors import UserError
from daaa_jax.report import parts
from daaa_jax.report.page import NAME
from daaa_jax.runtime import markers

RUNS = "runs"


def is_sweep(folder: Path) -> bool:
    """Whether a folder is what `daaa_jax.reproduce` writes to."""
    return (folder / RUNS).is_dir() and not (folder / markers.CONFIG_NAME).exists()


def write(folder: Path) -> Path:
    """Writes the page of a sweep, of one still going on too.

    Args:
      folder: as `daaa_jax.reproduce` writes it: `<table>.md`, `<figure>.svg`, and `runs/`.

    Returns:
      The page's path.
    """
    title = f"Tables and figures in {folder.absolute().name}"
    sections = [f"<h1>{html.escape(title)}</h1>"]
    for name in sorted({path.stem for path in folder.glob("*") if path.suffix in (".md", ".svg")}):
        picture, table = folder / f"{name}.svg", folder / f"{name}.md"
        sections += [_figure(picture)] if picture.is_file() else []
        sections += [_table(table.read_text())] if table.is_file() else []
    sections.append(_runs(folder))
    page = parts.document(title, sections)
    markers.write_bytes(folder / NAME, page.encode())
    return folder / NAME


def _table(text: str) -> str:
    """A table as `paper.summary.to_markdown` writes it."""
    title, *lines = text.strip().splitlines()
    rows = [_cells(line) for line in lines if line.startswith("|")]
    notes = " ".join(line for line in lines if line and not line.startswith("|")).replace("`", "")
    if len(rows) < 2:
        return f"<h2>{html.escape(title.lstrip('# '))}</h2><p>{html.escape(notes)}</p>"
    head, _, *body = rows
    inside = _row(head, "th") + "".join(_row(row, "td") for row in body)
    return (
        f"<h2>{html.escape(title.lstrip('# '))}</h2><div class=wide><table>{inside}</table></div>"
        f"<p class=faint>{html.escape(notes)}</p>"
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _figure(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure class=drawn><img alt="{html.escape(path.stem)}" '
        f'src="data:image/svg+xml;base64,{content}"></figure>'
    )


def _runs(folder: Path) -> str:
    rows = []
    for workdir in sorted(path.parent for path in (folder / RUNS).glob("*/result.json")):
        try:
            result = markers.read_json(workdir / "result.json")
            target = result["accuracy"]["target_test"]
            minutes = sum(result["seconds"].values()) / 60
        except (UserError, KeyError, TypeError, AttributeError):
            continue  # damaged
        name = html.escape(workdir.name)
        address = urllib.parse.quote(f"../{RUNS}/{workdir.name}/{NAME}", safe="/=")
        link = f'<a href="{address}">{name}</a>'
        cells = (link, *map(parts.percent, (target["last"], target["selected"], target["oracle"])))
        rows.append("".join(f"<td>{cell}</td>" for cell in (*cells, f"{minutes:.1f} min")))
    if not rows:
        return "<p>No run is finished.</p>"
    inside = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        "<h2>Runs</h2><div class=wide><table><tr><th>run</th><th>last</th><th>selected</th>"
        f"<th>oracle</th><th>time</th></tr>{inside}</table></div><p class=faint>Accuracy on the "
        "target domain: after the last round, at the round chosen without labels, and at the best "
        "by target labels, for reference. Times count the stages that a run shares with others in "
        "each of them.</p>"
    )
