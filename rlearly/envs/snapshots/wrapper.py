"""SnapshotRL (arXiv 2403.00673): a wrapper that starts episodes at a teacher's snapshots.

To follow one reset: `SnapshotRL.reset` here, `SnapshotReset.reset` here, `selection.py` (which
snapshot), `dataset.py` (its saved state), `state/transfer.py` (restoring its world),
`state/world.py` (which parts), `state/codec.py` (the env's objects) and `state/simulators.py`
(MuJoCo).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rlearly.core.errors import ConfigError, UserCodeFailed
from rlearly.envs.guard import as_float, bare, guarded
from rlearly.envs.snapshots.dataset import (
    Snapshot,
    Snapshots,
    kwargs_of,
    require_at_least,
)
from rlearly.envs.snapshots.selection import (
    FollowsEpisodes,
    OrdinaryStart,
    Selection,
    Uniform,
)
from rlearly.envs.snapshots.step_counter import LocalStepCounter, StepCounter
from rlearly.envs.state.action_replay import (
    InexactState,
    InnermostWrapper,
    innermost,
    own_randomness,
    set_randomness,
    with_action_recorder,
)
from rlearly.envs.state.codec import encoded
from rlearly.envs.state.compare import first_difference
from rlearly.envs.state.generators import as_generator
from rlearly.envs.state.save_restore import self_test
from rlearly.envs.state.transfer import (
    Transfer,
    combined,
    describe,
    describe_differences,
    follow_probe,
    restore_world,
    settings_that_differ,
    study,
)
from rlearly.envs.state.world import Parts

SUCCESS = ("success", "is_success")
"""Names under which envs report in their info whether the task's goal is reached."""


