"""A run's working directory: every path in it, its config, its lock."""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import filelock
import jax
from ml_collections import ConfigDict

from daaa_jax.errors import UserError, writable
from daaa_jax.runtime import distributed, files

# Locations of data.
_FOLDERS = ("data.dir", "data.tfds_dir", "data.photos_dir")
# External files and folders: only the name in their path counts, and their content is hashed.
_EXTERNAL = (
    "data.source",
    "data.target",
    "data.target_test",
    "pair.translations",
    "source.checkpoint",
    "model.weights",
)
# Errors of file systems without locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Settings added later: dotted name → the value that keeps the earlier behaviour, with which the
# setting is left out of a stage's inputs.
ADDED_LATER: dict[str, Any] = {
    "adapt.confusion": 0.0,
    "adapt.information": 0.0,
    "augment.area": 1.0,
    "em.decay": 0.0,
    **{f"{stage}.optimizer.nesterov": False for stage in ("pair", "source", "adapt")},
}
# Behaviour of versions that did not have a setting.
_BEFORE = ADDED_LATER | {
    "adapt.recolour": 0.0,
    "em.class_prior": False,
    "em.posterior": "target",
    "em.second_view": "source",
    "em.tolerance": 0.2,
    "pair.identity_start": False,
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "clu", "numpy")


class Busy(UserError):
    """Another run is writing to a working directory."""


