"""Paths, atomic writes of bytes and JSON, and checksums of arrays and settings."""

import codecs
import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from daaa_jax.errors import UserError
from daaa_jax.runtime import distributed
from daaa_jax.runtime import mesh as meshes


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose first `~` or `~user` is replaced by that user's home.

    Raises:
      UserError: if there is no such user, or no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no home folder of that user, give the whole path") from error


def output(setting: str, place: str | os.PathLike[str], inputs: Iterable[Path] = ()) -> Path:
    """The path to write to that a user gave.

    Args:
      setting: names it, for messages.
      place: the path.
      inputs: files, and folders of images, that are read.

    Raises:
      UserError: if it is an address of object storage, or is or lies in one of `inputs`.
    """
    if re.match(r"(?i)[a-z][a-z0-9+.-]+:/", str(place)):
        raise UserError(
            f"{setting}={place} is an address, but results are written to a folder: mount the "
            "bucket, or give another"
        )
    path = Path(os.path.realpath(expanded(place)))  # resolve() would fail at a circle of links
    if found := [given for given in inputs if path.is_relative_to(os.path.realpath(given))]:
        why = f"would be written into {found[0]}, which is read"
        raise UserError(f"{setting}={place} {why}: give another place")
    return expanded(place)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` when the block ends without an error.

    Even if the process is killed, `path` is the complete old file or the complete new one. Its
    folder is created if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, as processes in different containers can have the same id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with named(path, instead_of=temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Makes the rename durable; some file systems and Windows cannot sync a folder.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def named(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Names a file in an `OSError` of the block that names none, as that of a full disk.

    Args:
      path: the file.
      instead_of: a temporary file, which is not named either.
    """
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(instead_of)):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically, on process 0 only."""
    if distributed.is_first():
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically, on process 0 only; see `encoded`."""
    write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    """A text as UTF-8; bytes of file names that are not valid in the locale are escaped."""
    return text.encode(errors="backslashreplace")


def decoded(content: bytes) -> str:
    """A text as editors save it: UTF-8, or UTF-16 with a byte-order mark; see also `encoded`."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="surrogateescape")


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as readable JSON, atomically.

    Args:
      path: the file; its folder is created if needed.
      value: anything that `plain` accepts. Numbers that are not finite become null.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if the file does not exist or is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: remove it, or restore it") from error


def read_json_or(path: Path, default: Any) -> Any:
    """`read_json`, or `default` if there is no such file."""
    return read_json(path) if path.is_file() else default


def plain(value: Any) -> Any:
    """Converts mappings, sequences, paths, NumPy and JAX scalars and arrays to JSON types.

    Returns:
      Dicts with string keys, lists, strings, bools, ints, finite floats and None.

    Raises:
      TypeError: for a value of any other type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "items"):  # a ConfigDict is not a Mapping
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash of settings, independent of their order and of the machine.

    Args:
      settings: values that `plain` accepts.

    Returns:
      The SHA-256 of their canonical JSON, in hexadecimal.
    """
    canonical = json.dumps(plain(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def checksum(tree: Any) -> str:
    """The SHA-256 of a tree of arrays: of the leaves' names, types, shapes and bytes.

    A leaf with an attribute `sha256` that is not empty, such as images in files, is not read: its
    `sha256` is used.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if getattr(leaf, "sha256", ""):
            digest.update(f"{name} {leaf.dtype} {leaf.shape} {leaf.sha256}".encode())
            continue
        array = np.ascontiguousarray(meshes.to_host(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the differences between two nested settings.

    Args:
      old: earlier settings, possibly read from JSON.
      new: current settings.

    Returns:
      Lines such as `adapt.beta (was 0.1, is 0.3)`, sorted by name, with checksums shortened; empty
      exactly if the hashes are equal.
    """
    before, now = _flat(plain(old)), _flat(plain(new))

    def shown(values: Mapping[str, str], name: str) -> str:
        return re.sub(r'"([0-9a-f]{8})[0-9a-f]{56}"', r"\1…", values.get(name, "absent"))

    return [
        f"{name} (was {shown(before, name)}, is {shown(now, name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name → value as JSON text, as 1, 1.0 and True are equal in Python but not in JSON."""
    if isinstance(value, dict) and (value or not prefix):
        leaves: dict[str, str] = {}
        for key, item in value.items():
            leaves |= _flat(item, f"{prefix}.{key}" if prefix else key)
        return leaves
    return {prefix: json.dumps(value, sort_keys=True, allow_nan=False)}