class SnapshotRL(gymnasium.Wrapper, RecordConstructorArgs):
    """Start episodes at a teacher's snapshots, for the first `until_steps` steps.

    >>> import gymnasium
    >>> from rlearly import SnapshotRL, ValueClusters, record
    >>> teacher = gymnasium.make("Hopper-v5")
    >>> snapshots = record(
    ...     teacher,
    ...     policy=lambda obs: teacher.action_space.sample(),
    ...     value=lambda obs: float(obs[0]),
    ...     episodes=2,
    ... )
    >>> env = SnapshotRL(gymnasium.make("Hopper-v5"), snapshots, ValueClusters(2))
    >>> obs, info = env.reset(seed=0)
    >>> 0 <= info["snapshot"] < len(snapshots)
    True

    During the phase, each reset starts at a snapshot with `probability`. Such an episode is
    truncated after `truncate_steps` steps unless it terminates first (student trajectory
    truncation, STT, of S3RL). After the phase the wrapper changes nothing. SnapshotRL is
    `Uniform()` with truncate_steps=None or 1000. S3RL is `ValueClusters(6)` (4 for SAC) with
    truncate_steps=100. These are the numbers of the paper, for students of a million steps.

    The world of the snapshot is restored to the bit: all that resets and steps of the env change,
    as found by playing it. What they never change stays this env's: its arguments, reward weights,
    difficulty, tables. So do its random generators, counters that go on from one episode to the
    next and on which the episode does not depend, time limits and all other wrappers, which see an
    ordinary reset. `describe()` lists what is taken and what stays.

    Choices are drawn from `self.np_random`, which `reset(seed=...)` seeds. With
    `reset(options={"snapshot": i})` the episode starts at snapshot i, also after the phase. The
    info of a reset at a snapshot is what the env reported there, with "snapshot" (its index) and
    "snapshot_value" (the teacher's value). The info of the last step of such an episode holds
    "snapshot" too.

    A rule may also choose an ordinary start of a seed of its own (`ReverseForward` does). The env
    is then reset twice: the start follows from that seed, and everything random after it from this
    env's own generators. The info of such a reset holds "start_seed".

    A rule that follows episodes is told whether each one succeeded: by `success`, or by
    info["success"] or info["is_success"] of its last step. An episode that a wrapper outside this
    one truncates is not reported, so a TimeLimit belongs inside.

    The wrapper may be anywhere in a chain of wrappers. Statistics (RecordEpisodeStatistics, SB3's
    Monitor) belong outside it, where they see the truncation.

    Args:
        env: one gymnasium env, built like the teacher's.
        snapshots: `Snapshots`, or the path of a file of them.
        selection: rule that chooses the snapshot; None: `Uniform()`.
        truncate_steps: length in steps of an episode that starts at a snapshot; None: no limit.
        until_steps: length of the phase in steps, as counted by `counter`.
        probability: of starting at a snapshot, in [0, 1], or a function of the steps so far.
        counter: a `StepCounter` shared by the envs of a vector env, or a `LocalStepCounter` if they
            are all in one process; None: count this env's steps alone.
        critic: the learner's value of one observation of this wrapper. If given, each episode from
            a snapshot reports its |TD error| over all its steps to the selection. Without it, you
            may call `report` yourself.
        discount: per step, for that TD error.
        keep: names of attributes that stay this env's although episodes change them, as
            "task.level".
        take: names of attributes that come from the snapshot although no episode changes them.
        success: whether an episode succeeded, from its last step's info; None: as described above.

    Raises:
        ConfigError: the snapshots do not fit the env, or an argument is out of range.
        InexactState: this env does not return to its saved states to the bit.
        UserCodeFailed: the env raised, or returned something unusable; steps and resets too.

    Deviations from the official code: no env is deep-copied; resets respect their seed; steps are
    counted per instance, not in the class; a student's statistics do not include the teacher's.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        snapshots: Snapshots | str | Path,
        selection: Selection | None = None,
        truncate_steps: int | None = 100,
        until_steps: int = 100_000,
        probability: float | Callable[[int], float] = 1.0,
        counter: StepCounter | LocalStepCounter | None = None,
        critic: Callable[[Any], float] | None = None,
        discount: float = 0.99,
        keep: Sequence[str] = (),
        take: Sequence[str] = (),
        success: Callable[[Mapping[str, Any]], bool] | None = None,
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
            keep=keep,
            take=take,
            success=success,
            _disable_deepcopy=True,
        )
        require_at_least(1, truncate_steps=truncate_steps)
        require_at_least(0, until_steps=until_steps)
        if not callable(probability) and not 0 <= probability <= 1:
            raise ConfigError(
                f"probability: expected a number from 0 to 1 or a function of the step, received "
                f"{probability}."
            )
        self.snapshots = (
            snapshots if isinstance(snapshots, Snapshots) else Snapshots.load(snapshots)
        )
        self.snapshots.check(env)
        env = guarded(env)
        self.transfer, self.parts, self.differences = _prove_transfer(
            env, self.snapshots, keep, take
        )
        self.selection = Uniform() if selection is None else selection
        self.selection.prepare(self.snapshots)
        env, _ = innermost(
            env, lambda inner: SnapshotReset(inner, self._choose, self.transfer, self.parts)
        )
        gymnasium.Wrapper.__init__(self, env)
        self.truncate_steps = truncate_steps
        self.until_steps = until_steps
        self.probability = probability
        self.critic = critic
        self.discount = discount
        self.success = success
        self.counter: Any = counter or LocalStepCounter()
        self.snapshot: int | None = None  # at which the running episode started
        self.start_seed: int | None = None  # of the running episode's ordinary start
        self._requested: int | None = None
        self._elapsed = 0
        self._return = 0.0
        self._first_value = 0.0
        self._discounted_return = 0.0

    @property
    def in_phase(self) -> bool:
        """Whether a reset now may start at a snapshot."""
        return self.counter.steps < self.until_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        options = dict(options) if options else {}
        self._requested = self._checked_index(options.pop("snapshot", None))
        self.snapshot, self.start_seed, self._elapsed, self._return = None, None, 0, 0.0
        obs, info = self.env.reset(seed=seed, options=options or None)  # ends in SnapshotReset
        if self.start_seed is not None:
            own = own_randomness(self.unwrapped)
            obs, info = self.env.reset(seed=self.start_seed, options=options or None)
            set_randomness(self.unwrapped, own)
            info = {**info, "start_seed": self.start_seed}
        if self.snapshot is not None:
            value = float(self.snapshots.values[self.snapshot])
            info = {**info, "snapshot": self.snapshot, "snapshot_value": value}
            self._discounted_return = 0.0
            if self.critic is not None:
                self._first_value = float(self.critic(obs))
        return obs, info

    def describe(self) -> str:
        """What a reset at a snapshot takes from it and what stays this env's, in a few lines."""
        lines = describe(self.unwrapped, self.transfer, self.parts)
        return "\n".join([*lines, *self.differences])

    def _choose(self) -> Snapshot | None:
        """The snapshot at which this reset starts; None: an ordinary start."""
        if self.start_seed is not None:  # this is the second reset, with that seed
            return None
        index = self._requested
        if index is None and self.in_phase and self._starts_at_a_snapshot():
            choice = self.selection.choose(as_generator(self.np_random))
            if isinstance(choice, OrdinaryStart):
                self.start_seed = choice.seed
                return None
            index = self._chosen_index(choice)
        self.snapshot = index
        return None if index is None else self.snapshots.snapshot(index)

    def _starts_at_a_snapshot(self) -> bool:
        probability = self.probability
        if callable(probability):
            probability = float(probability(self.counter.steps))
        if not 0 < probability < 1:  # then nothing is drawn from `np_random`
            return probability >= 1
        return as_generator(self.np_random).random() < probability

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.counter.add()
        if self.snapshot is None and self.start_seed is None:
            return obs, reward, terminated, truncated, info
        self._return += as_float(reward)
        self._discounted_return += self.discount**self._elapsed * as_float(reward)
        self._elapsed += 1
        if self.snapshot is not None and self._elapsed == self.truncate_steps and not terminated:
            truncated = True
        if terminated or truncated:
            self._tell_selection(info)
        if self.snapshot is not None and (terminated or truncated):
            info = {**info, "snapshot": self.snapshot}
            if self.critic is not None:
                last_value = 0.0 if terminated else float(self.critic(obs))
                target = self._discounted_return + self.discount**self._elapsed * last_value
                self.report(abs(target - self._first_value))
        return obs, reward, terminated, truncated, info

    def _tell_selection(self, info: Mapping[str, Any]) -> None:
        """Report the episode that has just ended to a rule that follows episodes."""
        if not isinstance(self.selection, FollowsEpisodes):
            return
        reported = next((info[name] for name in SUCCESS if info.get(name) is not None), None)
        succeeded = reported if self.success is None else self.success(info)
        start: Any = self.snapshot if self.start_seed is None else OrdinaryStart(self.start_seed)
        self.selection.episode_over(
            start,
            succeeded=None if succeeded is None else bool(succeeded),
            episode_return=self._return,
            steps=self._elapsed,
        )

    def report(self, score: float, snapshot: int | None = None) -> None:
        """Pass the learner's score of a snapshot (default: this episode's) to the selection."""
        index = self._checked_index(self.snapshot if snapshot is None else snapshot)
        if index is not None:
            self.selection.report(index, score)

    def _chosen_index(self, choice: Any) -> int:
        """The index that the selection rule chose."""
        whole = isinstance(choice, int | np.integer) and not isinstance(choice, bool)
        if not (whole and 0 <= choice < len(self.snapshots)):
            raise UserCodeFailed(
                f"the selection rule {type(self.selection).__name__}: choose(random) returned "
                f"{choice!r}",
                remedy=f"expected a snapshot's number from 0 to {len(self.snapshots) - 1}, or an "
                "OrdinaryStart",
            )
        return int(choice)

    def _checked_index(self, index: Any) -> int | None:
        if index is not None and not 0 <= int(index) < len(self.snapshots):
            raise ConfigError(
                f"snapshot: expected a number from 0 to {len(self.snapshots) - 1}, "
                f"received {index}."
            )
        return None if index is None else int(index)

    def state_dict(self) -> dict[str, Any]:
        """The state of the phase, the running episode and the selection."""
        return {
            "steps": self.counter.steps,
            "snapshot": self.snapshot,
            "start_seed": self.start_seed,
            "elapsed": self._elapsed,
            "return": self._return,
            "first_value": self._first_value,
            "discounted": self._discounted_return,
            "selection": self.selection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counter.steps = state["steps"]
        self.snapshot = state["snapshot"]
        self.start_seed = state["start_seed"]
        self._elapsed = state["elapsed"]
        self._return = state["return"]
        self._first_value = state["first_value"]
        self._discounted_return = state["discounted"]
        self.selection.load_state_dict(state["selection"])


class SnapshotReset(InnermostWrapper):
    """Directly around the unwrapped env: after its reset, restores the snapshot that was chosen.

    The wrappers above see an ordinary reset: frame stacks are filled, time limits and statistics
    start at zero.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        choose: Callable[[], Snapshot | None],
        transfer: Transfer,
        parts: Parts,
    ):
        super().__init__(env)
        self.choose = choose
        self.transfer = transfer
        self.parts = parts

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        chosen = self.choose()
        if chosen is not None:
            restore_world(self.env, chosen.state, self.transfer, self.parts)
            obs, info = chosen.observation, chosen.info
        return obs, info

    def state_dict(self) -> dict[str, Any]:
        """Nothing: how worlds are restored follows from the snapshots and the env."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _prove_transfer(
    env: gymnasium.Env, snapshots: Snapshots, keep: Sequence[str], take: Sequence[str]
) -> tuple[Transfer, Parts, list[str]]:
    """(the transfer, the parts that it replaces, what differs in sentences), proved in this env.

    Raises:
        ConfigError: `keep` or `take` names no attribute.
        InexactState: this env does not return to saved states by the snapshots' method, or does not
            continue as the teacher's did although no setting differs.
    """
    theirs, base = snapshots.transfer, env.unwrapped
    exact = self_test(bare(env))
    if exact != theirs.method:
        raise InexactState(
            f"The snapshots of {snapshots.env_id} are restored by the method {theirs.method!r}, "
            f"but for this env only {exact!r} is exact: record them again in an env that is made "
            "like it."
        )
    if exact == "replay":
        with_action_recorder(env)
    transfer = combined(env, theirs, study(env, exact))
    parts = transfer.parts(keep, take)
    differing = settings_that_differ(base, transfer)
    arguments, own = encoded(dict(snapshots.kwargs)), encoded(kwargs_of(base))
    for name in {*arguments, *own} if isinstance(own, dict) else ():
        one, two = own.get(name), arguments.get(name)
        if first_difference(one, two) is not None:
            differing.setdefault(f"argument {name}", (one, two))
    difference = follow_probe(env, snapshots.probe, transfer, transfer.parts())
    if difference and not differing:
        raise InexactState(
            f"An episode of this {snapshots.env_id} does not continue from a saved world as the "
            f"teacher's did, although no setting differs: {difference}; record the snapshots again "
            "in an env that is made like it."
        )
    return transfer, parts, describe_differences(differing, difference)