class Workdir:
    """The paths of a run's files, and access to the small ones among them."""

    def __init__(self, path: str | PathLike):
        """Reads no file yet; expands `~`."""
        self.path = files.expanded(path)

    def __str__(self) -> str:
        return str(self.path)

    __fspath__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Workdir) and self.path.absolute() == other.path.absolute()

    config_json = property(lambda self: self.path / "config.json")
    result_json = property(lambda self: self.path / "result.json")
    reused_json = property(lambda self: self.path / "reused.json")
    diverged_json = property(lambda self: self.path / "diverged.json")
    metrics_jsonl = property(lambda self: self.path / "metrics.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    networks_txt = property(lambda self: self.path / "networks.txt")
    report = property(lambda self: self.path / "report" / "index.html")
    predictions = property(lambda self: self.path / "predictions.csv")
    pair_sheet = property(lambda self: self.path / "pair" / "pairs.png")
    generators = property(lambda self: self.path / "pair" / "generators.safetensors")
    source_network = property(lambda self: self.path / "source" / "network.safetensors")
    last_network = property(lambda self: self.path / "adapt" / "last.safetensors")
    selected_network = property(lambda self: self.path / "adapt" / "selected.safetensors")
    posterior_json = property(lambda self: self.path / "adapt" / "posterior.json")
    diagnostics_json = property(lambda self: self.path / "adapt" / "audit.json")
    diagnostics_npz = property(lambda self: self.path / "adapt" / "audit.npz")

    def stage(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.path / stage

    def checkpoints(self, stage: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.path / stage / "checkpoints"

    def started_json(self, stage: str) -> Path:
        """The inputs that a stage was started with."""
        return self.path / stage / "started.json"

    def finished_json(self, stage: str) -> Path:
        """The marker of a finished stage."""
        return self.path / stage / "finished.json"

    def profile(self, stage: str) -> Path:
        """The folder of a stage's trace."""
        return self.path / "profile" / stage

    def translations(self, direction: str) -> Path:
        """The folder of translated images, for instance of `mnist_to_mnist_m`."""
        return self.path / "translate" / direction

    def network(self, which: str) -> Path:
        """The file of a network: `selected`, `last` or `source`."""
        return getattr(self, f"{which}_network")

    def candidate(self, step: int) -> Path:
        """A network that may become the selected one."""
        return self.path / "adapt" / f"selected-{step:09d}.safetensors"

    def candidates(self) -> list[Path]:
        """The existing candidates, oldest first."""
        return sorted((self.path / "adapt").glob("selected-*.safetensors"))

    def siblings(self) -> list["Workdir"]:
        """The other directories in the same folder; none if it may not be listed."""
        own, found = self.path.absolute(), []
        with contextlib.suppress(OSError):
            found = sorted(place for place in own.parent.iterdir() if place != own)
        return [Workdir(place) for place in found]

    def reused(self) -> dict[str, Any]:
        """By reused stage, the working directory that it is `from`, and its outputs, `extra`."""
        return files.read_json_or(self.reused_json, {})

    def origin(self, stage: str) -> "Workdir":
        """The working directory that the run took a finished stage from; else this one."""
        taken = {} if self.finished_json(stage).exists() else self.reused().get(stage, {})
        return Workdir(taken.get("from", self.path))

    def marker(self, stage: str) -> dict[str, Any] | None:
        """A finished stage's `stage`, `fingerprint`, `settings` and `extra`; else None.

        Raises:
          UserError: if the file is damaged.
        """
        path = self.finished_json(stage)
        if not path.exists():
            return None
        marker = files.read_json(path)
        if not isinstance(marker, dict) or not {"fingerprint", "settings"} <= marker.keys():
            raise UserError(f"{path} is not a stage's marker: delete it to run the stage again")
        return marker

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; else None."""
        return files.read_json_or(self.result_json, None)

    def about(self) -> dict[str, Any]:
        """The content of `config.json`: `config`, `command` and `versions`.

        Raises:
          UserError: if this is not a working directory.
        """
        path = self.config_json
        content = files.read_json_or(path, None)
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise UserError(f"{self} is not a working directory: {path.name} is missing or damaged")
        return content

    def config(self) -> ConfigDict:
        """The config of the run; settings that its version did not have keep its behaviour.

        Raises:
          UserError: if this is not a working directory.
        """
        config = ConfigDict(self.about()["config"])
        if config.get("seeds") == 1:  # of versions that could train several
            del config["seeds"]
        for name, value in _BEFORE.items():
            *groups, setting = name.split(".")
            node = functools.reduce(lambda node, group: node.get(group, {}), groups, config)
            if node and setting not in node:
                node[setting] = value
        return config

    def write_config(self, config: ConfigDict) -> None:
        """Writes the config, the command and the versions.

        Raises:
          UserError: if the directory is not writable.
        """
        content = {"config": config.to_dict(), "command": command(sys.argv), "versions": versions()}
        with writable(f"--workdir={self}"):
            files.write_json(self.config_json, content)

    def update_paths(self, config: ConfigDict) -> None:
        """Records the current data paths of a finished run, if the directory is writable."""
        with contextlib.suppress(OSError):
            files.write_json(self.config_json, self.about() | {"config": config.to_dict()})

    @contextlib.contextmanager
    def locked(self, flag: str = "--workdir") -> Iterator[None]:
        """Creates the directory if needed, and locks it for this process within the block.

        One of several processes takes no lock: their launcher starts a run only once, and a lost
        host may seem to hold its lock for a while. Nor is there a lock on a file system without
        locks.

        Args:
          flag: the directory was given by.

        Raises:
          Busy: if another process holds the lock.
          UserError: if the directory is not writable.
        """
        if distributed.started():
            yield
            return
        lock = filelock.FileLock(self.path / ".lock", timeout=0, fallback_to_soft=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout as error:
            raise Busy(
                f"another run is writing to {self}: wait for its end, or choose another folder"
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
                raise UserError(f"{flag}={self} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


def is_location_setting(setting: str) -> bool:
    """Whether a setting is a location of data or concerns execution, and changes no result.

    Args:
      setting: its name, or `name=value`.
    """
    return setting.startswith("run.") or setting.partition("=")[0] in _FOLDERS


def same_paths(one: ConfigDict, other: ConfigDict) -> bool:
    """Whether two configs read data and external files from the same paths."""
    places = (name.split(".") for name in (*_FOLDERS, *_EXTERNAL))
    return all(one.get(g, {}).get(n) == other.get(g, {}).get(n) for g, n in places)


def identity_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings that determine the results; of external files only the names."""
    settings = files.plain(config.to_dict())
    settings.pop("run", None)
    if settings.get("adapt", {}).get("measure", "jmmd") != "jmmd":
        settings["adapt"]["jmmd_layers"] = ".*"  # no other measure reads it
    baselines = settings.pop("baselines", {})
    settings["baselines"] = {name: baselines[name] for name in baselines if name == config.method}
    data = settings.setdefault("data", {})
    data["made_from_photos"] = bool(data.get("photos_dir"))
    for group, name in (setting.split(".") for setting in _FOLDERS):
        settings[group].pop(name, None)
    for group, name in (setting.split(".") for setting in _EXTERNAL):
        if name in settings.get(group, {}):
            settings[group][name] = Path(settings[group][name]).name
    return settings


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """How the settings that determine the results differ, see `files.differing_settings`."""
    return files.differing_settings(identity_settings(old), identity_settings(new))


def command(arguments: Sequence[str]) -> str:
    """The command line as typed: `python -m daaa_jax.main …` for a module of this package."""
    program, *rest = arguments
    path = Path(program)
    if path.suffix == ".py" and path.parent.name == "daaa_jax":
        program = f"python -m daaa_jax.{path.stem}"
    return shlex.join([*program.split(), *rest])


def default_workdir(config: str, changed: Mapping[str, Any] | None = None) -> Path:
    """The default working directory of a config, such as `runs/digits-mnist2mnistm-smoke`.

    Args:
      config: the file and its argument, such as `configs/digits.py:mnist2mnistm,smoke`.
      changed: settings of the command line. Location settings and external folders, whose paths
        would make long names, are left out; a run of other data is refused in the same directory.
    """
    path, _, argument = config.partition(":")
    words = [Path(path).stem, *filter(None, argument.split(","))]
    words += [
        f"{name}={value}"
        for name, value in sorted((changed or {}).items())
        if not is_location_setting(name) and name not in _EXTERNAL[:3]
    ]
    return Path("runs") / folder_name(words)


def folder_name(words: Sequence[str], longest: int = 255) -> str:
    """Joins words to the name of a folder or file.

    Args:
      words: what distinguishes it from others.
      longest: limit in bytes; a longer name is cut and ends in a checksum.
    """
    name = re.sub(r"[^\w.=-]", "_", "-".join(words))
    if len(name.encode()) <= longest:
        return name
    end = f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name.encode()[: longest - len(end)].decode(errors="ignore") + end


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that compute, and the kind of device."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
