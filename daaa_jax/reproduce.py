"""Reproduces the paper's tables and figures.

    daaa reproduce table2 --workdir=runs/table2 --config.data.dir=DIR
    daaa reproduce table3 --workdir=runs/table3 --data=embedded

Trains the missing runs one after another. After each, writes the results so far to the working
directory: a table as Markdown and CSV with mean and standard deviation over seeds, the paper's
number and the difference; a figure (`figA1`, `fig4`) as SVG and CSV. Rerun the same command to
resume.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.reproduce")

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from daaa_jax import validate
from daaa_jax.command_line import Parser, settings_of
from daaa_jax.errors import Diverged, UserError, counted, writable
from daaa_jax.experiment.workdir import Busy, Workdir
from daaa_jax.paper import cells, figures, selection, summary, tables
from daaa_jax.report import page
from daaa_jax.runtime import error_log, files

NAMES = (*tables.TABLES, *figures.FIGURES)
_MORE_HELP = """\
table1   methods, all trained here, on MNIST -> MNIST-M
table2   methods, all trained here, on Office-31
table3   parts of EM
table4   measures of the difference between attention maps
tableA1  what is aligned: attention maps of squares, absolute values or maxima, or features
fig4     attention alignment and accuracy by round
figA1    accuracy by em.threshold and adapt.beta

--config.NAME=VALUE changes a setting of all runs, such as --config.data.dir=DIR,
the data's folder. The number of runs and the time left are printed."""

Trainer = Callable[[ConfigDict, Workdir], None]

_MORE_HOSTS = (
    "--cells={part}/{of}: there are fewer pairs of domains than hosts, and each host trains the "
    "CycleGANs and source networks that are not finished; to share them, run one host alone until "
    "they are finished"
)


def main(arguments: Sequence[str] | None = None, train: Trainer | None = None) -> None:
    """Runs the cells of a table or figure, and writes it.

    Args:
      arguments: command-line arguments; by default those of the process.
      train: runs a config in a working directory; by default `pipeline.run`.

    Raises:
      UserError: for any error that the user can fix.
      Preempted: if SIGTERM ended the run; rerun the same command to resume.
    """
    options, plan, runs = _parse(arguments)
    folder = files.expanded(options.workdir)
    error_log.use(folder)
    mine = cells.share(runs, *options.cells)
    # Report misspelt settings, and runs made with other settings, before hours of training.
    for run in mine:
        run.config(plan)
    for run in options.all_runs:
        cells.result(run, plan, folder)
    diverged = [run for run in mine if cells.has_diverged(run, plan, folder)]
    missing = [run for run in mine if run not in diverged and cells.is_to_do(run, plan, folder)]
    here = f"{counted(len(runs), 'run')}, {len(mine)} here, {len(missing)} to do"
    print(f"{options.name}: {here}", flush=True)
    if diverged:
        place = diverged[0].workdir(plan, folder)
        print(
            f"{counted(len(diverged), 'run')} diverged: remove {place.diverged_json} and the like "
            "to retry",
            flush=True,
        )
    part, of = options.cells
    if missing and part > 1 and cells.is_split(runs, of) and not plan.own_networks:
        print(_MORE_HOSTS.format(part=part, of=of), flush=True)
    if options.only_show or not missing:
        _write(options, plan, folder)
    else:
        train = train or _trainer(missing[0].config(plan), together=of == 1)
        _train(train, missing, options, plan, folder)
    name = plan.file_name(options.name, options.subject, options.tasks)
    kind = "md" if options.name in tables.TABLES else "svg"
    print(f"{folder / name}.{kind}, and all results in {page.write_sweep(folder)}", flush=True)


def _train(train: Trainer, missing: Sequence[cells.Run], options, plan, folder: Path) -> None:
    """Trains the runs in order, and writes the results so far after each."""
    # Imported here, so that a misspelt argument is reported at once.
    from daaa_jax.runtime.preemption import Notice, Preempted

    start = time.monotonic()
    with Notice().listening() as notice:
        for number, run in enumerate(missing, start=1):
            place, left = run.workdir(plan, folder), ""
            if number > 1:
                each = (time.monotonic() - start) / (number - 1) / 60
                left = f", ~{each * (len(missing) - number + 1):.0f} min left"
            at = f"run {number} of {len(missing)}{left}: {place.path.name}"
            print(f"{options.name}: {at}", flush=True)
            try:
                train(run.config(plan), place)
            except Busy as error:  # another command is running it
                print(f"{options.name}: skipped, {error}", flush=True)
            except UserError as error:
                # Other runs share the earlier stages.
                if not (isinstance(error, Diverged) and error.stage == "adapt"):
                    raise UserError(f"{place}: {error}") from error
                print(f"{options.name}: {error}", flush=True)
                files.write_json(place.diverged_json, {"message": str(error)})
            _write(options, plan, folder)
            if notice.heard() and number < len(missing):
                raise Preempted(f"{number} of {len(missing)} runs finished")


