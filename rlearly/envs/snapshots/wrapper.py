"""SnapshotRL (arXiv 2403.00673): a wrapper whose episodes start along a teacher's trajectories."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import stack_observations
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.selection import Selection as Selection
from rlearly.envs.snapshots.selection import (
    Uniform,
)
from rlearly.envs.state.action_replay import (
    InexactState,
    InnermostWrapper,
    innermost,
    with_action_recorder,
)
from rlearly.envs.state.exact import restore, self_test


class StepCounter:
    """Steps of all the envs that hold it, in one process or in a vector env's workers.

    Envs in worker processes count in the order in which they happen to run: within the vector step
    in which the phase ends, which of them still starts at a snapshot may differ from run to run.
    """

    def __init__(self) -> None:
        handle, path = tempfile.mkstemp(prefix="rlearly_steps_")
        os.write(handle, bytes(8))
        os.close(handle)
        self._open(path)
        weakref.finalize(self, _remove_own, path, os.getpid())

    def _open(self, path: str) -> None:
        self.path = path
        self._file = open(path, "r+b", buffering=0)  # noqa: PTH123, SIM115
        self._shared = mmap.mmap(self._file.fileno(), 8)

    def __getstate__(self) -> str:
        """Copies in other processes share the count; it is gone when the first one is."""
        return self.path

    def __setstate__(self, path: str) -> None:
        self._open(path)

    @property
    def steps(self) -> int:
        return int.from_bytes(self._shared[:], "little")

    @steps.setter
    def steps(self, steps: int) -> None:
        self._shared[:] = steps.to_bytes(8, "little")

    def add(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        self.steps += 1
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def _remove_own(path: str, maker: int) -> None:
    """Delete a counter's file, unless this process is a fork of the one that made it."""
    if os.getpid() == maker:
        Path(path).unlink(missing_ok=True)


class Count:
    """The same within one process: for one env, or for copies stepped in turn or in threads."""

    def __init__(self) -> None:
        self.steps = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.steps += 1


class SnapshotReset(InnermostWrapper):
    """Sits directly around the unwrapped env: a reset puts it where `choose` says.

    All wrappers above see an ordinary reset: stacks are filled, time limits and statistics start
    at zero.
    """

    def __init__(self, env: gymnasium.Env, choose: Callable[[], tuple[Any, Any] | None]):
        super().__init__(env)
        self.choose = choose

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        chosen = self.choose()
        if chosen is None:
            return obs, info
        state, obs = chosen
        restore(self.env, state, only_simulator=True)
        return obs, info


