"""Tables as Markdown and CSV: our mean and deviation over seeds, and the paper's accuracy."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daaa_jax.paper import tables
from daaa_jax.paper.tables import PaperValue, Table
from daaa_jax.runtime import files

NOT_RUN = "not run"
DIVERGED = "diverged"
AVERAGE = "Average"

Accuracies = Mapping[tuple[int, str], Sequence[float | None]]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table of text with title and notes: Markdown, and JSON for the page of a sweep."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    def write(self, path: Path) -> None:
        """Writes `path` + `.md` and `.json`."""
        files.write_text(Path(f"{path}.md"), self.to_markdown())
        files.write_json(Path(f"{path}.json"), dataclasses.asdict(self))

    def to_markdown(self) -> str:
        """The table as Markdown."""
        text = [f"## {self.title}", ""]
        if self.rows:
            text += [f"| {' | '.join(self.columns)} |", "|" + " --- |" * len(self.columns)]
            text += [f"| {' | '.join(row)} |" for row in self.rows]
            text += [""]
        return "\n".join([*text, *self.notes, ""])


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divisor n - 1); None for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def average(by_task: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over all tasks for each seed; None if one of them is missing.

    Args:
      by_task: accuracy of each seed, by task; NaN gives NaN.
    """
    return [
        None if any(value is None for value in seed) else statistics.mean(seed)
        for seed in zip(*by_task, strict=True)
    ]


def paper_average(figures: Sequence[PaperValue]) -> PaperValue:
    """Average of a row of the paper, with halves rounded down, as the paper mostly does."""
    known = [figure for figure in figures if isinstance(figure, float | int)]
    if len(known) < len(figures):
        return None if None in figures else tables.VERY_LOW
    return math.ceil(10 * statistics.mean(known) - 0.5 - 1e-6) / 10


def lines(
    name: str, table: Table, tasks: Sequence[str], found: Accuracies, same_data: bool
) -> Iterator[dict]:
    """Yields every cell of a table.

    Args:
      name: name of the table, such as `table1`.
      table: rows of the paper's table and its accuracies.
      tasks: our columns.
      found: our accuracies in per cent, by row number and task.
      same_data: whether they are on the paper's data; if not, `paper` is None.

    Yields:
      For each row and task, and for the average if there are several tasks: `table`, `method`,
      `train_data`, `task`; counts of runs: `seeds` (finished), `diverged`, `wanted`; `mean`,
      `std`, `paper` and `difference`, None if unknown.
    """
    for number, row in enumerate(table.rows):
        paper = dict(zip(table.tasks, row.paper, strict=True)) if same_data and row.paper else {}
        cells = {task: (found[number, task], paper.get(task)) for task in tasks}
        if len(tasks) > 1:
            whole = paper_average([paper.get(task) for task in tasks])
            if same_data and row.average and set(tasks) == set(table.tasks):
                whole = row.average
            cells[AVERAGE] = (average([found[number, task] for task in tasks]), whole)
        for task, (values, figure) in cells.items():
            known = [value for value in values if value is not None]
            finished = [value for value in known if math.isfinite(value)]
            mean, std = mean_and_std(finished) if finished else (None, None)
            difference = None
            if mean is not None and isinstance(figure, float | int):
                difference = mean - figure
            yield {
                "table": name,
                "method": row.method,
                "train_data": row.train_data,
                "task": task,
                "seeds": len(finished),
                "diverged": len(known) - len(finished),
                "wanted": len(values),
                "mean": mean,
                "std": std,
                "paper": figure,
                "difference": difference,
            }


def to_csv(cells: Sequence[Mapping]) -> str:
    """CSV with one line per cell, accuracies in per cent with two decimals."""
    rows = [
        {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in cell.items()}
        for cell in cells
    ]
    return csv_text([name for name in cells[0] if name != "wanted"], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV of some columns of rows, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def sheet(title: str, cells: Sequence[Mapping], notes: Sequence[str]) -> Sheet:
    """Formats cells: `74.7 ± 0.3 (73.9, +0.8)` is ours, the paper's and the difference.

    Args:
      title: heading.
      cells: as yielded by `lines`.
      notes: text below the table.
    """
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        key = (cell["method"], cell["train_data"])
        rows.setdefault(key, []).append(_shown(cell))
    columns = ["method", "training data", *tasks]
    return Sheet(title, columns, [[*key, *shown] for key, shown in rows.items()], notes)


def _shown(cell: Mapping) -> str:
    paper, mean = cell["paper"], cell["mean"]
    reported = f"{paper:.1f}" if isinstance(paper, float | int) else paper or ""
    if mean is None:
        none = NOT_RUN
        if cell["diverged"]:
            some = f" [{cell['diverged']} of {cell['wanted']} seeds]"
            none = DIVERGED + (some if cell["diverged"] < cell["wanted"] else "")
        return f"{none} ({reported})" if reported else none
    ours = f"{mean:.1f}" + (f" ± {cell['std']:.1f}" if cell["std"] is not None else "")
    if cell["seeds"] < cell["wanted"]:
        diverged = f", {cell['diverged']} {DIVERGED}" if cell["diverged"] else ""
        ours += f" [{cell['seeds']} of {cell['wanted']} seeds{diverged}]"
    if cell["difference"] is not None:
        reported = f"{reported}, {cell['difference']:+.1f}"
    return f"{ours} ({reported})" if reported else ours
