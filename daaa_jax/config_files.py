"""Loads configs by path, `configs/office.py:w2a`, or by name from any folder, `office:w2a`."""

import contextlib
import importlib
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

from ml_collections import ConfigDict

from daaa_jax.errors import UserError

# Inside the package if installed, beside it in a checkout.
_PACKAGE = Path(__file__).parent
FOLDER = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"
_SHARED = ("__init__", "base", "photos")  # files of `FOLDER` that are no configs
_NAME = re.compile(r"configs(\.|$)")
_loaded: dict[str, ModuleType] = {}  # ours, while another package has the name `configs`


def load(config: str, settings: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads the config of `--config=` with the settings of `--config.NAME=VALUE`.

    Args:
      config: a file or the name of a config of this project, with its argument after a colon.
      settings: values to override as text, by dotted name.

    Returns:
      The config; it takes no new settings.

    Raises:
      UserError: if the config, a word of its argument or a setting is unknown, or a value has the
        wrong type.
    """
    name, _, argument = config.partition(":")
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in _SHARED))
        raise UserError(
            f"--config={name}: there is no such config; expected one of {known}, or a file"
        )
    with _configs_importable(path.parent):
        try:
            found = _module(path).get_config(*([argument] if argument else []))
            importlib.import_module("configs.base").override(found, settings or {})
            return found.lock()
        except ValueError as error:
            raise UserError(str(error)) from error
        except Exception as error:  # a user's file may contain any mistake
            kind = type(error).__name__
            raise UserError(f"--config={config} cannot be loaded: {kind}: {error}") from error


def _module(path: Path) -> ModuleType | SimpleNamespace:
    if path.resolve().parent == FOLDER.resolve():
        return importlib.import_module(f"configs.{path.stem}")
    return SimpleNamespace(**runpy.run_path(str(path)))


@contextlib.contextmanager
def _configs_importable(folder: Path) -> Iterator[None]:
    """Within the block `import configs` finds those of this project, and modules in `folder`.

    Another package of that name, as many projects have one, is put back afterwards.
    """
    others = _modules()
    # In a checkout it is this project's already.
    swaps = FOLDER not in map(Path, getattr(others.get("configs"), "__path__", ()))
    if swaps:
        if not _loaded:
            _loaded["configs"] = ModuleType("configs")
            _loaded["configs"].__path__ = [str(FOLDER)]
        for name in others:
            del sys.modules[name]
        sys.modules.update(_loaded)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if swaps:
            _loaded.update(_modules())
            for name in _loaded:
                del sys.modules[name]
            sys.modules.update(others)


def _modules() -> dict[str, ModuleType]:
    """The imported modules of whatever package is called `configs`."""
    return {name: module for name, module in sys.modules.items() if _NAME.match(name)}
