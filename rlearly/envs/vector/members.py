"""The envs in a VectorEnv, each as one env that an agent sees."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, flatdim
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate

from rlearly.core.errors import OURS, ConfigError, RunFailed, UserCodeFailed, raised
from rlearly.core.spaces import copy_observation
from rlearly.core.types import EnvSpec
from rlearly.envs.guard import STEP_VALUES, guarded, misfit
from rlearly.envs.observations import state_note
from rlearly.envs.state.action_replay import InexactState
from rlearly.envs.state.between_episodes import Kept, kept_by
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes
from rlearly.envs.vector import bookkeeping
from rlearly.envs.vector.declared import (
    AUTORESET,
    autoreset_mode,
    member_actions,
    refuse_unsupported,
    vector_name,
)
from rlearly.envs.vector.infos import final_info, final_observation, member_info
from rlearly.envs.vector.workers import failed_worker, keep_interrupts_from_workers
from rlearly.envs.wrappers import (
    MaskedObservation,
    ScaledActions,
    flat,
    state_with_mask,
)
from rlearly.system.seeding import episode_seed

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs the calls of the vector env; see `rlearly.training.executors.EnvExecutor`."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]: ...

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...

    def close(self) -> None: ...


class VectorMembers:
    """Steps a VectorEnv on behalf of its members, and resets it as its autoreset mode requires.

    Every member for which `is_resetting` is False chooses an action (`choose`); the last choice
    hands one step for all of them to the executor. Each member gets the transitions of its own
    episodes, the same in each mode:

    - NEXT_STEP: the step after an episode's end resets the member. It is not a transition, and its
      observation is the next episode's first. If all members are to be reset, this step is taken
      at once, with placeholder actions.
    - SAME_STEP: the observation of an episode's last step is the next episode's first; the last
      one is in infos["final_obs"].
    - DISABLED: members whose episode has ended are reset with options={"reset_mask": mask}.

    Observations become new float32 vectors, so the vector env may reuse its arrays. Actions are
    mapped from [-1, 1] to the members' own space.

    The envs in a SyncVectorEnv become `ResumableEnv`s: each episode has its own seed, drawn from
    `generators`, as in a run with num_envs=N, and is saved in a checkpoint. An AsyncVectorEnv gets
    one seed for each member that a reset begins an episode of; any other vector env gets one number
    at its first reset. Episodes that begin by themselves follow from the envs' own generators.

    Args:
        vector: it is reset at once.
        generators: one per member, for the seeds of its episodes.
        executor: runs the calls of the vector env, which may be in another thread.

    Raises:
        ConfigError: its spaces or its mode are not supported.
        UserCodeFailed: a call raised, or returned something unusable. The message names the member
            if it is known.
    """

    def __init__(
        self, vector: VectorEnv, generators: Sequence[np.random.Generator], executor: Executor
    ):
        self.vector = vector
        self.base: Any = vector.unwrapped
        self.name = vector_name(vector)
        self.num_envs = int(vector.num_envs)
        self.generators = generators
        self.executor = executor
        self.mode, self.notes = autoreset_mode(vector)
        self._actions = member_actions(vector, self.name)
        self._observation: Any = vector.single_observation_space
        refuse_unsupported(self._observation, self.name)
        self.obstacle = bookkeeping.obstacle(vector)
        self._original_envs: list[gymnasium.Env] = []
        self._chosen: list[Any] = [None] * self.num_envs
        self._choices = 0
        self._result: Callable[[], None] | None = None  # takes the step that was chosen
        self._steps: list[Any] = [None] * self.num_envs  # each member's part of the newest step
        self._first: list[Any] = [None] * self.num_envs  # (obs, info) not yet returned by a reset
        self._ended = np.zeros(self.num_envs, bool)  # their episode is over and they are not reset
        self.mask_size = 0
        keep_interrupts_from_workers(self.base)
        try:
            if type(self.base) is SyncVectorEnv:
                self._original_envs = list(self.base.envs)
                self.base.envs[:] = map(self._resumable, range(self.num_envs))
            self.executor.run(self._reset_all)
            self.mask_size = self._find_masks()
            self.members = [Member(self, index) for index in range(self.num_envs)]
            self.notes += self._notes()
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> EnvSpec:
        """All that an agent sees of a member."""
        size = flatdim(self._observation) + self.mask_size
        observation = Box(-np.inf, np.inf, (size,), np.float32)
        action: Any = self._actions.action_space
        return EnvSpec(observation, action, 1, action_mask=bool(self.mask_size))

    def _resumable(self, index: int) -> ResumableEnv:
        make = self.base.env_fns[index] if isinstance(self.base.env_fns, Sequence) else None
        env = guarded(self.base.envs[index], self._member(index))
        return ResumableEnv(env, self.generators[index], make and (lambda: guarded(make())))

    def _member(self, index: int) -> str:
        return f"{self.name}, member {index}"

    def _find_masks(self) -> int:
        """The number of actions, if the first infos say which ones are allowed; else 0.

        The observations at hand are completed with them.
        """
        space: Any = self._actions.action_space
        if not isinstance(space, Discrete) or "action_mask" not in self._first[0][1]:
            return 0
        self.mask_size = int(space.n)
        for index, (obs, info) in enumerate(self._first):
            self._first[index] = (self._with_mask(index, obs, info, "reset()"), info)
        return self.mask_size

    def _notes(self) -> list[str]:
        found = [state_note(self._observation, can_render=False)]
        if isinstance(self._actions, ScaledActions):
            found.append(self._actions.note)
        if self.mask_size:
            found.append(MaskedObservation.note)
        if self.obstacle:
            found.append(
                f"{self.name}: when this run is resumed, it begins new episodes: {self.obstacle}"
            )
        return [note for note in found if note]

    # --- for the members ---

    def is_resetting(self, index: int) -> bool:
        """Whether a member resets itself while others take their next step."""
        waits = self.mode is AutoresetMode.NEXT_STEP and self._ended[index]
        return bool(waits and not self._ended.all())

    def choose(self, index: int, action: np.ndarray) -> None:
        """A member's next action. With the last one, the step is handed to the executor."""
        self._chosen[index] = action
        self._choices += 1
        if self._choices == self.num_envs - int(self._ended.sum()):
            actions, self._chosen, self._choices = self._chosen, [None] * self.num_envs, 0
            self._result = self.executor.submit(self._step, actions)

    def step_of(self, index: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """A member's part of the step that was chosen."""
        if self._result is not None:
            result, self._result = self._result, None
            result()
        return self._steps[index]

    def first_of(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of a member's next episode, and its info."""
        if self._first[index] is None:
            self.executor.run(self._begin_episodes)
        found, self._first[index] = self._first[index], None
        return found

    @property
    def kept_by_first(self) -> Callable[[], Kept] | None:
        """A function that reads what the first env keeps across episodes; None: out of reach."""
        if not self._original_envs:
            return None
        return lambda: self.executor.run(kept_by, self.base.envs[0])

    def close(self) -> None:
        """Give a SyncVectorEnv its own envs back. It stays open: it is the caller's."""
        if self._original_envs:
            self.base.envs[:] = self._original_envs
        self.executor.close()

    # --- calls of the vector env ---

    def _begin_episodes(self) -> None:
        """Reset the members whose episodes have ended."""
        if self.mode is AutoresetMode.DISABLED and self._ended.any():
            mask = self._ended.copy()
            self._reset(mask, {"options": {"reset_mask": mask.copy()}, "seed": self._seeds(mask)})
        elif self._ended.all():
            self._step([None] * self.num_envs)
        else:
            self._reset_all()

    def _reset_all(self) -> None:
        everyone = np.ones(self.num_envs, bool)
        self._reset(everyone, {"seed": self._seeds(everyone, first=True)})

    def _seeds(self, mask: np.ndarray, *, first: bool = False) -> Any:
        """The seeds of a reset of some members; None where they are drawn elsewhere."""
        if self._original_envs:  # each of them draws its own
            return None
        if isinstance(self.base, AsyncVectorEnv | SyncVectorEnv):
            return [
                episode_seed(generator) if takes else None
                for generator, takes in zip(self.generators, mask.tolist(), strict=True)
            ]
        return episode_seed(self.generators[0]) if first else None

    def _reset(self, mask: np.ndarray, kwargs: dict[str, Any]) -> None:
        result = self._call("reset()", partial(self.vector.reset, **kwargs))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise self._failed("reset()", "did not return two values", "expected obs, infos")
        obs, infos = result
        self._check_infos("reset()", infos)
        rows = self._rows("reset()", obs)
        for index in map(int, np.flatnonzero(mask)):
            info = member_info(infos, index)
            first = self._with_mask(index, rows[index], info, "reset()")
            self._first[index] = (self._checked(index, first, "reset()"), info)
            self._ended[index] = False

    def _step(self, chosen: list[Any]) -> None:
        """Step all members; those with no action chosen reset themselves."""
        call = "step(actions)"
        result = self._call(call, partial(self.vector.step, self._batch(chosen)))
        if not isinstance(result, tuple | list) or len(result) != 5:
            raise self._failed(call, "did not return five values", f"expected {STEP_VALUES}")
        obs, rewards, *flags, infos = result
        self._check_infos(call, infos)
        rows = self._rows(call, obs)
        rewards = self._numbers(call, "rewards", rewards, np.float64)
        terminated, truncated = (
            self._numbers(call, name, values, bool)
            for name, values in zip(("terminations", "truncations"), flags, strict=True)
        )
        over = terminated | truncated
        for index in range(self.num_envs):
            if chosen[index] is None:
                self._accept_reset(index, rows[index], infos, bool(over[index]))
                continue
            if not math.isfinite(rewards[index]):
                did = f"returned a reward of {rewards[index]}"
                raise self._failed(call, did, "expected finite numbers", index)
            self._accept_step(
                index,
                rows[index],
                float(rewards[index]),
                bool(terminated[index]),
                bool(truncated[index]),
                infos,
            )

    def _accept_reset(self, index: int, row: np.ndarray, infos: Any, over: bool) -> None:
        """Keep the first observation of a new episode, from the step that reset a member."""
        call = "step(actions)"
        if over:
            raise self._failed(
                call,
                "ended an episode in the step after an episode's end, which in its mode NEXT_STEP "
                "only resets",
                f"declare its mode in metadata['autoreset_mode'] (see {AUTORESET})",
                index,
            )
        info = member_info(infos, index)
        first = self._with_mask(index, row, info, call)
        self._first[index] = (self._checked(index, first, call), info)
        self._ended[index] = False

    def _accept_step(
        self,
        index: int,
        row: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        infos: Any,
    ) -> None:
        """Keep a member's transition."""
        call = "step(actions)"
        over = terminated or truncated
        info = member_info(infos, index) if over or self.mask_size else {}
        if over and self.mode is AutoresetMode.SAME_STEP:
            first = self._with_mask(index, row, info, call)
            self._first[index] = (self._checked(index, first, call), info)
            row, info = self._final_row(index, infos), final_info(infos, index)
        elif over:
            self._ended[index] = True
        row = self._checked(index, self._with_mask(index, row, info, call, over), call)
        self._steps[index] = (row, reward, terminated, truncated, info)

    def _final_row(self, index: int, infos: Any) -> np.ndarray:
        """The last observation of an episode, where the member is already in the next one."""
        call = "step(actions)"
        expected = (
            "expected the episode's last observation in infos['final_obs'], as its mode SAME_STEP "
            f"says (see {AUTORESET})"
        )
        final = final_observation(infos, index, self.vector.observation_space)
        if final is None:
            raise self._failed(
                call, "ended an episode without its last observation", expected, index
            )
        wrong = misfit(final, self._observation)
        if wrong:
            did = f"returned {wrong[0]} in infos['final_obs']"
            raise self._failed(call, did, f"expected {wrong[1]}", index)
        return flat(self._observation, final)

    def _batch(self, chosen: list[Any]) -> Any:
        """The vector env's actions; a member that resets itself gets 0, the middle of a Box."""
        space: Any = self._actions.action_space
        unused = np.int64(0) if isinstance(space, Discrete) else np.zeros(space.shape, np.float32)
        actions = [unused if action is None else action for action in chosen]
        if any(action.dtype.kind == "f" and np.isnan(action).any() for action in actions):
            raise RunFailed("learning diverged: an action is nan in a training step", diverged=True)
        own: Any = self.vector.action_space
        return np.stack([self._actions.action(action) for action in actions]).astype(own.dtype)

    def _call(self, call: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except OURS:
            raise
        except BaseException as error:
            failed = self._failed(call, raised(error), index=failed_worker(self.base))
            raise failed from error

    # --- checks ---

    def _rows(self, call: str, obs: Any) -> list[np.ndarray]:
        """Each member's observation as a new float32 vector."""
        space: Any = self.vector.observation_space
        wrong = misfit(obs, space)
        if wrong:
            received, expected = wrong
            raise self._failed(
                call,
                f"returned observations of {received}",
                f"expected {expected}, as its observation_space says",
            )
        return [flat(self._observation, one) for one in iterate(space, obs)]

    def _numbers(self, call: str, name: str, values: Any, dtype: Any) -> np.ndarray:
        """An array [N] of numbers or truth values."""
        try:
            array = np.asarray(values)
        except Exception:  # a ragged list, or a tensor that numpy cannot read
            array = np.asarray(None)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "biuf":
            did = f"returned {name} of {array.dtype} {list(array.shape)}"
            raise self._failed(call, did, f"expected {self.num_envs} of them")
        return array.astype(dtype)

    def _check_infos(self, call: str, infos: Any) -> None:
        listed = isinstance(infos, list | tuple) and len(infos) == self.num_envs
        if not isinstance(infos, Mapping) and not listed:
            did = f"returned infos of the type {type(infos).__name__}"
            raise self._failed(call, did, "expected a dict, or a list of one dict per member")

    def _checked(self, index: int, row: np.ndarray, call: str) -> np.ndarray:
        if not math.isfinite(row.dot(row)) and not np.isfinite(row).all():
            did = "returned an observation that is not finite"
            raise self._failed(call, did, "expected finite numbers", index)
        return row

    def _with_mask(
        self, index: int, row: np.ndarray, info: dict[str, Any], call: str, over: bool = False
    ) -> np.ndarray:
        """The state with the mask of actions after it, if infos have one."""
        if not self.mask_size:
            return row
        shape = (self.mask_size,)
        return state_with_mask(row, info, shape, self._member(index), call, over=over)

    def _failed(
        self, call: str, did: str, remedy: str = "", index: int | None = None
    ) -> UserCodeFailed:
        who = self.name if index is None else self._member(index)
        return UserCodeFailed(f"env={who}: {call} {did}", remedy=remedy)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """The state of all members; see `load_state_dict`.

        "members" holds each env's state if they are in this process, and None otherwise. "kept" is
        what the first one keeps between episodes (see `ResumableEnv.state_dict`).
        """
        members, kept, own = None, None, None
        if self._original_envs:
            members = [env.state_dict() for env in self.base.envs]
            kept = members[0]["kept"]
            if self.obstacle is None:
                own = np.frombuffer(to_bytes(bookkeeping.save(self.vector)), np.uint8)
        return {
            "kept": kept,
            "members": members,
            "own": own,
            "generators": [generator.bit_generator.state for generator in self.generators],
            "ended": self._ended.tolist(),
            "first": [None if first is None else first[0].copy() for first in self._first],
            "obs": [None if m.obs is None else copy_observation(m.obs) for m in self.members],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the saved episodes of all members, or warn and begin new ones.

        Members then have their observations, or None where an episode is to begin.
        """
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self.executor.run(self._restore, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self._restore_exactly(state)
        except (ConfigError, DamagedState) as error:
            log.warning(
                "The vector env did not return to its saved state: %s The run continues with new "
                "episodes, and is no longer bit for bit the same.",
                error,
            )
            self._first = [None] * self.num_envs
            self._reset_all()
            for member in self.members:
                member.obs = None

    def _restore_exactly(self, state: Mapping[str, Any]) -> None:
        if state["members"] is None or state["own"] is None or self.obstacle is not None:
            why = self.obstacle or "it was not saved"
            raise InexactState(f"{why[0].upper()}{why[1:]}.")
        for env, saved in zip(self.base.envs, state["members"], strict=True):
            env.load_state_dict(saved)
        lost = [i for i, env in enumerate(self.base.envs) if env.seed is None]
        if lost:
            raise InexactState(f"Member {lost[0]} could not return to its episode.")
        bookkeeping.restore(self.vector, from_bytes(state["own"].tobytes()))
        self._ended = np.array(state["ended"])
        self._first = [None if obs is None else (np.array(obs), {}) for obs in state["first"]]
        for member, obs in zip(self.members, state["obs"], strict=True):
            member.obs = None if obs is None else np.array(obs)


class Member(gymnasium.Env):
    """One env of a VectorEnv, as an agent sees it. The executor must be a `MemberExecutor`.

    obs: its newest observation.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, vector: VectorMembers, index: int):
        self.vector = vector
        self.index = index
        spec = vector.spec
        self.observation_space = spec.observation
        self.action_space = spec.action
        self.obs: np.ndarray | None = None

    def choose(self, action: np.ndarray) -> None:
        self.vector.choose(self.index, action)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of the next episode; the vector env has its own seeds."""
        self.obs, info = self.vector.first_of(self.index)
        return self.obs, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The result of the action that was chosen last."""
        result = self.vector.step_of(self.index)
        self.obs = result[0]
        return result

    def close(self) -> None:
        if self.index == 0:
            self.vector.close()

    def state_dict(self) -> dict[str, Any]:
        """The first member's is that of the whole vector env, the others' are empty."""
        return self.vector.state_dict() if self.index == 0 else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.index == 0:
            self.vector.load_state_dict(state)


class MemberExecutor:
    """Runs the calls of a `Member`: its action is chosen at once, its step is taken later."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Choose the action of `function(member, action, ...)`; the result calls the function."""
        member, action = args[:2]
        member.choose(action)
        return partial(function, *args)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def close(self) -> None:
        """Does nothing: `VectorMembers` closes its own executor."""
