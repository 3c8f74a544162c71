"""The command `python -m daaa_jax.report --workdir=runs/digits`, at any time of a run."""

from collections.abc import Sequence
from pathlib import Path

from daaa_jax.command_line import Parser
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.report import page
from daaa_jax.runtime import exit_codes


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and says where.

    Raises:
      UserError: if the working directory is none.
    """
    parser = Parser(
        "report", "Writes the report of a run or of a sweep, of one still going on too."
    )
    parser.add_argument("--workdir", required=True, help="of the run, or of daaa_jax.reproduce")
    options = parser.parse_args(arguments)
    workdir = Path(options.workdir).expanduser()
    print(page.write_sweep(workdir) if page.is_sweep(workdir) else page.write(Workdir(workdir)))


def command() -> None:
    """The command; see `exit_codes.run` for how it ends."""
    exit_codes.run(main)


if __name__ == "__main__":
    command()