def _parser() -> Parser:
    parser = Parser(
        "reproduce",
        __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_MORE_HELP,
    )
    parser.add_argument("name", choices=NAMES, metavar="|".join(NAMES))
    parser.add_argument("--workdir", required=True, help="folder for runs and tables")
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of seeds that are averaged (3)"
    )
    parser.add_argument("--tasks", default="", help="subset of the tasks, such as d2a,w2a")
    parser.add_argument(
        "--data",
        help=f"name of the dataset: {', '.join(cells.DATA)}, optionally with a size, such as "
        "office10,cpu; default: mnist2mnistm for table1, office for the others",
    )
    parser.add_argument(
        "--methods",
        default="",
        help="rows to run, by the paper's names or their beginnings, as 'RevGrad,Ours'; a wrong "
        "name lists all. Additions to the paper are off, but in rows named after them",
    )
    parser.add_argument("--smoke", action="store_true", help="smoke runs for a test")
    parser.add_argument(
        "--cells",
        default="1/1",
        help="i/n: run only the ith (from 1) of n shares of the table's runs, to split it over "
        "machines that share --workdir; each command ends with the table of all finished runs",
    )
    parser.add_argument(
        "--own_networks",
        action="store_true",
        help="train a CycleGAN and a source network for each seed; by default seeds share them",
    )
    parser.add_argument("--only_show", action="store_true", help="write the table without training")
    return parser


def _parse(arguments: Sequence[str] | None):
    options, others = _parser().parse_known_args(arguments)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds} must be at least 1")
    part = re.fullmatch(r"(\d+)/(\d+)", options.cells)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        raise UserError(f"--cells={options.cells} is not a valid share: expected i/n, such as 2/3")
    options.cells = int(part[1]), int(part[2])
    if not options.workdir:
        raise UserError("--workdir= is empty: give a folder, such as --workdir=runs/tables")
    folder = files.expanded(options.workdir)
    validate.check_workdir(folder)
    if Workdir(folder).config_json.exists():
        raise UserError(
            f"--workdir={options.workdir} is the working directory of a run: give another folder"
        )
    subject = options.subject = tables.TABLES.get(options.name) or figures.FIGURES[options.name]
    data, words = selection.words_of(options.data or subject.data)
    words += ("smoke",) if options.smoke else ()
    settings = selection.settings_for_all(settings_of(others))
    plan = cells.Plan(data, words, settings, options.seeds, options.own_networks, options.only_show)
    wanted = [task for task in options.tasks.split(",") if task]
    options.tasks = selection.chosen_tasks(plan, subject.tasks, wanted)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    if isinstance(subject, tables.Table):
        config = cells.Run(options.tasks[0], {}, 0).config(plan)
        options.table = tables.on_network(subject, config.model.name, config.adapt.beta)
        options.all_runs = cells.runs_of(options.table, options.tasks, plan)
        runs = cells.runs_of(selection.some_rows(options.table, methods), options.tasks, plan)
    elif methods:
        raise UserError(f"--methods={options.methods}: a figure has no rows; leave it out")
    else:
        runs = options.all_runs = figures.runs_of(subject, options.tasks, plan)
    return options, plan, runs


def _write(options, plan: cells.Plan, folder: Path) -> None:
    name = options.name
    with writable(f"--workdir={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    if name in figures.FIGURES:
        figures.write(name, options.tasks, plan, folder)
        return
    table = options.table
    found = cells.accuracies(table, options.tasks, plan, folder)
    lines = list(summary.lines(name, table, options.tasks, found, plan.is_as(table.data)))
    path = folder / plan.file_name(name, table, options.tasks)
    title = f"{table.title}, on {plan.where}"
    summary.sheet(title, lines, _notes(options, plan, folder)).write(path)
    files.write_text(Path(f"{path}.csv"), summary.to_csv(lines))


def _notes(options, plan: cells.Plan, folder: Path) -> list[str]:
    what = "one seed."
    if plan.seeds > 1:
        same = "All seeds share the CycleGAN and the source network of seed 0."
        if plan.own_networks:
            same = "Each seed has its own CycleGAN and source network."
        what = f"mean ± standard deviation over {plan.seeds} seeds. {same}"
    settings = " ".join(f"`{change}`" for change in plan.changed_settings)
    fitted = (
        plan.data in ("office", "office10")
        and "data.target_test" not in plan.settings
        and any(row.method == tables.UPPER_BOUND for row in options.table.rows)
    )
    sentences = {
        f"On {plan.where}, accuracy on the target domain after the last round, in per cent: "
        f"{what}": True,
        "In brackets: the paper's accuracy and the difference.": plan.is_as(options.table.data),
        "Smoke run: metrics are not meaningful.": "smoke" in plan.words,
        f"With {settings}.": settings,
        "The upper bound is measured on the images that it was trained on.": fitted,
    }
    other = cells.settings_of_earlier_versions(options.all_runs, plan, folder)
    return [
        " ".join(sentence for sentence, holds in sentences.items() if holds),
        *([f"Some runs had other settings: {'; '.join(other)}."] if other else []),
    ]


def _trainer(config: ConfigDict, together: bool) -> Trainer:
    # Imported here, so that a misspelt argument is reported at once.
    import jax

    from daaa_jax import pipeline
    from daaa_jax.runtime import accelerators, allocator, compilation, distributed, jax_settings

    allocator.keep_freed_memory()
    jax_settings.set_supported()
    compilation.configure(config.run)
    if together:  # several processes of one run; with --cells each host trains alone
        distributed.start()
    jax_settings.check_devices()
    accelerators.warn_if_unused()

    def train(config: ConfigDict, workdir: Workdir) -> None:
        try:
            pipeline.run(config, workdir)
        finally:
            jax.clear_caches()  # the next run compiles other programs

    return train
