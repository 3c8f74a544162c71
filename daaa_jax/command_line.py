"""Command-line parsing shared by the commands: flags and `--config.NAME=VALUE` settings."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from daaa_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations that raises `UserError`, for exit code 1, on mistakes."""

    def __init__(self, command: str, description: str | None, **options):
        """Creates the parser of `daaa <command>`; of the description the first line is shown."""
        first = (description or "").partition("\n")[0]  # `python -OO` has no docstrings
        super().__init__(prog=f"daaa {command}", description=first, allow_abbrev=False, **options)

    def add_network_flags(self, networks: Sequence[str], default: str | None = None):
        """Adds the flags that select a network of a run.

        Returns:
          The group with `--paired`, for flags that exclude it.
        """
        self.add_argument("--workdir", required=True, help="that of a finished daaa train")
        self.add_argument(
            "--network",
            choices=networks,
            default=default,
            help="the adapted network selected without labels (default), the last one, or the "
            "source network",
        )
        group = self.add_mutually_exclusive_group()
        group.add_argument(
            "--paired",
            action="store_true",
            help="average the predictions for an image and, weighted by gamma (0 to 1, estimated "
            "in training), for its translation; not for --network=source or without a CycleGAN",
        )
        return group

    def add_list_flags(self):
        """Adds the flags for the paths in list files, see `data.image_lists.Options`."""
        self.add_argument("--root", default="", help="for lists: folder that paths are relative to")
        self.add_argument(
            "--path_prefix", default="", help="for lists: removed from paths before --root is added"
        )

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` instead of printing the usage."""
        raise UserError(message)


def given_path(text: str) -> str:
    """Type of an argument that must not be empty, as that of an unset variable is."""
    if not text:
        raise argparse.ArgumentTypeError("is empty (a variable that is not set?)")
    return text


def settings_of(arguments: Sequence[str]) -> dict[str, str]:
    """Parses settings: `--config.adapt.beta=0.3` → `{"adapt.beta": "0.3"}`.

    Raises:
      UserError: if an argument is not a setting.
    """
    settings = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not name:
            raise UserError(
                f"{word} is not a known flag; settings look like --config.adapt.beta=0.3"
            )
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"{word} has no value: give {word}=VALUE")
        settings[name] = value
    return settings
