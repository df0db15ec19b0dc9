"""Snapshots of a teacher's episodes: saved states in memory and in one HDF5 file."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from rlearly.config.overrides import format_override, python_command
from rlearly.core.errors import ConfigError
from rlearly.envs.state import codec
from rlearly.envs.state.action_replay import id_of, require_one_env
from rlearly.envs.state.codec import encoded
from rlearly.envs.state.env_state import EnvState, installed
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes
from rlearly.envs.state.transfer import Transfer
from rlearly.system.atomic import replacing
from rlearly.system.disk import sync

FORMAT = 3
MAGIC_OF_ANY_FORMAT = b"rlearly snapshots "
MAGIC = f"rlearly snapshots {FORMAT}\n".encode()
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
META = "rlearly_snapshots"
HDF5_OPTIONS: dict[str, Any] = {"compression": "gzip", "compression_opts": 6, "shuffle": True}
HDF5_OPTIONS["fletcher32"] = True
USER_BLOCK_BYTES = 512
"""The start of the file, which HDF5 leaves free for the application."""
COLUMNS = {
    "observations": None,
    "values": np.float64,
    "rewards": np.float64,
    "returns_to_go": np.float64,
    "returns": np.float64,
    "steps": np.int64,
    "episodes": np.int64,
}
"""Arrays with one entry per snapshot and their dtypes; None: the observation's own."""
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError, DamagedState)


class Snapshot(NamedTuple):
    """A saved state, and what the unwrapped env observed and reported there."""

    state: EnvState
    observation: Any
    info: dict[str, Any]


