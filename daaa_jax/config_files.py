"""Loads configs by path, `configs/office.py:w2a`, or by name from any folder, `office:w2a`."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from daaa_jax.errors import UserError

# Inside the package if installed, beside it in a checkout.
_PACKAGE = Path(__file__).parent
FOLDER = next(
    (place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()),
    _PACKAGE.parent / "configs",
)


def load(config: str, settings: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads the config of `--config=` with the settings of `--config.NAME=VALUE`.

    Args:
      config: a file or the name of a config of this project, with its argument after a colon.
      settings: values to override as text, by dotted name.

    Raises:
      UserError: if the config, a word of its argument or a setting is unknown, or a value has the
        wrong type.
    """
    name, _, argument = config.partition(":")
    module = _module(name)
    from configs import base

    try:
        found = module.get_config(*([argument] if argument else []))
        base.override(found, settings or {})
    except ValueError as error:
        raise UserError(str(error)) from error
    return found


def _module(name: str) -> ModuleType:
    _register()
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.py") if _is_config(p)))
        raise UserError(
            f"--config={name}: there is no such config; expected one of {known}, or a file"
        )
    if path.resolve().parent == FOLDER.resolve():
        module = importlib.import_module(f"configs.{path.stem}")
    else:
        loader = importlib.machinery.SourceFileLoader(f"_config_{path.stem}", str(path))
        module = ModuleType(loader.name)
        module.__file__ = loader.path
        try:
            loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"--config={name} cannot be imported: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={name} is not a config: it has no function get_config")
    return module


def _is_config(path: Path) -> bool:
    return path.stem not in ("__init__", "base", "photos")


def _register() -> None:
    """Makes `import configs` find those of this project, whatever the current folder."""
    if "configs" not in sys.modules:
        spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
        spec.submodule_search_locations = [str(FOLDER)]
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
