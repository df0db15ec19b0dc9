"""Checkpoints: atomic, checksummed, verified, and loaded without running code."""

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
from rlearly.core.tree import map_leaves
from rlearly.system.disk import sync, sync_folder

log = logging.getLogger(__name__)
FORMAT = 8
ARRAY, LOG = "__array__", "__log__"
"""Keys of the dicts that stand for arrays and append logs in state.pt."""
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
LOGS = "logs"
BEST = "best"
"""The folder, beside a run's checkpoints, of the one of its best evaluation (`keep_best`). It is
named by its frames too, and holds no append logs and no replay."""

CHUNK_BYTES = 256_000_000
"""Most bytes of a chunk file. Loading takes as much memory; deleting one frees as much disk."""

SMALL_BYTES = 4_000_000
"""A last chunk file smaller than this is rewritten together with the rows that follow it, so that
frequent checkpoints do not leave thousands of files."""


class DamagedCheckpoint(Exception):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class Chunk:
    """A file with rows `first` to `end` of an append log: one .npy block per field."""

    file: str
    fields: list[str]
    first: int
    end: int
    bytes: int
    sha256: str


class Checkpoints:
    """The checkpoints of one run, in a folder; the newest `keep` are kept.

    A checkpoint is a folder named by its frames. It holds numpy arrays as .npy files (streamed,
    not copied in memory), everything else in state.pt, a manifest with sizes and checksums, and
    the checksum of the manifest. Rows of append logs are in chunk files that checkpoints share: a
    chunk file is written once, never changed, and deleted when no checkpoint needs it. Files are
    written under a temporary name, synced to the disk and renamed, and deleted under a temporary
    name too, so that at any moment, also after a crash, a checkpoint is either whole or absent.
    Other processes may load checkpoints while this one saves and deletes them.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._chunks: list[list[Chunk]] = []  # of each append log, as last saved or loaded

    def save(self, frames: int, state: Mapping[str, Any], *, replace: bool = False) -> Path:
        """Write `state` as the checkpoint at `frames`, then delete those that are not kept.

        Args:
            replace: the state differs from that of an earlier checkpoint at the same frames.

        Raises:
            OSError: it cannot be written; the earlier checkpoints are still there.
        """
        final = self.folder / f"{frames:012d}"
        if final.is_dir() and not replace:  # the same state, so it is saved already
            try:
                verify(final)
                self._prune(frames)  # a save that was killed may not have
                return final
            except DamagedCheckpoint:
                _delete(final)
        try:
            chunks = self._write(final, frames, state)
        except OSError:
            with contextlib.suppress(OSError):  # free the space that the failed save used
                self._delete_leftovers()
            raise
        self._chunks = chunks
        self._prune(frames)
        return final

    def load_newest(self) -> tuple[int, dict[str, Any]]:
        """As the function `load_newest`; the next `save` adds to the chunk files of this one."""
        frames, state = load_newest(self.folder)
        self._chunks = _chunks(_manifest(self.folder / f"{frames:012d}"))
        return frames, state

    def _write(self, final: Path, frames: int, state: Mapping[str, Any]) -> list[list[Chunk]]:
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a save that was killed
        partial.mkdir(parents=True)
        arrays: list[np.ndarray] = []
        logs: list[AppendLog] = []
        skeleton = _extract(state, arrays, logs)
        chunks = [self._append(number, append_log) for number, append_log in enumerate(logs)]
        files: dict[str, dict[str, Any]] = {}
        for number, array in enumerate(arrays):
            with _HashedFile(partial / f"array_{number}.npy") as stream:
                np.save(cast(BinaryIO, stream), array, allow_pickle=False)
            files[stream.path.name] = stream.size_and_sum
        packed = io.BytesIO()  # torch.save does not raise OSError on a full disk
        torch.save(skeleton, packed)
        with _HashedFile(partial / "state.pt") as stream:
            stream.write(packed.getbuffer())
        files[stream.path.name] = stream.size_and_sum
        manifest = {
            "format": FORMAT,
            "frames": frames,
            "files": files,
            "logs": [[asdict(chunk) for chunk in of_log] for of_log in chunks],
        }
        with _HashedFile(partial / MANIFEST) as stream:
            stream.write(json.dumps(manifest, indent=1).encode())
        with _HashedFile(partial / SEAL) as seal:
            seal.write(_seal(stream.size_and_sum["sha256"]))
        sync_folder(partial)
        replaced = _hide(final) if final.is_dir() else None
        partial.rename(final)
        if replaced:
            shutil.rmtree(replaced)
        sync_folder(self.folder)
        return chunks

    def _append(self, number: int, append_log: AppendLog) -> list[Chunk]:
        """The chunk files of an append log, after writing the rows that are in none yet."""
        known = self._chunks[number] if number < len(self._chunks) else []
        known = [chunk for chunk in known if chunk.end > append_log.first]
        while known and known[-1].bytes < SMALL_BYTES and known[-1].end < append_log.end:
            known.pop()
        start = max(append_log.first, known[-1].end) if known else append_log.first
        folder = self.folder / LOGS
        folder.mkdir(exist_ok=True)
        for first, fields in _split(append_log.read(start, append_log.end)):
            known.append(_write_chunk(folder, number, first, fields))
        sync_folder(folder)
        return known

    def _prune(self, frames: int) -> None:
        """Keep the newest checkpoints up to `frames`; later ones are damaged, and were skipped."""
        newer = [p for p in list_checkpoints(self.folder) if int(p.name) > frames]
        older = [p for p in list_checkpoints(self.folder) if int(p.name) <= frames]
        for stale in newer + older[: -self.keep]:
            _delete(stale)
        self._delete_leftovers()

    def _delete_leftovers(self) -> None:
        """Delete what killed saves left, and chunk files that no checkpoint needs."""
        for leftover in self.folder.glob(".*.partial"):
            shutil.rmtree(leftover)
        needed = set()
        for path in list_checkpoints(self.folder):
            with contextlib.suppress(DamagedCheckpoint):
                needed |= {chunk.file for of_log in _chunks(_manifest(path)) for chunk in of_log}
        for file in (self.folder / LOGS).glob("*"):
            if file.name not in needed:
                file.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())


def _delete(path: Path) -> None:
    """Delete a checkpoint: it disappears as a whole, before its files do."""
    shutil.rmtree(_hide(path))


def _hide(path: Path) -> Path:
    """Rename a checkpoint to a name under which it is a leftover, and return that."""
    hidden = path.with_name(f".{path.name}.deleted.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    return path.rename(hidden)


def load_newest(folder: Path, *, logs: bool = True) -> tuple[int, dict[str, Any]]:
    """(frames, state) of the newest undamaged checkpoint; damaged ones are reported and skipped.

    If the run that writes them deletes one before it is read, the newest one then is loaded.

    Args:
        logs: whether append logs will be read and must be verified; an evaluation needs none.

    Raises:
        ConfigError: there is no undamaged checkpoint.
    """
    reasons: dict[Path, str] = {}
    found = list_checkpoints(folder)
    while found:
        path = found.pop()
        try:
            return int(path.name), load(path, logs=logs)
        except DamagedCheckpoint as error:
            if not path.is_dir():  # deleted since it was listed
                found = [other for other in list_checkpoints(folder) if other not in reasons]
                continue
            reasons[path] = str(error)
            log.warning("%s Trying the one before it.", error)
    if reasons:
        raise ConfigError(f"No checkpoint in {folder} is whole: {' '.join(reasons.values())}")
    raise ConfigError(f"There is no checkpoint in {folder}; the run has not saved one yet.")


Chosen = int | str | None
"""Which checkpoint of a run: that at these frames, "best", or None for the newest."""


def refuse_other_spaces(state: Mapping[str, Any], spaces: Mapping[str, str], env: str) -> None:
    """Check that an env has the observations and actions that a checkpoint was trained with.

    Args:
        state: of the checkpoint; those of earlier versions do not say it.
        spaces: of the env, in words.
        env: its name, for the message.

    Raises:
        ConfigError: it has others.
    """
    for name, trained in state.get("spaces", {}).items():
        if spaces.get(name, trained) != trained:
            raise ConfigError(
                f"env={env}: expected {name} of {trained}, with which this run was trained, "
                f"received {spaces[name]}: use the env that it was trained on, or begin a new run."
            )


def load_at(folder: Path, chosen: Chosen, *, logs: bool = False) -> tuple[int, dict[str, Any]]:
    """(frames, state) of a chosen checkpoint.

    Args:
        logs: whether append logs will be read and must be verified; an evaluation needs none.

    Raises:
        ConfigError: there is no such checkpoint, or it is damaged.
    """
    if chosen is None:
        return load_newest(folder, logs=logs)
    if chosen == BEST:
        folder, chosen = folder / BEST, best_frames(folder)
    path = _existing(folder, chosen)
    try:
        return int(path.name), load(path, logs=logs)
    except DamagedCheckpoint as error:
        _existing(folder, chosen)  # raises if it was deleted since
        raise ConfigError(str(error)) from None


def is_kept(folder: Path, chosen: int | str) -> bool:
    """Whether a run has a chosen checkpoint, whole or not."""
    if chosen == BEST:
        return bool(list_checkpoints(folder / BEST))
    return (folder / f"{int(chosen):012d}").is_dir()


def best_frames(folder: Path) -> int:
    """The frames of the best evaluation among the checkpoints in a folder.

    Raises:
        ConfigError: it was not kept.
    """
    found = list_checkpoints(folder / BEST)
    if not found:
        raise ConfigError(
            f"checkpoint: {folder.parent} has kept no best one; a run does with keep_best=true, "
            "from its first evaluation on."
        )
    return int(found[-1].name)


def delete_unneeded_best(folder: Path, frames: int) -> None:
    """Of the best checkpoints of the run in a folder, delete those that are no longer needed.

    Needed is the newest one that is not newer than `frames`, and the one that was the best at each
    kept checkpoint. Newer ones are of a future that a resumed run has left.
    """
    best = [int(path.name) for path in list_checkpoints(folder / BEST)]
    kept = [frames, *(int(path.name) for path in list_checkpoints(folder))]
    needed = {max((b for b in best if b <= min(at, frames)), default=None) for at in kept}
    for path in list_checkpoints(folder / BEST):
        if int(path.name) not in needed:
            _delete(path)


def digest(folder: Path, chosen: int | str) -> str:
    """The SHA-256 of the manifest of a chosen checkpoint, which identifies its content.

    Raises:
        ConfigError: there is no such checkpoint, or it is damaged.
    """
    frames = chosen
    if chosen == BEST:
        folder, frames = folder / BEST, best_frames(folder)
    path = _existing(folder, frames)
    try:
        _manifest(path)
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except (DamagedCheckpoint, OSError) as error:
        _existing(folder, frames)  # raises if it was deleted since
        raise ConfigError(str(error)) from None


def newest_digest(folder: Path) -> tuple[int, str]:
    """(frames, digest) of the newest checkpoint, also while the run writes and deletes some.

    Raises:
        ConfigError: there is no checkpoint, or the newest one is damaged.
    """
    while found := list_checkpoints(folder):
        try:
            return int(found[-1].name), digest(folder, int(found[-1].name))
        except ConfigError:
            if found[-1].is_dir():
                raise
    raise ConfigError(f"There is no checkpoint in {folder}; the run has not saved one yet.")


def _existing(folder: Path, frames: int | str) -> Path:
    if not str(frames).isdecimal():
        raise ConfigError(
            f"checkpoint: expected a number of frames, best or null, received {frames!r}."
        )
    path = folder / f"{int(frames):012d}"
    if not path.is_dir():
        kept = ", ".join(str(int(p.name)) for p in list_checkpoints(folder)) or "none"
        raise ConfigError(
            f"checkpoint: there is none at {frames} frames in {folder}; kept: {kept}."
        )
    return path


def load(path: Path, *, logs: bool = True) -> dict[str, Any]:
    """The state in a checkpoint. Arrays are read-only memory maps of its files.

    Raises:
        DamagedCheckpoint: anything is missing, truncated or changed.
    """
    verify(path, logs=logs)
    try:
        skeleton = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return _insert(skeleton, path, _chunks(_manifest(path)))
    except Exception as error:  # malformed content makes the parsers raise errors of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{path} is damaged: its state does not load ({reason}).") from None


def verify(path: Path, *, logs: bool = True) -> None:
    """Check every file against the manifest, and the manifest against its own checksum.

    Raises:
        DamagedCheckpoint: a file is not what was written; the message names the first.
    """
    manifest = _manifest(path)
    for name, entry in manifest["files"].items():
        _verify_file(path, path / name, entry["bytes"], entry["sha256"])
    for of_log in _chunks(manifest) if logs else []:
        for chunk in of_log:
            _verify_file(path, _chunk_path(path, chunk), chunk.bytes, chunk.sha256)


def _manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest, and check it against its checksum.

    Raises:
        DamagedCheckpoint: it is not what was written, or has a different format.
    """
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
        written_format = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is damaged: its manifest is not readable.") from None
    other_format = DamagedCheckpoint(
        f"{path} has format {written_format}; this version reads format {FORMAT}."
    )
    if isinstance(written_format, int) and 0 < written_format < FORMAT:  # may have no seal
        raise other_format
    try:
        sealed = (path / SEAL).read_bytes() == _seal(hashlib.sha256(data).hexdigest())
    except OSError:
        sealed = False
    if not sealed or manifest["frames"] != int(path.name):
        raise DamagedCheckpoint(f"{path} is damaged: its manifest is not what was written.")
    if written_format != FORMAT:
        raise other_format
    return manifest


