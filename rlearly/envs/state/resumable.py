"""The training loop's env, which resumes in mid-episode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import copy_observation
from rlearly.envs.guard import as_float
from rlearly.envs.state.action_replay import (
    InexactState,
    with_action_recorder,
)
from rlearly.envs.state.between_episodes import keeps_nothing, kept_by, own_parts, take_over
from rlearly.envs.state.env_state import restore_own_states, save_own_states
from rlearly.envs.state.save_restore import EnvState, method_of, restore, save
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes
from rlearly.system.seeding import episode_seed

log = logging.getLogger(__name__)


class ResumableEnv(gymnasium.Wrapper):
    """An env in which each episode follows from its own seed and the actions taken.

    `reset()` draws the episode's seed from `generator`. `state_dict()` includes the env in
    mid-episode, so that a resumed run continues to the bit.

    Args:
        make_another: makes a new env built alike. An env that is restored by repeating an episode's
            actions lacks what it kept from earlier episodes. That is put back, apart from the
            parts in which two new envs differ (see `own_parts`). None: nothing is put back.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        generator: np.random.Generator,
        make_another: Callable[[], gymnasium.Env] | None = None,
    ):
        super().__init__(with_action_recorder(env) if method_of(env) == "replay" else env)
        self.generator = generator
        self.make_another = make_another
        self.seed: int | None = None
        self.obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.seed = episode_seed(self.generator) if seed is None else seed
        self.obs, info = self.env.reset(seed=self.seed, options=options)
        return self.obs, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        return self.obs, as_float(reward), bool(terminated), bool(truncated), info

    def state_dict(self) -> dict[str, Any]:
        """The generator and, within an episode, the EnvState's bytes as one array.

        "kept" is what the env keeps from one episode to the next, as bytes, or None if it is known
        to keep nothing: evaluations of the checkpoint need it.

        If the env cannot be saved, a warning is logged and "episode" is None. "wrappers" holds the
        states of wrappers that have a `state_dict`, such as SnapshotRL's phase, once more: they
        outlive an env that cannot be restored.
        """
        episode, wrappers = None, None
        if self.seed is not None:
            own = {"wrappers": save_own_states(self.env)}
            wrappers = np.frombuffer(to_bytes(own), np.uint8) if own["wrappers"] else None
            try:
                episode = np.frombuffer(save(self.env).to_bytes(), np.uint8)
            except InexactState as error:
                log.warning("A resumed run would begin a new episode: %s", error)
        return {
            "generator": self.generator.bit_generator.state,
            "seed": self.seed,
            "episode": episode,
            "wrappers": wrappers,
            "kept": self.kept_state(),
            "obs": None if self.obs is None else copy_observation(self.obs),
        }

    def kept_state(self) -> np.ndarray | None:
        """What the env keeps from one episode to the next, as bytes; None: it keeps nothing."""
        if keeps_nothing(self.env):
            return None
        return np.frombuffer(to_bytes(kept_by(self.env)), np.uint8)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the saved episode and step; `obs` is then its observation.

        If the env does not reach that state (it keeps something from one episode to the next, or a
        package has changed), a warning is logged and `obs` is None: the caller starts a new
        episode. Wrappers that have a `state_dict` return to their states nevertheless, and the env
        takes over what it kept from one episode to the next, as far as that is data.
        """
        self.generator.bit_generator.state = state["generator"]
        self.seed, self.obs = None, None
        if state["seed"] is None:
            return
        put_back = self._put_back_kept(state)
        try:
            if state.get("episode") is None:
                raise InexactState("The checkpoint does not hold its episode.")
            saved = EnvState.from_bytes(state["episode"].tobytes())
            restore(self.env, saved)
            if saved.method == "replay":
                put_back()
        except (ConfigError, DamagedState) as error:
            if state.get("wrappers") is not None:
                saved = from_bytes(state["wrappers"].tobytes())
                restore_own_states(self.env, saved["wrappers"])
            put_back()
            log.warning(
                "The env did not return to its saved state: %s The run continues with a new "
                "episode, and is no longer bit for bit the same.",
                error,
            )
            return
        self.seed, self.obs = state["seed"], copy_observation(state["obs"])

    def _put_back_kept(self, state: Mapping[str, Any]) -> Callable[[], object]:
        """A function that puts back what the env kept between episodes; called on a new env."""
        if state.get("kept") is None or self.make_another is None:
            return lambda: None
        other = self.make_another()
        own = own_parts(self.env, other)
        other.close()
        kept = from_bytes(state["kept"].tobytes())
        return lambda: take_over(self.env, kept, own, frozen=False)
