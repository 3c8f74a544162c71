"""A working directory belongs to one config: what that is, and with which versions it was made."""

import contextlib
import hashlib
import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from daaa_jax.errors import UserError
from daaa_jax.runtime import markers

# Settings that say where and how, not what is computed.
_PLACES = re.compile(r"run\.|data\.(dir|tfds_dir|photos_dir)(=|$)")
# What a user brings, by its path. Its content enters the stages' fingerprints.
_FOLDERS = tuple(("data", name) for name in ("dir", "tfds_dir", "photos_dir"))
_NAMED = (
    *(("data", name) for name in ("source", "target", "target_test")),
    ("pair", "translations"),
    ("source", "checkpoint"),
    ("model", "weights"),
)
_BROUGHT = _FOLDERS + _NAMED
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "clu", "numpy")


def says_where(setting: str) -> bool:
    """Whether a setting says where data lies or how a run is carried out, not what it computes.

    Args:
      setting: its name, or `name=value`.
    """
    return bool(_PLACES.match(setting))


def check_same_config(workdir: Path, config: ConfigDict) -> None:
    """Makes sure that a working directory is new, or was made with the same settings.

    Raises:
      UserError: names the settings that differ.
    """
    path = workdir / markers.CONFIG_NAME
    if not path.exists():
        return
    found = what(read_config(workdir))
    differing = markers.differing_settings(found, what(config))
    if any("absent" in line for line in differing):
        raise UserError(
            f"{workdir} was made by another version of daaa_jax, with other settings: "
            f"{'; '.join(differing[:5])}. Choose another --workdir"
        )
    if differing:
        raise UserError(
            f"{workdir} belongs to another config: {'; '.join(differing[:5])}. Choose another "
            f"--workdir, or the settings that it was made with"
        )


def read_config(workdir: Path) -> ConfigDict:
    """The config that a working directory was made with.

    Raises:
      UserError: if it is no working directory.
    """
    path = workdir / markers.CONFIG_NAME
    content = markers.read_json(path) if path.exists() else None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} is not the file that a run writes: choose another --workdir")
    return ConfigDict(content["config"])


def is_where(workdir: Path, config: ConfigDict) -> bool:
    """Whether a working directory was made with data and files of the same paths as a config's."""
    return _brought(read_config(workdir)) == _brought(config)


def _brought(config: ConfigDict) -> dict[str, str | None]:
    return {f"{part}.{name}": config[part].get(name) for part, name in _BROUGHT}


def moved(workdir: Path, config: ConfigDict) -> None:
    """Notes that a finished run's data and files, the same as before, lie where a config says.

    Where that cannot be written, it is found out again the next time.
    """
    path = workdir / markers.CONFIG_NAME
    with contextlib.suppress(OSError):
        markers.write_json(path, markers.read_json(path) | {"config": config.to_dict()})


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config, the command and the versions, into a folder that is made if need be.

    Raises:
      UserError: if it cannot be written.
    """
    content = {"config": config.to_dict(), "command": command(sys.argv), "versions": versions()}
    try:
        markers.write_json(workdir / markers.CONFIG_NAME, content)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def command(arguments: Sequence[str]) -> str:
    """What a person would type: `python -m daaa_jax.main …` for a module of ours."""
    program, *rest = arguments
    path = Path(program)
    if path.suffix == ".py" and path.parent.name == "daaa_jax":
        return shlex.join(["python", "-m", f"daaa_jax.{path.stem}", *rest])
    return shlex.join(arguments)


def what(config: ConfigDict) -> dict[str, Any]:
    """The settings that say what is computed, without those that say where and how.

    Of what a user brings only its name: its content enters the stages' fingerprints.
    """
    settings = markers.plain(config.to_dict())
    settings.pop("run", None)
    if settings.get("adapt", {}).get("measure", "jmmd") != "jmmd":
        settings["adapt"]["jmmd_layers"] = ".*"  # which nothing else reads
    data = settings.setdefault("data", {})
    data["made_from_photos"] = bool(data.get("photos_dir"))
    for part, name in _FOLDERS:
        settings[part].pop(name, None)
    for part, name in _NAMED:
        if name in settings.get(part, {}):
            settings[part][name] = Path(settings[part][name]).name
    return settings


def name_of(words: Sequence[str], longest: int = 255) -> str:
    """Words as the name of a folder or file.

    Args:
      words: what tells it from others.
      longest: bytes that it may have; a longer one is cut and ends in a checksum.
    """
    name = re.sub(r"[^\w.=-]", "_", "-".join(words))
    if len(name.encode()) <= longest:
        return name
    end = f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name.encode()[: longest - len(end)].decode(errors="ignore") + end


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that compute, and the kind of device."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **packages,
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }
