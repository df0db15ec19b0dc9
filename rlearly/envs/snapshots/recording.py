"""TODO."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import flatten

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import COLUMNS, Snapshots, kwargs_of, refuse_vector
from rlearly.envs.state import codec
from rlearly.envs.state.action_replay import (
    InnermostWrapper,
    id_of,
    innermost,
    with_action_recorder,
)
from rlearly.envs.state.save_restore import installed, save, self_test
from rlearly.envs.state.serialization import to_bytes

# --- made from a teacher ---


class ObservationTap(InnermostWrapper):
    """Sits directly around the unwrapped env (and its recording) and remembers what it said."""

    obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.obs, info = self.env.reset(seed=seed, options=options)
        return self.obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        return self.obs, reward, terminated, truncated, info


class SnapshotCollector:
    """Gathers snapshots of an env while somebody plays it, wrapped as they like.

    `env` must not have been reset yet; it is watched from now on, in place. The env is first seen
    to return to its states to the bit.

    Raises:
        InexactState: it does not.
    """

    def __init__(self, env: gymnasium.Env):
        refuse_vector(env)
        self.method = self_test(env.unwrapped)
        wrapped = with_action_recorder(env) if self.method == "replay" else env
        self.env, self.watch = innermost(wrapped, ObservationTap)
        self.space = self.watch.observation_space
        self.rows: list[dict[str, Any]] = []

    def note(self, *, step: int, episode: int, value: float, reward: float, so_far: float) -> None:
        """Take a snapshot of the env as it is, `reward` after the last step, `so_far` in all."""
        state = save(self.watch.env, self.method)
        observation = codec.Encoder().encode(self.watch.obs, "observation")
        self.rows.append(
            {
                "record": to_bytes({"state": state.to_tree(), "observation": observation}),
                "observations": np.asarray(flatten(self.space, self.watch.obs)),
                "values": value,
                "rewards": reward,
                "returns_to_go": -so_far,
                "returns": 0.0,
                "steps": step,
                "episodes": episode,
            }
        )

    def end_episode(self, first: int, total: float) -> None:
        """Tell the snapshots from number `first` on what their episode returned."""
        for row in self.rows[first:]:
            row["returns"] = total
            row["returns_to_go"] += total

    def play(
        self,
        episode: int,
        seed: int,
        every_steps: int,
        act: Callable[[Any, int], Any],
        value: Callable[[Any, int], float],
    ) -> tuple[float, int, bool]:
        """Play one episode from its seed, until it is over or `act(obs, step)` raises
        StopIteration.

        Returns (return, steps, whether it was over).
        """
        obs, _ = self.env.reset(seed=seed)
        first, total, reward, step, over = len(self.rows), 0.0, 0.0, 0, False
        while not over:
            try:
                action = act(obs, step)
            except StopIteration:
                break
            if step % every_steps == 0:
                known = value(obs, step)
                self.note(step=step, episode=episode, value=known, reward=reward, so_far=total)
            obs, reward, terminated, truncated, _ = self.env.step(action)
            reward = float(reward)
            total += reward
            step += 1
            over = terminated or truncated
        self.end_episode(first, total)
        return total, step, over

    def snapshots(self, provenance: Mapping[str, Any]) -> Snapshots:
        """All that was noted.

        Raises:
            ConfigError: nothing was.
        """
        if not self.rows:
            raise ConfigError("No snapshot was taken: expected at least one episode.")
        columns = {}
        for name, kind in COLUMNS.items():
            column = np.stack([np.asarray(row[name]) for row in self.rows])
            columns[name] = column if kind is None else column.astype(kind)
        base = self.env.unwrapped
        packages = ("gymnasium", "mujoco", "dm_control", "numpy", "rlearly")
        found = {package: installed(package) for package in packages}
        return Snapshots(
            records=[row["record"] for row in self.rows],
            env_id=id_of(base),
            kwargs=kwargs_of(base),
            versions={package: v for package, v in found.items() if v},
            provenance={"recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            | dict(provenance),
            **columns,
        )


Policy = Callable[[Any], Any]


def record(
    env: gymnasium.Env,
    policy: Policy,
    *,
    value: Callable[[Any], float] | None = None,
    episodes: int = 10,
    every_steps: int = 10,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    on_episode: Callable[[int, float, int], None] = lambda episode, total, steps: None,
) -> Snapshots:
    """Play `policy(obs) -> action` in `env` and keep every so-many-th state, the first at reset.

    `env` is as the policy wants it (any wrappers); states are of the unwrapped env. `value(obs)`
    is the policy's estimate of its return. Steps are calls of `env.step`. Episode i is reset with
    a seed that follows from `seed` and i alone.

    Raises:
        InexactState: the env cannot return to a state to the bit.
    """
    for name, number in (("episodes", episodes), ("every_steps", every_steps)):
        if number < 1:
            raise ConfigError(f"{name}: expected a number of at least 1, received {number}.")
    if seed < 0:
        raise ConfigError(f"seed: expected a whole number of at least 0, received {seed}.")
    collector = SnapshotCollector(env)
    space = env.action_space

    def act(obs: Any, step: int) -> Any:
        action = policy(obs)
        received = None
        if isinstance(action, tuple) and not isinstance(space, gymnasium.spaces.Tuple):
            received = f"a tuple of {len(action)}"
        elif isinstance(space, gymnasium.spaces.Box) and np.shape(action) != space.shape:
            received = f"the shape {np.shape(action)}"
        if received:
            raise ConfigError(
                f"policy: expected an action of {space} and nothing else, received {received}."
            )
        return action

    def known(obs: Any, step: int) -> float:
        if value is None:
            return np.nan
        number = np.asarray(value(obs), dtype=np.float64)
        if number.size != 1 or not np.isfinite(number).all():
            raise ConfigError(
                f"value: expected one finite number for an observation, received {number}."
            )
        return number.item()

    seeds = np.random.SeedSequence(seed).generate_state(episodes)
    for episode, episode_seed in enumerate(seeds.tolist()):
        total, steps, _ = collector.play(
            episode,
            episode_seed,
            every_steps,
            act,
            known,
        )
        on_episode(episode, total, steps)
    return collector.snapshots(
        {"episodes": episodes, "every_steps": every_steps, "seed": seed} | dict(provenance or {})
    )


def from_actions(
    env: gymnasium.Env,
    trajectories: Iterable[tuple[int, Sequence[Any]]],
    *,
    values: Sequence[Sequence[float]] | None = None,
    every_steps: int = 10,
    provenance: Mapping[str, Any] | None = None,
) -> Snapshots:
    """Snapshots of your own trajectories: each a reset's seed and the actions taken from there.

    `values[i][t]` is your estimate of the return from step t of trajectory i; NaN if not given.

    Raises:
        ConfigError: an episode ended before its actions did (they are of another env or seed).
    """
    collector = SnapshotCollector(env)
    for episode, (seed, actions) in enumerate(trajectories):
        known = None if values is None else values[episode]

        def act(obs: Any, step: int, actions: Sequence[Any] = actions) -> Any:
            if step == len(actions):
                raise StopIteration
            return actions[step]

        def value(obs: Any, step: int, known: Any = known) -> float:
            return np.nan if known is None else float(known[step])

        _, steps, _ = collector.play(episode, int(seed), every_steps, act, value)
        if steps < len(actions):
            raise ConfigError(
                f"Trajectory {episode} has {len(actions)} actions, and its episode was over "
                f"after {steps}: they belong to another env, version or seed."
            )
    return collector.snapshots({"source": "actions"} | dict(provenance or {}))
