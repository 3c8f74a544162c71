"""Configs by path or by name: `configs/office.py:w2a`, or `office:w2a` from any folder."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from daaa_jax.errors import UserError

# Inside the package where it is installed, beside it in a checkout.
_PACKAGE = Path(__file__).parent
FOLDER = next(
    (place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()),
    _PACKAGE.parent / "configs",
)


def load(config: str, settings: Mapping[str, str] | None = None) -> ConfigDict:
    """The config that `--config=` names, with the settings of `--config.NAME=VALUE`.

    Args:
      config: a file, or the name of one of this project's, and after a colon its argument.
      settings: by dotted name, the text of the value.

    Raises:
      UserError: if there is no such config, word or setting, or a value has another type.
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
            f"--config={name}: there is no such config; there are {known}, or give a file"
        )
    if path.resolve().parent == FOLDER.resolve():
        module = importlib.import_module(f"configs.{path.stem}")
    else:
        spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"--config={name} cannot be imported: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={name} is not a config: it has no function get_config")
    return module


def _is_config(path: Path) -> bool:
    return path.stem not in ("__init__", "base", "photos")


def _register() -> None:
    """Makes `import configs` find this project's, whatever lies in the current folder."""
    if "configs" not in sys.modules:
        spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
        spec.submodule_search_locations = [str(FOLDER)]
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
