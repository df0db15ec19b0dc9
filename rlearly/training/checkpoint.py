"""Checkpoints that are whole or not there: atomic, checksummed, loaded without running code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from rlearly.core.append_log import AppendLog, LogChunk
from rlearly.core.errors import ConfigError

log = logging.getLogger(__name__)
FORMAT = 7
ARRAY, TAPE = "__array__", "__tape__"
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
TAPES = "tapes"
CHUNK_BYTES = 256_000_000
"""Of a file of rows at most: loading takes as much memory, and deleting frees as much disk."""

SMALL_BYTES = 4_000_000
"""A last file of fewer bytes is written anew with what came after it, so that frequent checkpoints
do not leave thousands."""


class DamagedCheckpoint(Exception):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class Chunk:
    """A file that holds rows `first` to `end` of a tape: one .npy block for each field."""

    file: str
    fields: list[str]
    first: int
    end: int
    bytes: int
    sha256: str


class Checkpoints:
    """The checkpoints of one run, in a folder; the newest `keep` are kept.

    A checkpoint is a folder, named by its frames: numpy arrays as .npy files (streamed, never
    copied in memory), all the rest in state.pt, a manifest of sizes and SHA-256 sums, and the
    manifest's own sum. Rows of tapes lie beside it in files that checkpoints share: a file is
    written once, never changed, and deleted when no checkpoint needs it. Everything is written
    beside its place, synced to the disk and then renamed, so that a crash at any moment leaves it
    whole or absent.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._chunks: list[list[Chunk]] = []  # of each tape, as last saved or loaded

    def save(self, frames: int, state: Mapping[str, Any]) -> Path:
        """Write `state` as the checkpoint of `frames`, then delete what is not to be kept.

        Raises:
            OSError: it cannot be written; the checkpoints before it are still there.
        """
        final = self.folder / f"{frames:012d}"
        if final.is_dir():  # a run is in one state at one frame: it is saved already
            try:
                verify(final)
                return final
            except DamagedCheckpoint:
                shutil.rmtree(final)
        try:
            chunks = self._write(final, frames, state)
        except OSError:
            with contextlib.suppress(OSError):  # leave the room that is left to others
                self._sweep()
            raise
        self._chunks = chunks
        newer = [p for p in found(self.folder) if int(p.name) > frames]  # damaged: passed by
        older = [p for p in found(self.folder) if int(p.name) <= frames]
        for stale in newer + older[: -self.keep]:
            shutil.rmtree(stale)
        self._sweep()
        return final

    def load_newest(self) -> tuple[int, dict[str, Any]]:
        """(frames, state) of the newest undamaged checkpoint, to go on from; see `load_newest`."""
        frames, state = load_newest(self.folder)
        manifest = _manifest(self.folder / f"{frames:012d}")
        self._chunks = [_chunks(entries) for entries in manifest["tapes"]]
        return frames, state

    def _write(self, final: Path, frames: int, state: Mapping[str, Any]) -> list[list[Chunk]]:
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a save that was killed
        partial.mkdir(parents=True)
        arrays: list[np.ndarray] = []
        tapes: list[AppendLog] = []
        skeleton = _taken_apart(state, arrays, tapes)
        chunks = [self._append(number, tape) for number, tape in enumerate(tapes)]
        files: dict[str, dict[str, Any]] = {}
        for number, array in enumerate(arrays):
            with _Hashed(partial / f"array_{number}.npy") as stream:
                np.save(cast(BinaryIO, stream), array, allow_pickle=False)
            files[stream.path.name] = stream.facts
        packed = io.BytesIO()  # a disk that is full is no OSError to torch
        torch.save(skeleton, packed)
        with _Hashed(partial / "state.pt") as stream:
            stream.write(packed.getbuffer())
        files[stream.path.name] = stream.facts
        manifest = {
            "format": FORMAT,
            "frames": frames,
            "files": files,
            "tapes": [[asdict(chunk) for chunk in of_tape] for of_tape in chunks],
        }
        with _Hashed(partial / MANIFEST) as stream:
            stream.write(json.dumps(manifest, indent=1).encode())
        with _Hashed(partial / SEAL) as seal:
            seal.write(_sealed(stream.facts["sha256"]))
        _sync(partial)
        partial.rename(final)
        _sync(self.folder)
        return chunks

    def _append(self, number: int, tape: AppendLog) -> list[Chunk]:
        """The files that hold a tape, after writing those that are missing."""
        known = self._chunks[number] if number < len(self._chunks) else []
        known = [chunk for chunk in known if chunk.end > tape.first]
        while known and known[-1].bytes < SMALL_BYTES and known[-1].end < tape.end:
            known.pop()
        at = max(tape.first, known[-1].end) if known else tape.first
        place = self.folder / TAPES
        place.mkdir(exist_ok=True)
        for first, fields in _cut(tape.read(at, tape.end)):
            known.append(_write_chunk(place, number, first, fields))
        _sync(place)
        return known

    def _sweep(self) -> None:
        """Delete what no checkpoint refers to: leftovers of killed saves, and forgotten rows."""
        for leftover in self.folder.glob(".*.partial"):
            shutil.rmtree(leftover)
        needed = set()
        for path in found(self.folder):
            with contextlib.suppress(DamagedCheckpoint):
                tapes = _manifest(path)["tapes"]
                needed |= {chunk.file for entries in tapes for chunk in _chunks(entries)}
        for file in (self.folder / TAPES).glob("*"):
            if file.name not in needed:
                file.unlink()


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())


