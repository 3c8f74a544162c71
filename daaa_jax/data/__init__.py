"""Tasks by name: what the pipeline asks for when a config says what to adapt."""

from ml_collections import ConfigDict

from daaa_jax.data.holdout import hold_out
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError


def load_task(settings: ConfigDict) -> Task:
    """Reads the images and labels of a task.

    Args:
      settings: `config.data`; its `name` says which task.

    Raises:
      UserError: if the name is unknown, or the data cannot be read or are not as expected.
    """
    if not settings.get("name"):
        raise UserError(
            "the config names no task: choose configs/digits.py, configs/office.py, "
            "configs/office10.py or configs/folder.py"
        )
    for setting in ("seed", "limit"):
        if settings[setting] < 0:
            raise UserError(f"data.{setting}={settings[setting]}: must be 0 or more")
    if not 0 <= settings.source_holdout < 1:
        raise UserError(f"data.source_holdout={settings.source_holdout}: choose 0 to less than 1")
    task = _load(settings)
    if settings.source_holdout:
        task = hold_out(task, settings.source_holdout, settings.seed)
    return task


def _load(settings: ConfigDict) -> Task:
    # Imported here: a task's readers are of no use to another.
    if settings.name == "embedded":
        from daaa_jax.data import mnist5k

        return mnist5k.load(settings)
    if settings.name == "mnist2mnistm":
        from daaa_jax.data import mnist_to_mnist_m

        return mnist_to_mnist_m.load(settings)
    if settings.name in ("office", "folder"):
        from daaa_jax.data import photo_domains

        return photo_domains.load(settings)
    raise UserError(
        f"data.name={settings.name} is unknown: choose embedded, mnist2mnistm, office or folder"
    )
