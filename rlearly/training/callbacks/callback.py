"""The interface of a user's callback and of its handle to the run: `callback=module:NAME`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlearly.config.metric_names import KNOWN
from rlearly.core.types import Metrics, Progress
from rlearly.training.callbacks.training_envs import TrainingEnvs


@dataclass(frozen=True)
class Episode:
    """A training episode that has just ended.

    `success`: whether it reached its goal; None if the env does not report it. `kind`: "episode",
    or "snapshot_episode" or "guided_episode" if it began at a snapshot or with a teacher's steps.
    `info`: of its last step.
    """

    env_index: int
    episode_return: float
    length_steps: int
    success: bool | None
    kind: str
    info: Mapping[str, Any]


class Training(Protocol):
    """What a `RunHandle` needs from a trainer."""

    updates: int
    episodes: int
    folder: Path

    @property
    def at(self) -> Progress: ...

    @property
    def training_envs(self) -> TrainingEnvs: ...

    def stop(self, reason: str) -> None: ...

    def log(self, metrics: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


class RunHandle:
    """A run as a callback sees it. Valid for as long as the run is."""

    def __init__(self, training: Training, caller: str):
        self._training = training
        self._caller = caller

    @property
    def frames(self) -> int:
        """Simulator frames so far; `steps` times the action repeat."""
        return self._training.at.frames

    @property
    def steps(self) -> int:
        """Agent steps so far, of all envs together."""
        return self._training.at.steps

    @property
    def updates(self) -> int:
        return self._training.updates

    @property
    def episodes(self) -> int:
        """Training episodes that have ended."""
        return self._training.episodes

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._training.folder

    @property
    def envs(self) -> TrainingEnvs:
        """The training envs, whose attributes can be read and set."""
        return self._training.training_envs

    def stop(self, reason: str) -> None:
        """End the run before its next step. It is then done; done.json and reports say why."""
        self._training.stop(f"callback={self._caller}: {reason}")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Write a row of metrics, named GROUP/NAME, at the current frames.

        Raises:
            ValueError: a name is rlearly's own or has no group, or a value is not a finite number.
        """
        row: dict[str, float] = {}
        for name, value in metrics.items():
            if not re.fullmatch(r"\w+(/\w+)+", name) or name in KNOWN:
                raise ValueError(
                    "log: expected names of your own with a group, as in curriculum/level, "
                    f"received {name!r}"
                )
            row[name] = float(value)
            if not math.isfinite(row[name]):
                raise ValueError(f"log: expected finite numbers, received {name}={value}")
        self._training.log(row)

    def message(self, text: str) -> None:
        """Show one line to the user."""
        self._training.message(text)


class Callback:
    """Observes a run. Every method does nothing by default: a subclass overrides what it needs.

    All are called between two rounds of env steps, in the thread that trains, so that results do
    not depend on other threads. After a round, first `on_update` is called for each of its updates,
    then `on_episode` for each episode that ended, then `on_step`. An exception ends the run, like
    one in the env.

    What a callback remembers must be in its `state_dict`, or a resumed run differs from an
    uninterrupted one. Draw random numbers from a generator whose state is saved there too.
    """

    def on_start(self, run: RunHandle) -> None:
        """Called once, before the first step; not when the run is resumed."""

    def on_step(self, run: RunHandle) -> None:
        """Called after every round: one step of each env, and the updates that were due."""

    def on_episode(self, run: RunHandle, episode: Episode) -> None:
        """Called for every training episode that has ended."""

    def on_update(self, run: RunHandle, metrics: Metrics) -> None:
        """Called for every update with its metrics: numbers, or tensors on the learner's device;
        `float(...)` waits for that device."""

    def on_evaluation(self, run: RunHandle, metrics: Mapping[str, float]) -> None:
        """Called after every evaluation with its row, such as eval/episode_return."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers: nested dicts, lists and tuples of numbers, text, None, numpy arrays
        and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