def load_newest(folder: Path, *, tapes: bool = True) -> tuple[int, dict[str, Any]]:
    """(frames, state) of the newest undamaged checkpoint; damaged ones are reported and passed by.

    Args:
        tapes: whether their rows will be read, and are to be checked; not for an evaluation.

    Raises:
        ConfigError: there is none.
    """
    reasons = []
    for path in reversed(found(folder)):
        try:
            return int(path.name), load(path, tapes=tapes)
        except DamagedCheckpoint as error:
            reasons.append(str(error))
            log.warning("%s Trying the one before it.", error)
    if reasons:
        raise ConfigError(f"No checkpoint in {folder} is whole: {' '.join(reasons)}")
    raise ConfigError(f"There is no checkpoint in {folder}; the run has not saved one yet.")


def load(path: Path, *, tapes: bool = True) -> dict[str, Any]:
    """The state in a checkpoint; arrays are memory-mapped read-only views of its files.

    Raises:
        DamagedCheckpoint: anything is missing, truncated or changed.
    """
    verify(path, tapes=tapes)
    try:
        skeleton = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return _put_together(skeleton, path, _manifest(path)["tapes"])
    except Exception as error:  # of the formats underneath: hostile content raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{path} is damaged: its state does not load ({reason}).") from None


def verify(path: Path, *, tapes: bool = True) -> None:
    """Check every file against the manifest, and the manifest against its own sum.

    Raises:
        DamagedCheckpoint: naming the first file that is not what was written.
    """
    manifest = _manifest(path)
    for name, entry in manifest["files"].items():
        _verify_file(path, path / name, entry)
    for entries in manifest["tapes"] if tapes else []:
        for chunk in _chunks(entries):
            _verify_file(path, _place(path, chunk), asdict(chunk))


def _manifest(path: Path) -> dict[str, Any]:
    """Raises:
    DamagedCheckpoint: it is not as it was written, or of another version.
    """
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
        written_format = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is damaged: its manifest is not readable.") from None
    if isinstance(written_format, int) and 0 < written_format < FORMAT:  # it has no seal
        raise DamagedCheckpoint(
            f"{path} has format {written_format}; this version reads format {FORMAT}."
        )
    try:
        sealed = (path / SEAL).read_bytes() == _sealed(hashlib.sha256(data).hexdigest())
    except OSError:
        sealed = False
    if not sealed or manifest["frames"] != int(path.name):
        raise DamagedCheckpoint(f"{path} is damaged: its manifest is not what was written.")
    if written_format != FORMAT:
        raise DamagedCheckpoint(
            f"{path} has format {written_format}; this version reads format {FORMAT}."
        )
    return manifest


def _sealed(digest: str) -> bytes:
    """What `sha256sum --check` reads."""
    return f"{digest}  {MANIFEST}\n".encode()


