"""The run directory: created, locked, and holding everything needed to repeat the run."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Container, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rlearly.config.overrides import format_override, python_command
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.system import determinism
from rlearly.system.atomic import write
from rlearly.system.disk import short_name
from rlearly.system.locks import PROBE_SECONDS, FileLock
from rlearly.system.provenance import changed_code
from rlearly.training import checkpoint

log = logging.getLogger(__name__)
CONFIG, PROVENANCE, DONE = "config.yaml", "provenance.json", "done.json"
REPORT, WEIGHTS = "failure.json", "failure.pt"
"""Of a failed run; see failure.py."""

IDENTITY, WANDB_ID = "identity.json", "wandb_id"


# --- creating ---


def create(config: RunConfig) -> Path:
    """Make the directory of a new run and write its config.

    A run that failed before its first step, in the env's own code, is replaced.

    Raises:
        ConfigError: it already holds a run, or cannot be written.
    """
    path = Path(config.run_dir) if config.run_dir else None
    try:
        if path and _failed_at_once(path):
            discard(path)
        if path and ((path / CONFIG).exists() or (path / "checkpoints").exists()):
            raise ConfigError(
                f"run_dir: {path} holds a run already; name another, or continue it with: "
                f"{resume_command(path)}"
            )
        if path:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _new_directory(config)
        write(path / CONFIG, as_yaml(config))
    except OSError as error:
        if path:
            _remove_empty(path)
        raise ConfigError(
            f"run_dir: {path or 'runs'} cannot be written ({error.strerror}); "
            "name another with run_dir=."
        ) from None
    return path


def _new_directory(config: RunConfig) -> Path:
    """runs/<agent>/<env>/<seed>-<time>, with a number appended if it already exists."""
    agent, env = (
        short_name(name.replace("/", "-").replace(":", "-"))
        for name in (config.agent_name, config.env.name)
    )
    parent = Path("runs") / agent / env
    label = f"{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = parent / label, 1
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
            path = parent / f"{label}-{number}"


def _failed_at_once(path: Path) -> bool:
    """Whether a directory holds a run that failed before its first step."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        failed = json.loads((path / REPORT).read_text(encoding="utf-8"))["frames"] == 0
        return failed and not checkpoint.list_checkpoints(path / "checkpoints")
    return False


def discard(path: Path) -> None:
    """Remove the directory of a run that could not start; files of the user's are kept."""
    for name in (
        CONFIG,
        PROVENANCE,
        REPORT,
        WEIGHTS,
        "metrics.jsonl",
        "run.lock",
        IDENTITY,
        WANDB_ID,
    ):
        (path / name).unlink(missing_ok=True)
    _remove_empty(path)


def _remove_empty(path: Path) -> None:
    """Remove the directory of a run if nothing is in it."""
    with contextlib.suppress(OSError):  # not empty: it existed before
        path.rmdir()
        if path.parts[0] == "runs":  # parents that were made for this run
            for parent in path.parents[:3]:
                parent.rmdir()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time use a run directory.

    Raises:
        ConfigError: another process uses it, or the directory cannot be written.
    """
    lock = FileLock(path / "run.lock")
    try:
        if not lock.acquire(PROBE_SECONDS):
            raise ConfigError(f"{path} is in use: another process is training there.")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from None
    try:
        yield
    finally:
        lock.release()


# --- resuming ---


def is_done(path: Path) -> bool:
    return (path / DONE).exists()


def early_end(path: Path) -> str | None:
    """Why the run in a directory ended before its train_frames; None: it did not."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((path / DONE).read_text(encoding="utf-8")).get("stopped")
    return None


def why_finished(path: Path, given: Container[str]) -> str | None:
    """A sentence if the run in a directory is done and the `given` keys do not train on."""
    if not is_done(path):
        return None
    reason = early_end(path)
    if reason is None:
        if "train_frames" in given:
            return None
        return f"{path} is finished; add train_frames= to train on."
    needed = "stop_when" if reason.startswith("stop_when") else "train_frames"
    if needed in given:
        return None
    value = "null" if needed == "stop_when" else ""
    return f"{path} ended early ({reason}); add {needed}={value} to train on."


def record_end(path: Path, frames: int, updates: int, stopped: str | None) -> None:
    """Write done.json. `stopped`: why the run ended before its train_frames, if it did."""
    end = {"frames": frames, "updates": updates, "time": time.time()}
    write(path / DONE, json.dumps(end | ({"stopped": stopped} if stopped else {})))


def has_started(path: Path) -> bool:
    """Whether a run got as far as its first step there."""
    return (path / PROVENANCE).exists()


