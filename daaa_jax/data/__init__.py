"""Loads the task, a source and a target domain, that a config names."""

import importlib

from ml_collections import ConfigDict

from daaa_jax.data.holdout import hold_out
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError, check_choice

_MODULES = {  # by `data.name`
    "embedded": "mnist5k",
    "mnist2mnistm": "mnist_to_mnist_m",
    "office": "photo_domains",
    "folder": "photo_domains",
}


def load_task(settings: ConfigDict) -> Task:
    """Loads the images and labels of a task.

    Args:
      settings: `config.data`; `name` selects the task.

    Raises:
      UserError: if a setting is not valid, or the data cannot be read or are not as expected.
    """
    if not settings.get("name"):
        raise UserError(
            "the config names no task: use configs/digits.py, configs/office.py, "
            "configs/office10.py or configs/folder.py"
        )
    check_choice("data.name", settings.name, _MODULES, UserError)
    # Imported here, so that only the module of this task is loaded.
    module = importlib.import_module(f"daaa_jax.data.{_MODULES[settings.name]}")
    task = module.load(settings)
    if settings.source_holdout:
        task = hold_out(task, settings.source_holdout, settings.seed)
    return task