def _verify_file(path: Path, file: Path, entry: Mapping[str, Any]) -> None:
    size = file.stat().st_size if file.is_file() else -1
    if size != entry["bytes"]:
        have = f"{size} bytes" if size >= 0 else "missing"
        raise DamagedCheckpoint(
            f"{path} is damaged: {file.name} should have {entry['bytes']} bytes and is {have}."
        )
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != entry["sha256"]:
        raise DamagedCheckpoint(f"{path} is damaged: the checksum of {file.name} is wrong.")


# --- rows ---


def _chunks(entries: Sequence[Mapping[str, Any]]) -> list[Chunk]:
    return [Chunk(**entry) for entry in entries]


def _place(checkpoint: Path, chunk: Chunk) -> Path:
    return checkpoint.parent / TAPES / Path(chunk.file).name


def _cut(chunks: Iterator[LogChunk]) -> Iterator[LogChunk]:
    """Pieces of at most CHUNK_BYTES."""
    for first, fields in chunks:
        rows = len(next(iter(fields.values())))
        row_bytes = sum(array.nbytes for array in fields.values()) // max(rows, 1)
        most = max(1, CHUNK_BYTES // max(row_bytes, 1))
        for at in range(0, rows, most):
            yield first + at, {name: array[at : at + most] for name, array in fields.items()}


def _write_chunk(place: Path, number: int, first: int, fields: Mapping[str, np.ndarray]) -> Chunk:
    end = first + len(next(iter(fields.values())))
    partial = place / f".{number}.partial"
    with _Hashed(partial) as stream:
        for array in fields.values():
            np.save(cast(BinaryIO, stream), array, allow_pickle=False)
    # named by its content too: the same rows of another line of the run's history are another file
    name = f"{number}-{first:012d}-{end:012d}-{stream.facts['sha256'][:12]}.rows"
    partial.replace(place / name)
    return Chunk(name, list(fields), first, end, **stream.facts)


def _read(checkpoint: Path, chunks: Sequence[Chunk], first: int, end: int) -> Iterator[LogChunk]:
    for chunk in chunks:
        low, high = max(first, chunk.first), min(end, chunk.end)
        if low >= high:
            continue
        with _place(checkpoint, chunk).open("rb") as stream:
            arrays = {name: np.load(stream, allow_pickle=False) for name in chunk.fields}
        yield (
            low,
            {name: array[low - chunk.first : high - chunk.first] for name, array in arrays.items()},
        )


# --- files ---


class _Hashed:
    """A file for writing that knows its size and checksum, and reaches the disk."""

    def __init__(self, path: Path):
        self.path = path
        self.digest = hashlib.sha256()
        self.size = 0

    @property
    def facts(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}

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

    def __exit__(self, kind: Any, *_: object) -> None:
        with self.stream:
            if kind is None:
                self.stream.flush()
                os.fsync(self.stream.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the state as a tree ---


def _taken_apart(tree: Any, arrays: list[np.ndarray], tapes: list[AppendLog]) -> Any:
    """The tree with numbers in the places of arrays and tapes, which are put into the lists."""
    if isinstance(tree, np.ndarray):
        arrays.append(tree)
        return {ARRAY: len(arrays) - 1}
    if isinstance(tree, AppendLog):
        tapes.append(tree)
        return {TAPE: [len(tapes) - 1, tree.first, tree.end]}
    if isinstance(tree, Mapping):
        return {key: _taken_apart(value, arrays, tapes) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_taken_apart(value, arrays, tapes) for value in tree)
    return tree


def _put_together(tree: Any, path: Path, tapes: Sequence[Sequence[Mapping[str, Any]]]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {ARRAY}:
            file = path / f"array_{tree[ARRAY]}.npy"
            empty = file.stat().st_size <= 128
            return np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)
        if set(tree) == {TAPE}:
            number, first, end = tree[TAPE]
            chunks = _chunks(tapes[number])
            return AppendLog(first, end, lambda low, high: _read(path, chunks, low, high))
        return {key: _put_together(value, path, tapes) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_put_together(value, path, tapes) for value in tree)
    return tree
