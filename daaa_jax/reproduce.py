"""The paper's tables and figures, by our own runs.

    daaa reproduce table2 --workdir=runs/table2 --config.data.dir=DIR
    daaa reproduce table3 --workdir=runs/table3 --data=embedded

Trains what is not trained yet, one run after another, and writes after each what there is so far to
the working directory: a table as Markdown and CSV, mean and standard deviation over seeds, the
paper's figure and the difference; a figure (`figA1`, `fig4`) as SVG and CSV. The same command again
goes on.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from daaa_jax import validate
from daaa_jax.command_line import Parser, settings_of
from daaa_jax.errors import Diverged, UserError
from daaa_jax.experiment.workdir import Busy, Workdir
from daaa_jax.paper import cells, figures, summary, tables
from daaa_jax.report import page
from daaa_jax.runtime import exit_codes, files

NAMES = (*tables.TABLES, *figures.FIGURES)

Trainer = Callable[[ConfigDict, Workdir], None]

_MORE_HOSTS = (
    "--cells={part}/{of}: there are fewer pairs of domains than hosts, each of which trains the "
    "CycleGANs and source networks that it finds unfinished; to share them, let one host run alone "
    "until they are finished"
)


def main(arguments: Sequence[str] | None = None, train: Trainer | None = None) -> None:
    """Runs a table's cells and writes it.

    Args:
      arguments: of the command line.
      train: runs a config in a working directory; by default `pipeline.run`.

    Raises:
      UserError: for anything that the user can mend.
      Preempted: if SIGTERM has told the run to end; the same command goes on.
    """
    options, plan, runs = _parse(arguments)
    folder = Path(options.workdir).expanduser()
    mine = cells.share(runs, *options.cells)
    # A misspelt setting, and what was made with others, are told before hours of training.
    for run in mine:
        run.config(plan)
    for run in options.all_runs:
        cells.result(run, plan, folder)
    diverged = [run for run in mine if cells.has_diverged(run, plan, folder)]
    missing = [run for run in mine if run not in diverged and cells.is_to_do(run, plan, folder)]
    print(f"{options.name}: {len(runs)} runs, {len(mine)} here, {len(missing)} to do", flush=True)
    if diverged:
        place = diverged[0].workdir(plan, folder)
        print(
            f"{len(diverged)} diverged: remove {place.diverged_json} and the like to try again",
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
    print(f"{folder / name}.{kind}, and all in {page.write_sweep(folder)}", flush=True)


def _train(train: Trainer, missing: Sequence[cells.Run], options, plan, folder: Path) -> None:
    """One run after another, each followed by what there is then."""
    # Imported here, so that a misspelt argument is answered at once.
    from daaa_jax.runtime.preemption import Notice, Preempted

    begun = time.monotonic()
    with Notice().listening() as notice:
        for number, run in enumerate(missing, start=1):
            place, left = run.workdir(plan, folder), ""
            if number > 1:
                each = (time.monotonic() - begun) / (number - 1) / 60
                left = f", some {each * (len(missing) - number + 1):.0f} min left"
            of = f"{number} of {len(missing)}{left}"
            print(f"{options.name}: run {of}: {place.path.name}", flush=True)
            try:
                train(run.config(plan), place)
            except Busy as error:  # of another command that fills tables here
                print(f"{options.name}: passed over, {error}", flush=True)
            except Diverged as error:
                if error.stage != "adapt":  # the others share what has diverged
                    raise UserError(f"{place}: {error}") from error
                print(f"{options.name}: {error}", flush=True)
                files.write_json(place.diverged_json, {"message": str(error)})
            _write(options, plan, folder)
            if notice.heard() and number < len(missing):
                raise Preempted(f"{number} of {len(missing)} runs are finished")


def _parser() -> Parser:
    parser = Parser(
        "reproduce",
        __doc__.splitlines()[0],
        epilog="--config.NAME=VALUE changes a setting of all runs, such as --config.adapt.beta=0.3",
    )
    parser.add_argument("name", choices=NAMES, metavar="|".join(NAMES))
    parser.add_argument("--workdir", required=True, help="where runs and tables are written")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell, 3 unless given")
    parser.add_argument("--tasks", default="", help="some of its tasks, such as d2a,w2a")
    parser.add_argument(
        "--data",
        help=f"one of {', '.join(cells.DATA)}, then words of its config: office10,cpu; by default "
        "the paper's, mnist2mnistm for table1 and office for the others",
    )
    parser.add_argument("--methods", default="", help="some of its rows, such as RevGrad,Ours")
    parser.add_argument("--smoke", action="store_true", help="smoke runs, for a test")
    parser.add_argument("--cells", default="1/1", help="i/n: a share of the runs, for n hosts")
    parser.add_argument(
        "--own_networks",
        action="store_true",
        help="each seed trains its own CycleGAN and source network",
    )
    parser.add_argument("--only_show", action="store_true", help="train nothing, write the table")
    return parser


def _parse(arguments: Sequence[str] | None):
    options, others = _parser().parse_known_args(arguments)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds} must be at least 1")
    part = re.fullmatch(r"(\d+)/(\d+)", options.cells)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        raise UserError(f"--cells={options.cells} is not a valid share: 2/3 is the second of three")
    options.cells = int(part[1]), int(part[2])
    if not options.workdir:
        raise UserError("--workdir= is empty: give a folder, such as --workdir=runs/tables")
    folder = Path(options.workdir).expanduser()
    validate.check_workdir(folder)
    if Workdir(folder).config_json.exists():
        raise UserError(
            f"--workdir={options.workdir} is a run's own: choose a folder for the tables"
        )
    subject = options.subject = tables.TABLES.get(options.name) or figures.FIGURES[options.name]
    data, words = cells.words_of(options.data or subject.data)
    plan = cells.Plan(
        data,
        words + (("smoke",) if options.smoke else ()),
        cells.settings_for_all(settings_of(others)),
        options.seeds,
        options.own_networks,
    )
    wanted = [task for task in options.tasks.split(",") if task]
    options.tasks = cells.chosen_tasks(plan, subject.tasks, wanted)
    methods = [method for method in options.methods.split(",") if method]
    if options.name in tables.TABLES:
        config = cells.Run(options.tasks[0], {}, 0).config(plan)
        options.table = tables.on_network(subject, config.model.name, config.adapt.beta)
        options.all_runs = cells.runs_of(options.table, options.tasks, plan)
        runs = cells.runs_of(cells.some_rows(options.table, methods), options.tasks, plan)
    elif methods:
        raise UserError(f"--methods={options.methods}: a figure has no rows")
    else:
        runs = options.all_runs = figures.runs_of(subject, options.tasks, plan)
    return options, plan, runs


def _write(options, plan: cells.Plan, folder: Path) -> None:
    name = options.name
    if name in figures.FIGURES:
        figures.write(name, options.tasks, plan, folder)
        return
    table = options.table
    found = cells.accuracies(table, options.tasks, plan, folder)
    lines = list(summary.lines(name, table, options.tasks, found, plan.is_as(table.data)))
    path = folder / plan.file_name(name, table, options.tasks)
    title = f"{table.title}, on {plan.where}"
    summary.sheet(title, lines, _notes(options, plan)).write(path)
    files.write_bytes(Path(f"{path}.csv"), summary.to_csv(lines).encode())


def _notes(options, plan: cells.Plan) -> list[str]:
    same = (
        "Each seed has its own CycleGAN and source network."
        if plan.own_networks
        else "All seeds share the CycleGAN and the source network of seed 0."
    )
    fitted = (
        " The ceiling is measured on the very images whose labels it was trained on."
        if plan.data in ("office", "office10")
        and "data.target_test" not in plan.settings
        and any(row.method == tables.CEILING for row in options.table.rows)
        else ""
    )
    settings = " ".join(f"`{change}`" for change in plan.told_settings)
    what = (
        f"mean ± standard deviation over {plan.seeds} seeds. {same}"
        if plan.seeds > 1
        else "one seed."
    )
    paper = (
        " In brackets the paper's figure and the difference."
        if plan.is_as(options.table.data)
        else ""
    )
    little = " A trial in little: the figures say nothing." if "smoke" in plan.words else ""
    return [
        f"On {plan.where}, accuracy on the target domain after the last round, in per cent: {what}"
        f"{paper}{little}" + (f" With {settings}." if settings else "") + fitted
    ]


def _trainer(config: ConfigDict, together: bool) -> Trainer:
    # Imported here, so that a misspelt argument is answered at once.
    import jax

    from daaa_jax import pipeline
    from daaa_jax.runtime import allocator, compilation, distributed

    allocator.keep_freed_memory()
    if config.run.deterministic:
        compilation.be_deterministic()
    if together:  # with others that run the same; a share of the runs is for one host alone
        distributed.start()
    if config.run.compilation_cache:
        compilation.enable_cache()

    def train(config: ConfigDict, workdir: Workdir) -> None:
        try:
            pipeline.run(config, workdir)
        except (Diverged, Busy):
            raise
        except UserError as error:
            raise UserError(f"{workdir}: {error}") from error
        finally:
            jax.clear_caches()  # programs of this run; the next one's are others

    return train


def command() -> None:
    """The command; see `exit_codes.run` for how it ends."""
    exit_codes.run(main)


if __name__ == "__main__":
    command()
