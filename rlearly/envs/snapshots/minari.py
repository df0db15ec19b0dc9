"""Import snapshots from Minari datasets that carry MuJoCo's positions and velocities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.recording import SnapshotCollector
from rlearly.envs.state.action_replay import id_of

INFO_KEYS = ("qpos", "qvel")
"""Where Minari's MuJoCo datasets keep the simulator's state, in each step's infos."""


def from_minari(
    dataset: Any,
    env: gymnasium.Env | None = None,
    *,
    every_steps: int = 10,
    value: Callable[[Any], float] | None = None,
) -> Snapshots:
    """Snapshots from a Minari dataset, or its id, with qpos and qvel in its infos.

    Minari does not keep MuJoCo's whole integration state. Each snapshot is the state that
    `env.set_state(qpos, qvel)` produces; that state is then restored to the bit.

    Args:
        env: None: the dataset's own (`recover_environment`).
        every_steps: steps between two snapshots.
        value: obs -> estimate of the return from there; None: unknown (NaN).

    Raises:
        ConfigError: minari is not installed, the dataset has no simulator states, or the env
            cannot be set to them.
    """
    try:
        import minari  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Minari datasets need a package: pip install 'rlearly[minari]'."
        ) from None
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(
                f"There is no Minari dataset {dataset!r} here ({error}); fetch it with "
                f"minari download {dataset}."
            ) from None
    own: Any = dataset.recover_environment() if env is None else env
    collector = SnapshotCollector(own)
    base: Any = own.unwrapped
    if not hasattr(base, "set_state"):
        raise ConfigError(
            f"{id_of(base)} cannot be set to a dataset's positions and velocities: expected a "
            "MuJoCo env of gymnasium."
        )
    for number, episode in enumerate(dataset.iterate_episodes()):
        positions, velocities = _simulator_states(dataset, episode)
        rewards = np.asarray(episode.rewards, dtype=np.float64)
        first = len(collector.rows)
        so_far = np.concatenate([[0.0], np.cumsum(rewards)])
        collector.env.reset(seed=0)
        for step in range(0, len(rewards), every_steps):
            base.set_state(positions[step], velocities[step])
            collector.tap.obs = base._get_obs()
            collector.take(
                step=step,
                episode=number,
                value=np.nan if value is None else float(value(collector.tap.obs)),
                reward=float(rewards[step - 1]) if step else 0.0,
                so_far=float(so_far[step]),
            )
        collector.end_episode(first, float(rewards.sum()))
    return collector.snapshots({"source": f"minari {dataset.spec.dataset_id}"})


def _simulator_states(dataset: Any, episode: Any) -> Iterator[np.ndarray]:
    infos = episode.infos or {}
    if any(name not in infos for name in INFO_KEYS):
        raise ConfigError(
            f"The Minari dataset {dataset.spec.dataset_id} does not carry simulator states: "
            f"expected infos with qpos and qvel, received "
            f"{', '.join(sorted(infos)) or 'none'}; use a dataset recorded with record_infos."
        )
    return (np.asarray(infos[name], dtype=np.float64) for name in INFO_KEYS)