@dataclass(frozen=True, repr=False, eq=False)
class Snapshots:
    """N saved states along a teacher's episodes, in the order in which they were seen.

    >>> from rlearly import Snapshots
    >>> snapshots = Snapshots.load("teacher.h5").select(best_episodes=5)  # doctest: +SKIP

    Make them with `record`, `from_actions`, `from_minari` or `python -m rlearly.teacher`.

    Attributes:
        records: N saved worlds with the unwrapped env's observation and info there, as bytes.
            What no episode changes is not in them, but once in `common`.
        observations: [N, D], that observation, flattened.
        values: [N], the teacher's estimate of its return from there; NaN if unknown.
        rewards: [N], of the step that led there; 0 at a reset.
        returns_to_go: [N], undiscounted, to the end of the episode.
        returns: [N], undiscounted, of the whole episode.
        steps: [N], since the reset.
        episodes: [N], number of the episode.
        env_id: the env's registered id.
        kwargs: what gymnasium.make was given.
        versions: of the installed packages.
        provenance: how the snapshots were made; any plain data.
        common: what all snapshots share, as bytes: how they are restored (`Transfer`), and a short
            continuation to compare with (`probe`).
    """

    records: Sequence[bytes]
    observations: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    returns_to_go: np.ndarray
    returns: np.ndarray
    steps: np.ndarray
    episodes: np.ndarray
    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    common: bytes = b""

    def __post_init__(self) -> None:
        for name in COLUMNS:
            if len(getattr(self, name)) != len(self.records):
                raise ConfigError(
                    f"Snapshots: expected {len(self.records)} {name}, one per state, received "
                    f"{len(getattr(self, name))}."
                )

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        """A one-line summary."""
        if not len(self):
            return f"<Snapshots: none of {self.env_id}>"
        returns, values = (f"{a.min():.4g} to {a.max():.4g}" for a in (self.returns, self.values))
        return (
            f"<Snapshots: {len(self)} of {self.env_id} from {len(np.unique(self.episodes))} "
            f"episodes, returns {returns}, values {values}>"
        )

    @functools.cached_property
    def transfer(self) -> Transfer:
        """How the worlds go into an env.

        Raises:
            DamagedState: its bytes are damaged.
        """
        try:
            return Transfer.from_tree(from_bytes(self.common)["transfer"])
        except (KeyError, TypeError) as error:
            raise DamagedState(f"What all snapshots share is malformed ({error}).") from None

    @property
    def probe(self) -> dict[str, Any]:
        """A short continuation of one world, see `follow_probe`."""
        return from_bytes(self.common)["probe"]

    def snapshot(self, index: int) -> Snapshot:
        """One snapshot.

        Raises:
            DamagedState: its bytes are damaged.
        """
        try:
            record = from_bytes(self.records[index])
            tree = dict(record["state"])
            tree["simulator"] = self.transfer.whole(tree["simulator"])
            obs, info = (_decoded(record[name]) for name in ("observation", "info"))
            return Snapshot(EnvState.from_tree(tree), obs, info)
        except (KeyError, TypeError, ValueError, codec.Incomplete) as error:
            raise DamagedState(f"Snapshot {index} is malformed ({error}).") from None

    def select(self, best_episodes: int | None = None, every_steps: int = 1) -> Snapshots:
        """A subset: the episodes of highest return, and a minimum distance between snapshots.

        Args:
            best_episodes: number of episodes to keep; None: all.
            every_steps: minimum number of steps between two snapshots of an episode.

        Raises:
            ConfigError: a number is below 1.
        """
        require_at_least(1, best_episodes=best_episodes, every_steps=every_steps)
        keep = np.zeros(len(self), dtype=bool)
        latest: dict[int, int] = {}
        for i, (episode, step) in enumerate(zip(self.episodes, self.steps, strict=True)):
            if episode not in latest or step - latest[episode] >= every_steps:
                keep[i], latest[episode] = True, step
        if best_episodes is not None:
            numbers, first = np.unique(self.episodes, return_index=True)
            order = np.argsort(-self.returns[first], kind="stable")
            keep &= np.isin(self.episodes, numbers[order[:best_episodes]])
        chosen = np.flatnonzero(keep)
        columns = {name: getattr(self, name)[chosen] for name in COLUMNS}
        return replace(self, records=[self.records[int(i)] for i in chosen], **columns)

    def check(self, env: gymnasium.Env) -> None:
        """Check that episodes of `env` can start from these states.

        Raises:
            ConfigError: there are no states, or they come from a different env, from one with
                other observations or actions, or from one of other package versions.
        """
        if not len(self):
            raise ConfigError(
                f"The snapshots of {self.env_id} are empty: record some with "
                "python -m rlearly.teacher, or select more of them."
            )
        require_one_env(env)
        base = env.unwrapped
        if id_of(base) != self.env_id:
            raise ConfigError(
                f"The snapshots are of {self.env_id}, and the env is {id_of(base)}: wrap a "
                f"{self.env_id}, or record snapshots of {id_of(base)}."
            )
        state = self.snapshot(0).state
        for package, expected in state.versions.items():
            version = installed(package)
            if version != expected:
                raise ConfigError(
                    f"The snapshots of {self.env_id} were made with {package} {expected}, and this "
                    f"is {package} {version}: their states would not continue alike; pip install "
                    f"{package}=={expected}, or record them again."
                )

    def save(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write one HDF5 file atomically, with its length and SHA-256 at the start.

        Raises:
            FileExistsError: the file exists, without `overwrite`.
            ConfigError: the folder does not exist or is not writable.
        """
        import h5py

        path = Path(path)
        datasets = {
            "states/bytes": np.frombuffer(b"".join(self.records), np.uint8),
            "states/ends": np.cumsum([len(record) for record in self.records], dtype=np.int64),
            "common": np.frombuffer(self.common, np.uint8),
            "values_of_any_type": np.frombuffer(self._described(), np.uint8),
            **{name: getattr(self, name) for name in COLUMNS},
        }
        try:
            with replacing(path, overwrite=overwrite) as partial:
                with h5py.File(partial, "w", userblock_size=USER_BLOCK_BYTES) as file:
                    meta = {
                        "env_id": self.env_id,
                        "versions": dict(self.versions),
                    }
                    file.attrs[META] = json.dumps(meta)
                    for name, array in datasets.items():
                        options = HDF5_OPTIONS if array.size else {}
                        file.create_dataset(name, data=array, **options)
                seal(partial)
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigError(
                f"{path}: the snapshots cannot be written ({error}); name a file in a folder that "
                "exists and is writable."
            ) from None

    def _described(self) -> bytes:
        """`kwargs` and `provenance` as bytes; what is no data, by the name of its class."""
        values = {"kwargs": dict(self.kwargs), "provenance": dict(self.provenance)}
        return to_bytes(encoded(values))

    @staticmethod
    def load(path: str | Path) -> Snapshots:
        """Read the snapshots in a file. Every byte is checked, and no code in it is run.

        The checksum is verified before the HDF5 library, which broken files can crash, reads the
        file. It detects damage, not malice: open only files from people you trust.

        Raises:
            ConfigError: there is no such file, it is damaged, or it is another kind of file.
        """
        path = Path(path)
        if not path.is_file():
            command = python_command("rlearly.teacher", "run=RUN_DIR", format_override("out", path))
            raise ConfigError(f"snapshot: there is no file {path}; {command} makes one.")
        try:
            with path.open("rb") as stream:
                _verify(stream, path)
                columns, records, meta, common, described = _contents(stream)
            values = _decoded(from_bytes(described))
            snapshots = Snapshots(
                records=records,
                env_id=str(meta["env_id"]),
                kwargs=values["kwargs"],
                versions=dict(meta["versions"]),
                provenance=values["provenance"],
                common=common,
                **columns,
            )
            for i in range(len(snapshots)):
                snapshots.snapshot(i)
        except UNREADABLE as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise ConfigError(
                f"{path} does not load as snapshots ({reason}): it is truncated, damaged or "
                "another kind of file; record it again with python -m rlearly.teacher."
            ) from None
        return snapshots


def _decoded(tree: Any) -> Any:
    """The value of a tree from `encoded`; parts that are no data as text."""

    def without_opaque(node: Any) -> Any:
        if isinstance(node, dict) and node.get(codec.KIND) in ("opaque", "function", "kept"):
            return f"<{node.get('class', node.get('name', 'a constant'))}>"
        if isinstance(node, dict):
            return {key: without_opaque(item) for key, item in node.items()}
        return [without_opaque(item) for item in node] if isinstance(node, list) else node

    decoded = codec.Decoder([], {}).decode(without_opaque(tree), codec.MISSING)
    return copy.deepcopy(decoded)  # arrays decoded from bytes are read-only


def seal(path: Path) -> None:
    """Write the length and SHA-256 of a closed HDF5 file into its user block, and sync it."""
    with path.open("r+b") as stream:
        block = _user_block(stream)
        stream.seek(0)
        stream.write(block)
        stream.flush()
        sync(stream.fileno())


def _user_block(stream: BufferedIOBase) -> bytes:
    """The user block that a file with this content must have."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(USER_BLOCK_BYTES)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    text = f"{length} bytes; SHA-256 of those from {USER_BLOCK_BYTES} on: {digest}\n"
    return (MAGIC + text.encode()).ljust(USER_BLOCK_BYTES, b"\0")


def _verify(stream: BufferedIOBase, path: Path) -> None:
    block = stream.read(USER_BLOCK_BYTES)
    if block.startswith(HDF5_MAGIC):
        raise ConfigError(
            f"{path} is HDF5 without a checksum, as snapshots of format 1 were, and this version "
            f"reads format {FORMAT}: record it again with python -m rlearly.teacher."
        )
    if block.startswith(MAGIC_OF_ANY_FORMAT) and not block.startswith(MAGIC):
        raise ConfigError(
            f"{path} holds snapshots of another format, and this version reads format {FORMAT}: "
            "record it again with python -m rlearly.teacher."
        )
    if not block.startswith(MAGIC):
        raise ValueError(f"expected it to begin with {MAGIC!r}, found {block[: len(MAGIC)]!r}")
    if block != _user_block(stream):
        raise ValueError("its length or checksum differs from the one stored in it")


def _contents(
    stream: BufferedIOBase,
) -> tuple[dict[str, np.ndarray], list[bytes], dict[str, Any], bytes, bytes]:
    """(columns, states, id and versions, what all states share, values of any type)."""
    import h5py

    with h5py.File(stream, "r") as file:
        if h5py.check_string_dtype(file.attrs.get_id(META).dtype) is None:
            raise ValueError(f"{META} is not text")
        meta = json.loads(str(file.attrs[META]))
        ends = _read(file, "states/ends", np.int64)
        joined = _read(file, "states/bytes", np.uint8).tobytes()
        columns = {name: _read(file, name, dtype) for name, dtype in COLUMNS.items()}
        common, described = (
            _read(file, name, np.uint8).tobytes() for name in ("common", "values_of_any_type")
        )
    offsets = [0, *ends.tolist()]
    if (np.diff(offsets) < 0).any() or offsets[-1] != len(joined):
        raise ValueError("the states' offsets do not fit their bytes")
    records = [joined[a:b] for a, b in itertools.pairwise(offsets)]
    return columns, records, meta, common, described


def _read(file: Any, name: str, expected: Any) -> np.ndarray:
    """A dataset that lies within the file as plain numbers (of dtype `expected`, unless None)."""
    import h5py

    for path in itertools.accumulate(name.split("/"), "{}/{}".format):
        if not isinstance(file.get(path, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is not within the file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name} is not plain data within the file")
    dtype = dataset.dtype
    if dtype.hasobject or h5py.check_opaque_dtype(dtype):
        raise ValueError(f"{name} is not made of numbers")
    if dtype.kind not in "biuf" or (expected is not None and dtype != expected):
        description = "numbers" if expected is None else np.dtype(expected)
        raise ValueError(f"{name}: expected {description}, found {dtype}")
    return np.asarray(dataset[()])


def require_at_least(lowest: int, **numbers: float | None) -> None:
    """Raise ConfigError if one of the named numbers is too low; None is not checked."""
    for name, number in numbers.items():
        if number is not None and number < lowest:
            raise ConfigError(f"{name}: expected a number of at least {lowest}, received {number}.")


def kwargs_of(base: gymnasium.Env) -> dict[str, Any]:
    """What gymnasium.make was given, without the render mode."""
    kwargs = dict(base.spec.kwargs) if base.spec is not None else {}
    return {key: value for key, value in kwargs.items() if key != "render_mode"}
