"""The command `daaa` (or `python -m daaa_jax`) and its subcommands."""

import importlib
import sys

from daaa_jax.errors import UserError
from daaa_jax.runtime import exit_codes

_COMMANDS = {
    "train": ("main", "adapt a classifier to unlabelled images"),
    "predict": ("predict", "classify images"),
    "export": ("export", "write a network that needs only JAX to run"),
    "check": ("check", "check folders of images before training"),
    "convert": ("convert", "pack datasets larger than memory into a few large files"),
    "reproduce": ("reproduce", "reproduce the paper's tables and figures"),
    "report": ("report.__main__", "write the report of a run, or of the runs of reproduce"),
}


def main() -> None:
    """Runs the subcommand given by the first argument, and ends the process."""
    exit_codes.run(_subcommand)


def _subcommand() -> int | None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: daaa COMMAND …; see daaa COMMAND --help\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in _COMMANDS.items()))
        return None
    if name not in _COMMANDS:
        raise UserError(f"{name} is not a command: expected one of {', '.join(_COMMANDS)}")
    module, _ = _COMMANDS[name]
    sys.argv = [f"daaa {name}", *sys.argv[2:]]
    return importlib.import_module(f"daaa_jax.{module}").main()


if __name__ == "__main__":
    main()