def _seal(digest: str) -> bytes:
    """The manifest's checksum, in the format of `sha256sum --check`."""
    return f"{digest}  {MANIFEST}\n".encode()


def _verify_file(path: Path, file: Path, size: int, digest: str) -> None:
    expected = f"{path} is damaged: {file.name} should have {size} bytes and is"
    try:
        with file.open("rb") as stream:
            actual = os.fstat(stream.fileno()).st_size
            if actual != size:
                raise DamagedCheckpoint(f"{expected} {actual} bytes.")
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise DamagedCheckpoint(f"{path} is damaged: the checksum of {file.name} is wrong.")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{expected} missing.") from None
    except OSError as error:
        raise DamagedCheckpoint(f"{file} cannot be read ({error.strerror}).") from None


# --- append logs ---


def _chunks(manifest: Mapping[str, Any]) -> list[list[Chunk]]:
    return [[Chunk(**entry) for entry in entries] for entries in manifest["logs"]]


def _chunk_path(checkpoint: Path, chunk: Chunk) -> Path:
    return checkpoint.parent / LOGS / Path(chunk.file).name


def _split(chunks: Iterator[LogChunk]) -> Iterator[LogChunk]:
    """Chunks of at most CHUNK_BYTES."""
    for first, fields in chunks:
        rows = len(next(iter(fields.values())))
        row_bytes = sum(array.nbytes for array in fields.values()) // max(rows, 1)
        most = max(1, CHUNK_BYTES // max(row_bytes, 1))
        for at in range(0, rows, most):
            yield first + at, {name: array[at : at + most] for name, array in fields.items()}


def _write_chunk(folder: Path, number: int, first: int, fields: Mapping[str, np.ndarray]) -> Chunk:
    end = first + len(next(iter(fields.values())))
    partial = folder / f".{number}.partial"
    with _HashedFile(partial) as stream:
        for array in fields.values():
            np.save(cast(BinaryIO, stream), array, allow_pickle=False)
    facts = stream.size_and_sum
    # The hash in the name keeps apart the same rows from different continuations of the run.
    name = f"{number}-{first:012d}-{end:012d}-{facts['sha256'][:12]}.rows"
    partial.replace(folder / name)
    return Chunk(name, list(fields), first, end, **facts)


def _read(checkpoint: Path, chunks: Sequence[Chunk], first: int, end: int) -> Iterator[LogChunk]:
    for chunk in chunks:
        low, high = max(first, chunk.first), min(end, chunk.end)
        if low >= high:
            continue
        rows = slice(low - chunk.first, high - chunk.first)
        with _chunk_path(checkpoint, chunk).open("rb") as stream:
            arrays = {name: np.load(stream, allow_pickle=False) for name in chunk.fields}
        yield low, {name: array[rows] for name, array in arrays.items()}


def _extract(state: Any, arrays: list[np.ndarray], logs: list[AppendLog]) -> Any:
    """The state with arrays and append logs replaced by markers and appended to the lists."""

    def mark(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            arrays.append(leaf)
            return {ARRAY: len(arrays) - 1}
        if isinstance(leaf, AppendLog):
            logs.append(leaf)
            return {LOG: [len(logs) - 1, leaf.first, leaf.end]}
        return leaf

    return map_leaves(mark, state)


def _insert(skeleton: Any, path: Path, chunks: Sequence[Sequence[Chunk]]) -> Any:
    """The inverse of `_extract`, reading from a checkpoint's files."""

    def is_marker(tree: Any) -> bool:
        return isinstance(tree, dict) and set(tree) in ({ARRAY}, {LOG})

    def read(leaf: Any) -> Any:
        if not is_marker(leaf):
            return leaf
        if ARRAY in leaf:
            file = path / f"array_{leaf[ARRAY]}.npy"
            empty = file.stat().st_size <= 128  # cannot be mapped
            return np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)
        number, first, end = leaf[LOG]
        of_log = chunks[number]
        return AppendLog(first, end, lambda low, high: _read(path, of_log, low, high))

    return map_leaves(read, skeleton, is_leaf=is_marker)


# --- files ---


class _HashedFile:
    """A file for writing that tracks its size and checksum and is synced to the disk on closing."""

    def __init__(self, path: Path):
        self.path = path
        self.digest = hashlib.sha256()
        self.size = 0

    @property
    def size_and_sum(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}

    def __enter__(self) -> _HashedFile:
        self.stream = self.path.open("wb")
        return self

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        return self.stream.write(view)

    def __exit__(self, kind: Any, *_: object) -> None:
        with self.stream:
            if kind is None:
                self.stream.flush()
                sync(self.stream.fileno())
