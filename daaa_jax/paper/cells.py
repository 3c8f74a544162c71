"""The runs behind each cell of a table, one per seed: configs, folders and results."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from daaa_jax import config_files
from daaa_jax.errors import UserError
from daaa_jax.experiment import stages
from daaa_jax.experiment import workdir as workdirs
from daaa_jax.experiment.workdir import Workdir, folder_name, is_location_setting, same_paths
from daaa_jax.paper import tables
from daaa_jax.runtime import metrics
from daaa_jax.validate import resolve

# Data sets for the tables: the config's name, and the word for each task of a table.
_OFFICE_TASKS = {task: task.lower().replace("->", "2") for task in tables.OFFICE}
DATA = {
    "mnist2mnistm": ("digits", {tables.DIGITS[0]: "mnist2mnistm"}),
    "embedded": ("digits", {tables.DIGITS[0]: "embedded"}),
    "office": ("office", _OFFICE_TASKS),
    "office10": ("office10", _OFFICE_TASKS),
}
# Settings of all cells that do not set them otherwise, whatever the config's defaults; in the order
# in which they became part of folders' names.
_OF_THE_PAPER = {
    "em.posterior": "target",
    "adapt.recolour": "0.0",
    "em.threshold": "0.95",
    "em.decay": "0.0",
    "adapt.confusion": "0.0",
}
_DIGITS = {"adapt.optimizer.schedule": "progress", "adapt.optimizer.learning_rate": "0.001"}
_PHOTOS = {"em.start_step": "0"}  # likewise; without the loss of MCC, EM starts at once
_NAMED_BEFORE = (5, 4, 3, 2, 0)  # so many, by earlier versions


@dataclasses.dataclass(frozen=True)
class Plan:
    """Data, settings and seeds shared by all cells of a table.

    Attributes:
      data: a key of `DATA`.
      words: words of the config's argument, such as `cpu` or `smoke`.
      settings: settings that the user changes in all cells.
      seeds: number of runs per cell.
      own_networks: whether each seed trains its own CycleGAN and source network, or uses those of
        seed 0.
      only_show: whether nothing is trained; runs of earlier versions are then shown too, though
        their settings may differ.
    """

    data: str
    words: tuple[str, ...] = ()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    own_networks: bool = False
    only_show: bool = False

    @property
    def where(self) -> str:
        """The data and the words of its config, for titles."""
        return ", ".join([self.data, *self.words])

    def is_as(self, data: str) -> bool:
        """Whether results are comparable with those on `data`: same data, not `cpu` or `smoke`."""
        return self.data == data and not {"cpu", "smoke"} & set(self.words)

    @property
    def changed_settings(self) -> list[str]:
        """Changed settings, such as `adapt.rounds=8`, without locations of data."""
        changes = (f"{name}={value}" for name, value in sorted(self.settings.items()))
        return [change for change in changes if not is_location_setting(change)]

    def file_name(self, name: str, subject: tables.Subject, tasks: Sequence[str]) -> str:
        """File name of a table or figure, without suffix.

        `table3` on the paper's data, tasks and settings; otherwise with what differs, such as
        `table3-embedded-adapt.rounds=8`, as both may be in one folder.

        Args:
          name: name of the table or figure.
          subject: the table or figure.
          tasks: the tasks that it shows.
        """
        _, word = DATA[self.data]
        data = [self.data] if self.data != subject.data else []
        some = [word[task] for task in tasks] if len(tasks) < len(self.tasks(subject.tasks)) else []
        own = ["own_networks"] if self.own_networks else []
        words = [name, *data, *self.words, *some, *self.changed_settings, *own]
        return folder_name(words, longest=200)  # a suffix follows

    def tasks(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The tasks of a table that the data has; if it has none of them, all tasks of the data."""
        _, known = DATA[self.data]
        return tuple(task for task in wanted if task in known) or tuple(known)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: a task, the settings of a row, a seed."""

    task: str
    settings: Mapping[str, str]
    seed: int

    def argument(self, plan: Plan, named: int | None = None) -> str:
        """The config's argument, which also names the run's folder.

        Args:
          plan: what all runs share.
          named: how many of the paper's settings it has, for the name in an earlier version.
        """
        file, tasks = DATA[plan.data]
        papers = list((_OF_THE_PAPER | (_DIGITS if file == "digits" else _PHOTOS)).items())[:named]
        settings = {**dict(papers), **plan.settings, **self.settings, "seed": str(self.seed)}
        if not plan.own_networks:
            settings |= {"pair.seed": "0", "source.seed": "0"}
        changes = [f"{name}={value}" for name, value in sorted(settings.items())]
        return ",".join([tasks[self.task], *plan.words, *changes])

    def config(self, plan: Plan) -> ConfigDict:
        """The run's config.

        Raises:
          UserError: if a word or a setting is unknown.
        """
        return config_files.load(f"{DATA[plan.data][0]}:{self.argument(plan)}")

    def workdir(self, plan: Plan, folder: Path) -> Workdir:
        """Working directory, named after the settings, so that tables share equal runs.

        All runs are in one folder, where each finds the stages that it shares with others.
        """
        places = []
        for named in (None, *_NAMED_BEFORE) if plan.only_show else (None,):
            parts = self.argument(plan, named).split(",")
            parts = [part for part in parts if not is_location_setting(part)]
            places.append(folder / "runs" / folder_name([DATA[plan.data][0], *parts]))
        return Workdir(next((place for place in places if place.exists()), places[0]))


def runs_of(table: tables.Table, tasks: Sequence[str], plan: Plan) -> list[Run]:
    """All runs of a table on some tasks, each once, grouped by task and seed.

    The upper bound comes first, as the reports of the other runs show its attention.
    """
    rows = sorted(table.rows, key=lambda row: row.method != tables.UPPER_BOUND)
    return [
        Run(task, row.settings, seed)
        for task in tasks
        for seed in range(plan.seeds)
        for row in rows
        if row.is_trained
    ]


def share(runs: Sequence[Run], part: int, of: int) -> list[Run]:
    """The runs of host `part`, from 1, of `of` hosts.

    Runs that share a CycleGAN stay on one host if there are enough pairs of domains for all hosts.
    """
    pairs = list(dict.fromkeys(_pair(run) for run in runs))
    if not is_split(runs, of):
        return [run for run in runs if pairs.index(_pair(run)) % of == part - 1]
    return list(runs)[part - 1 :: of]


def is_split(runs: Sequence[Run], of: int) -> bool:
    """Whether hosts share a pair of domains, as there are more hosts than pairs."""
    return of > len({_pair(run) for run in runs})


def _pair(run: Run) -> tuple[str, ...]:
    return tuple(sorted(run.task.split("->")))


def result(run: Run, plan: Plan, folder: Path) -> dict[str, Any] | None:
    """Content of `result.json` of a finished run; None if it is not finished.

    Raises:
      UserError: if the run in its folder was made with other settings, or its stages have other
        versions, unless `plan.only_show`.
    """
    workdir = run.workdir(plan, folder)
    found = workdir.result()
    differing = [] if found is None or plan.only_show else other_settings(run, plan, folder)
    if differing:
        raise UserError(
            f"{workdir} was made with other settings or another version: "
            f"{'; '.join(differing[:5])}. Give another --workdir, or what it was made with"
        )
    return found


def other_settings(run: Run, plan: Plan, folder: Path) -> list[str]:
    """How the settings of a run in its folder, and the versions of its stages, differ."""
    config, place = run.config(plan), run.workdir(plan, folder)
    made_with = place.config()
    resolve(config, 1, made_with)
    return workdirs.differences(made_with, config) + stages.other_versions(place)


def settings_of_earlier_versions(runs: Iterable[Run], plan: Plan, folder: Path) -> list[str]:
    """How the settings of finished runs differ, each difference once; empty while training."""
    finished = [run for run in runs if plan.only_show and result(run, plan, folder)]
    differing = (other_settings(run, plan, folder) for run in finished)
    return list(dict.fromkeys(itertools.chain.from_iterable(differing)))


def finished_rounds(
    task: str, settings: Mapping[str, str], plan: Plan, folder: Path
) -> list[list[Mapping[str, Any]]]:
    """The metrics of all rounds, see `metrics.rounds`, of each seed whose run is finished."""
    runs = [Run(task, settings, seed) for seed in range(plan.seeds)]
    finished = [run for run in runs if result(run, plan, folder) is not None]
    places = [run.workdir(plan, folder).metrics_jsonl for run in finished]
    return [metrics.rounds(metrics.read(place)) for place in places]


def is_to_do(run: Run, plan: Plan, folder: Path) -> bool:
    """Whether a run is unfinished, or read its data from another path.

    `pipeline.run` then finds out whether the data at both paths are the same.

    Raises:
      UserError: if the run in its folder was made with other settings.
    """
    if result(run, plan, folder) is None:
        return True
    return not same_paths(run.workdir(plan, folder).config(), run.config(plan))


def has_diverged(run: Run, plan: Plan, folder: Path) -> bool:
    """Whether a run ended with an infinite or NaN loss, and has not been finished since."""
    workdir = run.workdir(plan, folder)
    return workdir.diverged_json.exists() and not workdir.result_json.exists()


def accuracies(
    table: tables.Table, tasks: Sequence[str], plan: Plan, folder: Path
) -> dict[tuple[int, str], list[float | None]]:
    """Accuracy of each seed in per cent, by row number and task.

    None if the run is not finished or the target domain is unlabelled; NaN if the run diverged.
    """
    found = {}
    for task in tasks:
        for number, row in enumerate(table.rows):
            # The source network is the same in every run of a task and a seed.
            rows = [row] if row.is_trained else [r for r in table.rows if r.is_trained]
            of_seeds = [
                _accuracy([Run(task, r.settings, seed) for r in rows], row, plan, folder)
                for seed in range(plan.seeds)
            ]
            if not (row.is_trained or plan.own_networks):
                # All seeds share one source network: one accuracy, without a deviation.
                of_seeds = [next((value for value in of_seeds if value is not None), None)]
            found[number, task] = of_seeds
    return found


def _accuracy(runs: Sequence[Run], row: tables.Row, plan: Plan, folder: Path) -> float | None:
    """What a row shows of the first of some runs that has it."""
    for run in runs:
        if row.is_trained and has_diverged(run, plan, folder):
            return math.nan
        reached = (result(run, plan, folder) or {}).get("accuracy", {})
        reached = reached.get("target_test", {}) if row.is_trained else reached
        if row.metric in reached:  # a baseline's run has no translations
            accuracy = reached[row.metric]
            return None if accuracy is None else 100 * accuracy
    return None