class SnapshotRL(gymnasium.Wrapper, RecordConstructorArgs):
    """For its first `until_steps` steps, the env's episodes start at a teacher's snapshots.

    >>> env = SnapshotRL(gymnasium.make("Hopper-v5"), "teacher.h5", ValueClusters(6))

    An episode that started at a snapshot is truncated, never terminated, `truncate_steps` steps
    later (STT of S3RL; None: not at all). A reset in the phase starts at a snapshot with
    `probability`, a number or a function of the steps so far. After the phase the wrapper does
    nothing. SnapshotRL is selection=Uniform(), truncate_steps=None or 1000; S3RL is
    selection=ValueClusters(6) (4 for SAC), truncate_steps=100: the paper's numbers, for students
    of a million steps.

    The snapshot's world is restored to the bit; randomness, time limits and the other wrappers
    stay this env's own. Choices are drawn from `self.np_random`, which `reset(seed=...)` seeds.
    `reset(options={"snapshot": i})` starts at snapshot i, also after the phase. The info of such a
    reset holds "snapshot" and "snapshot_value" (the teacher's); its other entries are of the
    ordinary reset before. The info of such an episode's last step holds "snapshot" too. Wrap it
    anywhere in a chain of wrappers; statistics (RecordEpisodeStatistics, SB3's Monitor) belong
    outside, where they see the truncation.

    `counter`: a StepCounter shared by the copies of a vector env (or a Count, if they are all in
    one process); None: this env's steps alone.
    `critic(obs)`: the learner's value of this wrapper's observations; with it, each episode from a
    snapshot reports |TD error| over all its steps at `discount` to the selection. Or call `report`.

    Deviations from the official code: no env is deep-copied; resets heed their seed; steps are
    counted in the instance, not the class; a student's statistics hold nothing of the teacher's.

    Raises:
        ConfigError: the snapshots do not fit the env, or a number is out of range.
        InexactState: this env does not return to its states to the bit.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        snapshots: Snapshots | str | Path,
        selection: Selection | None = None,
        truncate_steps: int | None = 100,
        until_steps: int = 100_000,
        probability: float | Callable[[int], float] = 1.0,
        counter: StepCounter | Count | None = None,
        critic: Callable[[Any], float] | None = None,
        discount: float = 0.99,
    ):
        RecordConstructorArgs.__init__(
            self,
            snapshots=snapshots,
            selection=selection,
            truncate_steps=truncate_steps,
            until_steps=until_steps,
            probability=probability,
            counter=counter,
            critic=critic,
            discount=discount,
            _disable_deepcopy=True,
        )
        if truncate_steps is not None and truncate_steps < 1:
            raise ConfigError(
                f"truncate_steps: expected None or a number of at least 1, "
                f"received {truncate_steps}."
            )
        if until_steps < 0:
            raise ConfigError(f"until_steps: expected at least 0, received {until_steps}.")
        if not callable(probability) and not 0 <= probability <= 1:
            raise ConfigError(
                f"probability: expected a number from 0 to 1 or a function of the step, received "
                f"{probability}."
            )
        self.snapshots = (
            snapshots if isinstance(snapshots, Snapshots) else Snapshots.load(snapshots)
        )
        self.snapshots.check(env)
        _prove_exact(env, self.snapshots)
        self.selection = Uniform() if selection is None else selection
        self.selection.prepare(self.snapshots)
        env, _ = innermost(env, lambda inner: SnapshotReset(inner, self._choose))
        gymnasium.Wrapper.__init__(self, env)
        self.truncate_steps = truncate_steps
        self.until_steps = until_steps
        self.probability = probability
        self.critic = critic
        self.discount = discount
        self.counter: Any = counter or Count()
        self.snapshot: int | None = None
        self._wanted: int | None = None
        self._elapsed = 0
        self._first_value = 0.0
        self._discounted = 0.0

    @property
    def in_phase(self) -> bool:
        """Whether a reset now may start at a snapshot."""
        return self.counter.steps < self.until_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        options = dict(options) if options else {}
        self._wanted = self._index(options.pop("snapshot", None))
        self.snapshot, self._elapsed = None, 0
        obs, info = self.env.reset(seed=seed, options=options or None)
        if self.snapshot is not None:
            value = float(self.snapshots.values[self.snapshot])
            info = {**info, "snapshot": self.snapshot, "snapshot_value": value}
            self._discounted = 0.0
            if self.critic is not None:
                self._first_value = float(self.critic(obs))
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.counter.add()
        if self.snapshot is not None:
            self._discounted += self.discount**self._elapsed * float(reward)
            self._elapsed += 1
            if self._elapsed == self.truncate_steps and not terminated:
                truncated = True
            if terminated or truncated:
                info = {**info, "snapshot": self.snapshot}
                if self.critic is not None:
                    rest = 0.0 if terminated else float(self.critic(obs))
                    total = self._discounted + self.discount**self._elapsed * rest
                    self.report(abs(total - self._first_value))
        return obs, reward, terminated, truncated, info

    def report(self, score: float, snapshot: int | None = None) -> None:
        """Tell the selection how learning went from a snapshot, this episode's by default."""
        index = self._index(self.snapshot if snapshot is None else snapshot)
        if index is not None:
            self.selection.report(index, score)

    def _choose(self) -> tuple[Any, Any] | None:
        index = self._wanted
        if index is None and self.in_phase and self._comes_up():
            index = self.selection.choose(self.np_random)
        self.snapshot = index
        return None if index is None else self.snapshots.state(index)

    def _comes_up(self) -> bool:
        """Draws only if there is something to draw."""
        probability = self.probability
        if callable(probability):
            probability = float(probability(self.counter.steps))
        return probability >= 1 or (probability > 0 and self.np_random.random() < probability)

    def _index(self, index: Any) -> int | None:
        if index is not None and not 0 <= int(index) < len(self.snapshots):
            raise ConfigError(
                f"snapshot: expected a number from 0 to {len(self.snapshots) - 1}, "
                f"received {index}."
            )
        return None if index is None else int(index)

    def state_dict(self) -> dict[str, Any]:
        """Where the phase and the running episode are."""
        return {
            "steps": self.counter.steps,
            "snapshot": self.snapshot,
            "elapsed": self._elapsed,
            "first_value": self._first_value,
            "discounted": self._discounted,
            "selection": self.selection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counter.steps = state["steps"]
        self.snapshot = state["snapshot"]
        self._elapsed = state["elapsed"]
        self._first_value = state["first_value"]
        self._discounted = state["discounted"]
        self.selection.load_state_dict(state["selection"])


def _prove_exact(env: gymnasium.Env, snapshots: Snapshots) -> None:
    """See this very env return to a state by the snapshots' method."""
    wanted = snapshots.state(0)[0].method
    proved = self_test(env.unwrapped)
    if proved != wanted:
        raise InexactState(
            f"The snapshots of {snapshots.env_id} restore by the method {wanted!r}, and this env "
            f"is exact by {proved!r} only: record them again in an env that is made like it."
        )
    if wanted == "replay":
        with_action_recorder(env)


def student_clusters(agent: str) -> int:
    """The paper's number of clusters for a student: 4 for SAC, 6 for the others."""
    return 4 if agent == "sac" else 6


def numpy_critic(value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], float]:
    """A critic of one observation from an agent's `value` of many."""
    return lambda obs: float(value(stack_observations([obs]))[0])
