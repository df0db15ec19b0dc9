"""Checkpoints that are whole or not there: atomic, checksummed, loaded without running code."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from rlearly.config import ConfigError

log = logging.getLogger(__name__)
FORMAT = 3
ARRAY = "__array__"


class DamagedCheckpoint(Exception):
    """A checkpoint's files are not what was written."""


def save(folder: Path, frames: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of `frames`, then delete all but the newest `keep`.

    A checkpoint is a folder: numpy arrays as .npy files (streamed, never copied in memory), all
    the rest in state.pt, and a manifest of sizes and SHA-256 sums. It is written beside its place,
    synced to the disk and then renamed, so that a crash at any moment leaves it whole or absent.
    """
    final = folder / f"{frames:012d}"
    if final.is_dir():  # a run is in one state at one frame: it is saved already
        try:
            verify(final)
            return final
        except DamagedCheckpoint:
            shutil.rmtree(final)
    for leftover in folder.glob(".*.partial"):  # of a save that was killed
        shutil.rmtree(leftover)
    partial = folder / f".{final.name}.partial"
    partial.mkdir(parents=True)
    arrays: list[np.ndarray] = []
    skeleton = _without_arrays(state, arrays)
    files: dict[str, dict[str, Any]] = {}
    for number, array in enumerate(arrays):
        with _Hashed(partial / f"array_{number}.npy", files) as stream:
            np.save(cast(BinaryIO, stream), array, allow_pickle=False)
    with _Hashed(partial / "state.pt", files) as stream:
        torch.save(skeleton, cast(BinaryIO, stream))
    manifest = {"format": FORMAT, "frames": frames, "files": files}
    with (partial / "manifest.json").open("w") as stream:
        json.dump(manifest, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    _sync(partial)
    partial.rename(final)
    _sync(folder)
    newer = [p for p in found(folder) if int(p.name) > frames]  # damaged: resuming passed them by
    older = [p for p in found(folder) if int(p.name) <= frames]
    for stale in newer + older[:-keep]:
        shutil.rmtree(stale)
    return final


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())


def load_newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """(frames, state) of the newest undamaged checkpoint; damaged ones are reported and passed by.

    Raises:
        ConfigError: there is none.
    """
    reasons = []
    for path in reversed(found(folder)):
        try:
            return int(path.name), load(path)
        except DamagedCheckpoint as error:
            reasons.append(str(error))
            log.warning("%s Trying the one before it.", error)
    if reasons:
        raise ConfigError(f"No checkpoint in {folder} is whole: {' '.join(reasons)}")
    raise ConfigError(f"There is no checkpoint in {folder}; the run has not saved one yet.")


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; arrays are memory-mapped read-only views of its files.

    Raises:
        DamagedCheckpoint: anything is missing, truncated or changed.
    """
    verify(path)
    try:
        skeleton = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(
            f"{path} is damaged: state.pt does not load ({str(error).splitlines()[0]})."
        ) from None
    return _with_arrays(skeleton, path)


def verify(path: Path) -> None:
    """Check every file against the manifest.

    Raises:
        DamagedCheckpoint: naming the first file that is not what was written.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = manifest["files"]
        written_format = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is damaged: its manifest is not readable.") from None
    if written_format != FORMAT:
        raise DamagedCheckpoint(
            f"{path} has format {written_format}; this version reads format {FORMAT}."
        )
    for name, entry in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else -1
        if size != entry["bytes"]:
            have = f"{size} bytes" if size >= 0 else "missing"
            raise DamagedCheckpoint(
                f"{path} is damaged: {name} should have {entry['bytes']} bytes and is {have}."
            )
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise DamagedCheckpoint(f"{path} is damaged: the checksum of {name} is wrong.")


class _Hashed:
    """A file for writing that notes its size and checksum in `files` and reaches the disk."""

    def __init__(self, path: Path, files: dict[str, dict[str, Any]]):
        self.path = path
        self.files = files
        self.digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> _Hashed:
        self.stream = self.path.open("wb")
        return self

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        return self.stream.write(view)

    def flush(self) -> None:
        self.stream.flush()

    def __exit__(self, *_: object) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.files[self.path.name] = {"bytes": self.size, "sha256": self.digest.hexdigest()}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _without_arrays(tree: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(tree, np.ndarray):
        arrays.append(tree)
        return {ARRAY: len(arrays) - 1}
    if isinstance(tree, Mapping):
        return {key: _without_arrays(value, arrays) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_without_arrays(value, arrays) for value in tree)
    return tree


def _with_arrays(tree: Any, path: Path) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {ARRAY}:
            file = path / f"array_{tree[ARRAY]}.npy"
            empty = file.stat().st_size <= 128
            return np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)
        return {key: _with_arrays(value, path) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_with_arrays(value, path) for value in tree)
    return tree
