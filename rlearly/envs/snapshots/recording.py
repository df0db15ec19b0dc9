"""Record snapshots along the episodes of a teacher's policy, or of given actions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import flatten

from rlearly.core.errors import ConfigError
from rlearly.core.tree import leaves
from rlearly.envs.guard import as_float, bare, called, guarded
from rlearly.envs.snapshots.dataset import (
    COLUMNS,
    Snapshots,
    kwargs_of,
    require_at_least,
)
from rlearly.envs.state import codec
from rlearly.envs.state.action_replay import (
    InnermostWrapper,
    id_of,
    innermost,
    require_one_env,
    with_action_recorder,
)
from rlearly.envs.state.codec import encoded
from rlearly.envs.state.env_state import installed, save_unchecked
from rlearly.envs.state.save_restore import self_test
from rlearly.envs.state.serialization import to_bytes
from rlearly.envs.state.transfer import make_probe, study
from rlearly.envs.state.world import World, parts_of, prune
from rlearly.system.machine import available_bytes

log = logging.getLogger(__name__)
LARGE_BYTES = 1e9
"""Size of all snapshots above which `record` says how large they will be."""
PACKAGES = ("gymnasium", "mujoco", "dm_control", "numpy", "rlearly")


def record(
    env: gymnasium.Env,
    policy: Callable[[Any], Any],
    *,
    value: Callable[[Any], float] | None = None,
    episodes: int = 10,
    every_steps: int = 10,
    seed: int = 0,
    max_episode_steps: int = 30_000,
    provenance: Mapping[str, Any] | None = None,
    on_episode: Callable[[int, float, int], None] = lambda episode, total, steps: None,
) -> Snapshots:
    """Play a teacher's policy and keep a snapshot at each reset and every `every_steps` steps.

    >>> import gymnasium
    >>> from rlearly import record
    >>> env = gymnasium.make("Pendulum-v1")
    >>> snapshots = record(env, policy=lambda obs: [0.0], episodes=2, every_steps=50)
    >>> len(snapshots), snapshots.steps.tolist()
    (8, [0, 50, 100, 150, 0, 50, 100, 150])

    Args:
        env: wrapped as the policy needs it, not reset yet. States are those of the unwrapped env.
        policy: obs -> action.
        value: obs -> the policy's estimate of its return from there; None: unknown (NaN).
        episodes: number of episodes. Episode i is reset with a seed derived from `seed` and i.
        every_steps: calls of `env.step` between two snapshots.
        seed: at least 0.
        max_episode_steps: an episode that has not ended by then is cut there, with a warning.
        provenance: plain data to be stored with the snapshots.
        on_episode: called after each episode with its number, return and length in steps.

    Raises:
        ConfigError: an argument is out of range, or `policy` does not return an action of the env,
            or `value` does not return one finite number.
        InexactState: the env does not return to a saved state to the bit.
        UserCodeFailed: the env, `policy` or `value` raised, or the env returned something unusable.
    """
    require_at_least(
        1, episodes=episodes, every_steps=every_steps, max_episode_steps=max_episode_steps
    )
    require_at_least(0, seed=seed)
    collector = SnapshotCollector(env)

    def act(obs: Any, step: int) -> Any:
        where = f"step {step} of an episode"
        return _checked_action(called("policy", policy, obs, where=where), env.action_space)

    def estimate(obs: Any, step: int) -> float:
        where = f"step {step} of an episode"
        return np.nan if value is None else _checked_value(called("value", value, obs, where=where))

    seeds = np.random.SeedSequence(seed).generate_state(episodes)
    for episode, episode_seed in enumerate(seeds.tolist()):
        total, steps = collector.play(
            episode, episode_seed, every_steps, act, estimate, max_episode_steps
        )
        if not collector.over:
            log.warning(
                "Episode %d of %s had not ended after %d steps and was cut there: give the env a "
                "time limit (gymnasium.wrappers.TimeLimit), or record with max_episode_steps=.",
                episode,
                id_of(env.unwrapped),
                steps,
            )
        if episode == 0:
            collector.announce_size(episodes)
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
    """Snapshots of your own trajectories, by repeating their actions.

    Args:
        env: not reset yet.
        trajectories: for each episode, the seed of its reset and all its actions.
        values: values[i][t] is your estimate of the return from step t of trajectory i; None:
            unknown (NaN).
        every_steps: calls of `env.step` between two snapshots.
        provenance: plain data to be stored with the snapshots.

    Raises:
        ConfigError: an episode ends before its actions do (another env, version or seed).
        InexactState: the env does not return to a saved state to the bit.
    """
    collector = SnapshotCollector(env)
    for episode, (seed, actions) in enumerate(trajectories):
        estimates = None if values is None else values[episode]

        def act(obs: Any, step: int, actions: Sequence[Any] = actions) -> Any:
            return actions[step]

        def estimate(obs: Any, step: int, estimates: Any = estimates) -> float:
            return np.nan if estimates is None else float(estimates[step])

        _, steps = collector.play(episode, int(seed), every_steps, act, estimate, len(actions))
        if steps < len(actions):
            raise ConfigError(
                f"Trajectory {episode} has {len(actions)} actions, but its episode was over "
                f"after {steps}: they belong to another env, version or seed."
            )
    return collector.snapshots({"source": "actions"} | dict(provenance or {}))


def flattened(space: gymnasium.Space, obs: Any) -> np.ndarray:
    """[D], or [0] if observations of this space have no fixed number of numbers."""
    try:
        flat = flatten(space, obs)
    except (NotImplementedError, KeyError, TypeError, ValueError):  # text, graphs, sequences
        return np.empty(0)
    return flat if isinstance(flat, np.ndarray) else np.empty(0)


def bytes_of(tree: Any) -> int:
    """About how many bytes a tree takes."""
    return sum(leaf.nbytes if isinstance(leaf, np.ndarray) else 16 for _, leaf in leaves(tree))


def is_data(tree: Any) -> bool:
    """Whether a tree from `encoded` can be decoded without an env."""
    kinds = {
        leaf
        for path, leaf in leaves(tree)
        if path and path[-1] == codec.KIND and isinstance(leaf, str)
    }
    return not kinds & {"opaque", "function", "kept", "object", "simulator", "random", "shared"}


class OutputTap(InnermostWrapper):
    """Directly around the unwrapped env (and its action recorder): keeps the last outputs."""

    obs: Any = None
    info: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.obs, self.info = self.env.reset(**kwargs)
        return self.obs, self.info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.obs, reward, terminated, truncated, self.info = self.env.step(action)
        return self.obs, reward, terminated, truncated, self.info


class SnapshotCollector:
    """Collects snapshots of an env while it is played.

    `env` must not have been reset yet, and may have any wrappers. A further wrapper is inserted
    directly around the unwrapped env.

    Raises:
        InexactState: the env does not return to a saved state to the bit.
    """

    def __init__(self, env: gymnasium.Env):
        require_one_env(env)
        env = guarded(env)
        self.method = self_test(bare(env))
        self.transfer = study(env, self.method)
        self.world = World(self.transfer.reference, self.transfer.changed)
        self.probe = make_probe(env, self.method)
        wrapped = with_action_recorder(env) if self.method == "replay" else env
        self.env, self.tap = innermost(wrapped, OutputTap)
        self.space = self.tap.observation_space
        self.rows: list[dict[str, Any]] = []
        self.bytes = 0
        self.memory_bytes = available_bytes()
        self.over = False  # whether the last episode ended by itself

    def take(self, *, step: int, episode: int, value: float, reward: float, so_far: float) -> None:
        """Take a snapshot now. `reward`: of the last step; `so_far`: the return up to here.

        Raises:
            ConfigError: the snapshots take more than half of the memory that was available.
        """
        state = save_unchecked(self.tap.env, self.method)
        if self.transfer.reference is not None:
            self.world.look(state.simulator)
            state = replace(state, simulator=self._pruned(state.simulator))
        record = {
            "state": state.to_tree(),
            "observation": encoded(self.tap.obs),
            "info": {key: encoded(item) for key, item in self.tap.info.items()},
        }
        record["info"] = {key: item for key, item in record["info"].items() if is_data(item)}
        self.bytes += bytes_of(record)
        if self.bytes > self.memory_bytes / 2:
            raise ConfigError(
                f"{len(self.rows) + 1} snapshots of {id_of(self.env.unwrapped)} already take "
                f"{self.bytes / 1e9:.1f} GB, half of the memory that was available: record fewer, "
                "with a larger every_steps or fewer episodes."
            )
        self.rows.append(
            {
                "record": record,
                "observations": flattened(self.space, self.tap.obs),
                "values": value,
                "rewards": reward,
                "returns_to_go": -so_far,
                "returns": 0.0,
                "steps": step,
                "episodes": episode,
            }
        )

    def _pruned(self, tree: Any) -> Any:
        return prune(tree, parts_of(self.world.changed))

    def announce_size(self, episodes: int) -> None:
        """Warn if as many episodes like those so far will take a lot of memory and disk."""
        expected = self.bytes * episodes
        if expected > LARGE_BYTES:
            log.warning(
                "%d episodes like this one make about %.1f GB of snapshots; a larger every_steps "
                "or fewer episodes make less.",
                episodes,
                expected / 1e9,
            )

    def end_episode(self, first: int, total: float) -> None:
        """Fill in the episode's return for the snapshots from number `first` on."""
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
        max_steps: float = math.inf,
    ) -> tuple[float, int]:
        """Play one episode to its end, or for `max_steps`: (return, steps).

        `act` and `value` are called with the observation and the step.
        """
        obs, _ = self.env.reset(seed=seed)
        first, total, reward, step, over = len(self.rows), 0.0, 0.0, 0, False
        while not over and step < max_steps:
            action = act(obs, step)
            if step % every_steps == 0:
                estimate = value(obs, step)
                self.take(step=step, episode=episode, value=estimate, reward=reward, so_far=total)
            obs, reward, terminated, truncated, _ = self.env.step(action)
            reward = as_float(reward)
            total += reward
            step += 1
            over = bool(terminated or truncated)
        self.over = over
        self.end_episode(first, total)
        return total, step

    def snapshots(self, provenance: Mapping[str, Any]) -> Snapshots:
        """All snapshots taken so far.

        Raises:
            ConfigError: there are none.
        """
        if not self.rows:
            raise ConfigError("No snapshot was taken: expected at least one episode.")
        columns = {}
        for name, dtype in COLUMNS.items():
            column = np.stack([np.asarray(row[name]) for row in self.rows])
            columns[name] = column if dtype is None else column.astype(dtype)
        base = self.env.unwrapped
        self.transfer.changed = self.world.changed
        records = []
        for row in self.rows:
            state = row["record"]["state"]
            if self.transfer.reference is not None:
                state["simulator"] = self._pruned(self.transfer.whole(state["simulator"]))
            records.append(to_bytes(row["record"]))
        return Snapshots(
            records=records,
            common=to_bytes({"transfer": self.transfer.to_tree(), "probe": self.probe}),
            env_id=id_of(base),
            kwargs=kwargs_of(base),
            versions={package: version for package in PACKAGES if (version := installed(package))},
            provenance={"recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            | dict(provenance),
            **columns,
        )


def _checked_action(action: Any, space: gymnasium.Space) -> Any:
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


def _checked_value(value: Any) -> float:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # text, a ragged list, a tensor with a gradient
        array = np.full(2, np.nan)
    if array.size != 1 or not np.isfinite(array).all():
        raise ConfigError(
            f"value: expected one finite number for an observation, received {value}."
        )
    return array.item()
