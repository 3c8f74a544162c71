"""The command `daaa report --workdir=runs/digits`; works at any time during a run."""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.report.__main__")

from collections.abc import Sequence

from daaa_jax.command_line import Parser
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.report import page
from daaa_jax.runtime import error_log, files


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and prints its path.

    Raises:
      UserError: if `--workdir` is not a working directory.
    """
    parser = Parser("report", "Writes the report of a run or of `daaa reproduce`, finished or not.")
    parser.add_argument("--workdir", required=True, help="of a run, or of daaa reproduce")
    options = parser.parse_args(arguments)
    workdir = files.expanded(options.workdir)
    error_log.use(workdir)
    print(page.write_sweep(workdir) if page.is_sweep(workdir) else page.write(Workdir(workdir)))
