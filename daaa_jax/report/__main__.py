"""The command `python -m daaa_jax.report --workdir=runs/digits`, at any time of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from daaa_jax.report import page
from daaa_jax.runtime import endings


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and says where.

    Raises:
      UserError: if the working directory is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m daaa_jax.report", description="Writes the report of a run, or of its start."
    )
    parser.add_argument("--workdir", required=True, help="of the run")
    options = parser.parse_args(arguments)
    print(page.write(Path(options.workdir).expanduser()))


if __name__ == "__main__":
    endings.run(main)
