"""Loads the task, a source and a target domain, that a config names."""

import importlib
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from daaa_jax.data.holdout import hold_out
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError, check_choice

_MODULES = {  # by `data.name`
    "embedded": "mnist5k",
    **dict.fromkeys(("mnist2mnistm", "mnist2usps", "usps2mnist", "svhn2mnist"), "digit_domains"),
    **dict.fromkeys(("office", "office_home", "visda", "domainnet", "folder"), "photo_domains"),
}


def check(settings: ConfigDict) -> list[Path]:
    """Checks what costs nothing: that settings are valid, and that folders of photos exist.

    Args:
      settings: `config.data`.

    Returns:
      The folders of photos on this machine.

    Raises:
      UserError: names the setting.
    """
    if not settings.get("name"):
        remedy = "use configs/digits.py, configs/folder.py or another file of configs/"
        raise UserError(f"the config names no task: {remedy}")
    check_choice("data.name", settings.name, _MODULES, UserError)
    check_folders = getattr(_module(settings), "check_folders", None)
    return check_folders(settings) if check_folders else []


def load_task(settings: ConfigDict) -> Task:
    """Loads the images and labels of a task.

    Args:
      settings: `config.data`; `name` selects the task.

    Raises:
      UserError: if a setting is not valid, or the data cannot be read or are not as expected.
    """
    check(settings)
    task = _module(settings).load(settings)
    if settings.source_holdout:
        task = hold_out(task, settings.source_holdout, settings.seed)
    return task


def _module(settings: ConfigDict) -> ModuleType:
    # Imported here, so that only the module of this task is loaded.
    return importlib.import_module(f"daaa_jax.data.{_MODULES[settings.name]}")