def refuse_to_start_over(path: Path, config: RunConfig) -> None:
    """Refuse to start over a run whose checkpoints were deleted.

    A run that has not reached its first checkpoint may start over.

    Raises:
        ConfigError: the run is done, or has rows from after its first checkpoint.
    """
    first = config.checkpoint_every_frames + config.env.action_repeat * config.num_envs
    if is_done(path) or (config.checkpoint_every_frames and _last_frames(path) > first):
        what = "is done" if is_done(path) else f"has rows up to {_last_frames(path):,} frames"
        raise ConfigError(
            f"{path} {what}, but its checkpoints are gone: put them back, or start another run."
        )


def refuse_to_shrink(path: Path, config: RunConfig) -> None:
    """Refuse a `train_frames` that the run has already passed.

    The last round of env steps may overshoot `train_frames` by less than the frames of a round.

    Raises:
        ConfigError: the newest checkpoint is beyond `train_frames`.
    """
    frames = max(
        (int(p.name) for p in checkpoint.list_checkpoints(path / "checkpoints")), default=0
    )
    if frames - config.train_frames >= config.env.action_repeat * config.num_envs:
        raise ConfigError(
            f"train_frames: expected at least the {frames} frames that {path} has done, "
            f"received {config.train_frames}; name a larger number to train on."
        )


def resume_command(path: Path) -> str:
    """A command for the shell that continues the run in a directory."""
    return python_command("rlearly.train", format_override("resume", path))


def _last_frames(path: Path) -> int:
    """The frames of the newest row; 0 if no row can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max((int(json.loads(line)["frames"]) for line in lines), default=0)
    return 0


# --- identity ---


def identify(path: Path) -> dict[str, Any]:
    """Identify the run or sweep in a locked directory.

    A new directory gets a random id, and one that was moved keeps it. A copy gets one of its own,
    and loses its wandb id.

    Returns:
        id, path, name: the directory's when it got the id. copied_from: the original's, or None.

    Raises:
        ConfigError: the directory cannot be written.
    """
    known = identity_of(path)
    place = path.resolve()
    here = {"id": uuid.uuid4().hex, "path": str(place), "name": place.name, "copied_from": None}
    try:
        if known and original_of(path):
            here["copied_from"] = {name: known[name] for name in ("id", "path", "name")}
            (path / WANDB_ID).unlink(missing_ok=True)
        elif known:
            here = known | {"path": here["path"]}
        write(path / IDENTITY, json.dumps(here, indent=1))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); free space or fix it, then continue "
            f"with: {resume_command(path)}"
        ) from None
    return here


def original_of(path: Path) -> Path | None:
    """The directory that this one is a copy of: the last path of this run, if that has its id too.

    None if this directory was moved or is seen under another path.
    """
    with contextlib.suppress(OSError):  # a folder that may not be looked into
        known = identity_of(path)
        other = Path(known["path"]) if known else None
        if known and other and (identity_of(other) or {}).get("id") == known["id"]:
            return None if other.samefile(path) else other
    return None


def identity_of(path: Path) -> dict[str, Any] | None:
    """What `identify` wrote; None if it did not, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
        return {name: str(found[name]) for name in ("id", "path", "name")} | found
    return None


# --- provenance ---


def record_start(path: Path, config: RunConfig, entry: dict[str, Any]) -> None:
    """Append an entry to provenance.json, write the config, and delete done.json and failures."""
    write(path / PROVENANCE, json.dumps([*_starts(path), entry], indent=1))
    write(path / CONFIG, as_yaml(config))
    for name in (DONE, REPORT, WEIGHTS):
        (path / name).unlink(missing_ok=True)


def changes_since_last_start(path: Path, entry: dict[str, Any]) -> list[str]:
    """The changes that prevent a repetition to the bit, as `threads 1 -> 2`."""
    before = [{}, *_starts(path)][-1]
    changed = determinism.changes(before.get("determinism", {}), entry["determinism"])
    return [*changed, *changed_code(before, entry)]


def _starts(path: Path) -> list[dict[str, Any]]:
    """The provenance of each start and resume so far; an unreadable file is renamed."""
    file = path / PROVENANCE
    if not file.is_file():
        return []
    try:
        return [
            entry
            for entry in json.loads(file.read_text(encoding="utf-8"))
            if isinstance(entry, dict)
        ]
    except (ValueError, TypeError) as error:
        aside = file.with_name(f"{PROVENANCE}.damaged")
        log.warning("%s cannot be read (%s); it is now %s.", file, error, aside.name)
        file.replace(aside)
        return []
