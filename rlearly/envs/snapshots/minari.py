"""Import snapshots from Minari datasets that carry MuJoCo's positions and velocities."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, flatdim, flatten, unflatten

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots, kwargs_of, require_at_least
from rlearly.envs.snapshots.recording import SnapshotCollector
from rlearly.envs.state.action_replay import id_of, require_one_env

log = logging.getLogger(__name__)

QPOS, QVEL = "qpos", "qvel"
"""Where Minari's MuJoCo datasets keep the simulator's state, in each step's infos."""
GOAL = "desired_goal"
SAME = 1e-6
"""Relative difference of two numbers that are equal except for rounding."""
TOLERANCE = 1e-3
"""Relative difference allowed in what does not follow from qpos and qvel alone: observed forces,
observed positions that lag behind, and the state to which a recorded action leads."""
PROBED_ROWS = 20


def from_minari(
    dataset: Any,
    env: gymnasium.Env | None = None,
    *,
    every_steps: int = 10,
    value: Callable[[Any], float] | None = None,
) -> Snapshots:
    """Snapshots from a Minari dataset, or its id, with qpos and qvel in its infos.

    Each episode's actions are repeated from its first recorded state. Wherever the env's qpos or
    qvel differs from the recorded one, the recorded one is written. It does not differ, and then
    the whole state is the recorded one to the bit, if env, MuJoCo and machine are as they were
    and infos begin at the reset. Every snapshot's observation is compared with the recorded one.

    The infos of an episode of T steps may have T + 1 rows, or T if its reset, or its last step,
    had none. Which of the two is found out by comparing observations. Without infos of the reset
    there is no snapshot of step 0. Infos may be nested, also by their names ("infos/qpos").

    A maze's goal is the one that the next step observes: a maze that is solved moves its goal
    after it has observed the old one. Adroit's tasks need all that their `set_env_state` takes.

    Args:
        env: None: the dataset's own (`recover_environment`).
        every_steps: steps between two snapshots.
        value: obs -> estimate of the return from there; None: unknown (NaN).

    Raises:
        ConfigError: minari is not installed, or the dataset has no simulator states, is incomplete
            or of another env, or the env cannot be set to its states or observes them differently.
        InexactState: the env does not return to a saved state to the bit.
    """
    require_at_least(1, every_steps=every_steps)
    dataset = _loaded(dataset)
    label = f"The Minari dataset {dataset.spec.dataset_id}"
    own = _recovered(dataset, label) if env is None else env
    require_one_env(own)
    _check_origin(dataset, own, label)
    world = _World(own, label)
    for number, data in enumerate(dataset.iterate_episodes()):
        episode = _Episode(data, number, dataset.observation_space, world.keys, label)
        if episode.steps:
            world.play(episode, every_steps, value)
    if world.deviation > TOLERANCE:
        log.warning(
            "%s: in this %s its actions lead to other states than the recorded ones (qpos differs "
            "by up to %.2g after one step). The snapshots are the recorded states, but the "
            "rewards and returns are those of the env that they were recorded in.",
            label,
            id_of(own.unwrapped),
            world.deviation,
        )
    return world.collector.snapshots({"source": f"minari {dataset.spec.dataset_id}"})


class _Episode:
    """One episode of a dataset, its lengths checked. Steps count from the reset, 0 to `steps`.

    Attributes:
        states: the simulator's state and the task's, by name, in `rows` rows.
        first: the step that row 0 of `states` belongs to.
    """

    def __init__(
        self, data: Any, number: int, space: gymnasium.Space, keys: Sequence[str], label: str
    ):
        self.number, self.space = number, space
        self.label = f"{label}, episode {number}"
        self.rewards = np.asarray(data.rewards, dtype=np.float64)
        self.actions, self.observations = data.actions, data.observations
        infos = dict(_leaves(data.infos or {}))
        found = {key: _named(infos, key) for key in keys}
        missing = [key for key, path in found.items() if path is None]
        if missing:
            raise ConfigError(
                f"{self.label} does not carry simulator states: expected infos with "
                f"{' and '.join(keys)}, received {', '.join(sorted(infos)) or 'none'}; use a "
                "dataset recorded with them (DataCollector(..., record_infos=True))."
            )
        self.states = {key: np.asarray(infos[path]) for key, path in found.items() if path}
        self.rows = len(self.states[QPOS])
        self.first = 0
        steps = self.steps = len(self.rewards)
        allowed: dict[str, tuple[int, Sequence[int]]] = {
            "actions": (_length(self.actions), (steps,)),
            "observations": (_length(self.observations), (steps + 1,)),
        }
        for key, values in self.states.items():
            allowed[f"infos {key}"] = (len(values), (steps + 1, steps))
        for name, (received, expected) in allowed.items():
            if received not in expected:
                raise ConfigError(
                    f"{self.label} is incomplete: expected {' or '.join(map(str, expected))} rows "
                    f"of {name} for its {steps} rewards, received {received}; leave it out "
                    "(dataset.filter_episodes)."
                )
        if len({len(values) for values in self.states.values()}) > 1:
            raise ConfigError(
                f"{self.label} is incomplete: expected infos {', '.join(self.states)} of one "
                "length; leave it out (dataset.filter_episodes)."
            )

    def state(self, step: int) -> dict[str, np.ndarray]:
        return {key: values[step - self.first] for key, values in self.states.items()}

    def observation(self, step: int) -> np.ndarray:
        """[D], flattened."""
        return np.asarray(flatten(self.space, _row(self.observations, step)), dtype=np.float64)


class _World:
    """An env that is set to the states of a dataset, and the snapshots taken there.

    Attributes:
        keys: the names of what a state consists of.
        deviation: the largest relative difference in qpos after one step from a recorded state.
    """

    def __init__(self, env: gymnasium.Env, label: str):
        self.label = label
        self.base: Any = env.unwrapped
        inner = [self.base, *(v for v in vars(self.base).values() if isinstance(v, gymnasium.Env))]
        simulated = [one.unwrapped for one in inner if hasattr(one.unwrapped, "set_state")]
        name = id_of(self.base)
        if not simulated or not hasattr(simulated[0], "_get_obs"):
            raise ConfigError(
                f"{name} cannot be set to a dataset's positions and velocities: expected a MuJoCo "
                "env of gymnasium, or a maze of gymnasium-robotics."
            )
        self.simulated: Any = simulated[0]
        space = self.base.observation_space
        self.aims = isinstance(space, Dict) and GOAL in space.spaces
        if self.simulated is not self.base and not self.aims:
            raise ConfigError(
                f"{name} cannot be set to a dataset's states: its task has a state of its own "
                "besides its inner env's qpos and qvel; record snapshots in it instead."
            )
        self.places_objects = hasattr(self.base, "set_env_state")
        own_keys = self.base._state_space.spaces if self.places_objects else ()
        self.keys = list(dict.fromkeys((QPOS, QVEL, *own_keys)))
        self.collector = SnapshotCollector(env)
        if self.collector.method == "replay":
            raise ConfigError(
                f"{name} can be restored only by repeating its actions from a seed, and the "
                "states of a dataset are written into it: record snapshots in it instead."
            )
        self.collector.env.reset(seed=0)  # a maze has no goal before
        goal: Any = getattr(self.base, "goal", None)
        if self.aims and np.shape(goal) != space[GOAL].shape:  # pyright: ignore[reportIndexIssue]
            raise ConfigError(
                f"{name} cannot be set to a dataset's goals: expected its attribute goal to have "
                f"the shape of the observed {GOAL}, as a maze's of gymnasium-robotics has."
            )
        self.deviation = 0.0

    def play(
        self, episode: _Episode, every_steps: int, value: Callable[[Any], float] | None
    ) -> None:
        """Repeat an episode and take its snapshots."""
        self._check_sizes(episode)
        if episode.rows == episode.steps:
            self._find_first(episode)
        collector, first_row = self.collector, len(self.collector.rows)
        so_far = np.concatenate([[0.0], np.cumsum(episode.rewards)])
        self._begin(episode)
        last = (episode.steps - 1) // every_steps * every_steps
        for step in range(episode.first, last + 1):
            if step > episode.first:
                collector.env.step(_row(episode.actions, step - 1))
                self._correct(episode, step)
            if step % every_steps or not self._fits(episode, step):
                continue
            collector.take(
                step=step,
                episode=episode.number,
                value=np.nan if value is None else float(value(collector.tap.obs)),
                reward=float(episode.rewards[step - 1]) if step else 0.0,
                so_far=float(so_far[step]),
            )
        collector.end_episode(first_row, float(so_far[-1]))

    def _begin(self, episode: _Episode) -> None:
        """Reset the env and set it to the episode's first recorded state."""
        self.collector.env.reset(seed=0)
        state = episode.state(episode.first)
        if self.places_objects:
            keys = self.base._state_space.spaces
            self.base.set_env_state({key: state[key].astype(np.float64) for key in keys})
        self.simulated.set_state(state[QPOS], state[QVEL])
        self._look(episode, episode.first)
        self._aim(episode, episode.first + 1)

    def _correct(self, episode: _Episode, step: int) -> None:
        """After a step: write the recorded qpos and qvel if the env's are different."""
        data, state = self.simulated.data, episode.state(step)
        pairs = [(data.qpos, state[QPOS]), (data.qvel, state[QVEL])]
        if not all(np.array_equal(is_.astype(to.dtype), to) for is_, to in pairs):
            self.deviation = max(self.deviation, float(_difference(data.qpos, state[QPOS]).max()))
            for is_, to in pairs:
                is_[:] = to
            self._look(episode, step)
        self._aim(episode, min(step + 1, episode.steps))

    def _look(self, episode: _Episode, step: int) -> None:
        """Observe without a step. The last info belongs to another state."""
        self._aim(episode, step)
        self.collector.tap.info = {}
        obs = self.simulated._get_obs()
        obs = obs[0] if isinstance(obs, tuple) else obs
        self.collector.tap.obs = obs if self.simulated is self.base else self.base._get_obs(obs)

    def _aim(self, episode: _Episode, step: int) -> None:
        """Set the goal to the one observed at a step."""
        if not self.aims:
            return
        obs: Any = unflatten(self.base.observation_space, episode.observation(step))
        self.base.goal = np.array(obs[GOAL], dtype=np.float64)
        if hasattr(self.base, "update_target_site_pos"):
            self.base.update_target_site_pos()

    def _fits(self, episode: _Episode, step: int) -> bool:
        """Whether the env observes what is recorded.

        False if what is observed may lag behind a state that no step led to.

        Raises:
            ConfigError: it does not, and should.
        """
        observed, recorded = self._observed(), episode.observation(step)
        different = ~(_difference(observed, recorded) <= TOLERANCE)
        if not different.any():
            return True
        if step == episode.first > 0:
            return False
        at = int(np.argmax(different))
        raise ConfigError(
            f"{episode.label} does not fit this {id_of(self.base)}: at step {step}, entry {at} of "
            f"the recorded observation is {recorded[at]:.6g}, and the env observes "
            f"{observed[at]:.6g} in the recorded state ({int(different.sum())} of {len(observed)} "
            "entries differ). It comes from another version of the env, or its observations were "
            "normalised: use a dataset of the env's own observations."
        )

    def _observed(self) -> np.ndarray:
        flat = flatten(self.base.observation_space, self.collector.tap.obs)
        return np.asarray(flat, dtype=np.float64)

    def _check_sizes(self, episode: _Episode) -> None:
        """Check that states and observations have the env's sizes."""
        data = self.simulated.data
        expected = {QPOS: data.qpos.shape, QVEL: data.qvel.shape}
        expected["observation"] = (flatdim(self.base.observation_space),)
        received = {key: values.shape[1:] for key, values in episode.states.items()}
        received["observation"] = episode.observation(0).shape
        for name, shape in expected.items():
            if received[name] != shape:
                raise ConfigError(
                    f"{episode.label} does not fit this {id_of(self.base)}: expected {name} of "
                    f"{shape[0]} numbers, received {' x '.join(map(str, received[name]))}. It "
                    "comes from another env or version, or from a wrapped one: pass env= the one "
                    "that it was recorded in, or use another dataset."
                )

    def _find_first(self, episode: _Episode) -> None:
        """Find out which step the first row belongs to, if there are as many rows as steps.

        Numbers that follow from qpos and qvel are observed alike at the right step.
        """
        self._begin(episode)
        fit = np.zeros(2)
        for row in np.unique(np.linspace(0, episode.steps - 1, PROBED_ROWS).astype(int)):
            state = episode.state(int(row))
            self.simulated.set_state(state[QPOS], state[QVEL])
            self._look(episode, int(row))
            before, after = (episode.observation(int(row) + late) for late in (0, 1))
            moved = _difference(before, after) > SAME
            observed = self._observed()
            fit += [(_difference(observed, o) <= SAME)[moved].sum() for o in (before, after)]
        episode.first = int(fit[1] >= fit[0])


def _loaded(dataset: Any) -> Any:
    try:
        import minari  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Minari datasets need a package: pip install 'rlearly[minari]'."
        ) from None
    if isinstance(dataset, str):
        try:
            return minari.load_dataset(dataset)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(
                f"There is no Minari dataset {dataset!r} here ({error}); fetch it with "
                f"minari download {dataset}."
            ) from None
    if not isinstance(dataset, minari.MinariDataset):
        raise ConfigError(f"Expected a Minari dataset or its id, received {dataset!r}.")
    return dataset


def _recovered(dataset: Any, label: str) -> gymnasium.Env:
    """The env in which a dataset was recorded."""
    try:
        return dataset.recover_environment()
    except Exception as error:  # whatever the env's own code raises
        name = "no env" if dataset.env_spec is None else f"the env {dataset.env_spec.id}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{label} names {name}, which cannot be made here ({reason}): make it yourself and "
            "pass it as env=."
        ) from None


def _check_origin(dataset: Any, env: gymnasium.Env, label: str) -> None:
    """Check that `env` is the dataset's, as far as both name it."""
    recorded, given = dataset.env_spec, env.unwrapped.spec
    if flatdim(dataset.action_space) != flatdim(env.action_space):
        raise ConfigError(
            f"{label} is of another env: expected actions of {env.action_space}, received "
            f"{dataset.action_space}."
        )
    if recorded is None or given is None:
        return
    if recorded.id != given.id:
        raise ConfigError(
            f"{label} was recorded in {recorded.id}, and the env is {given.id}: pass a "
            f"{recorded.id}, or leave out env=."
        )
    kwargs = {key: value for key, value in recorded.kwargs.items() if key != "render_mode"}
    if _as_text(kwargs) != _as_text(kwargs_of(env.unwrapped)):
        log.warning(
            "%s was recorded in a %s made with the arguments %s, and this one was made with %s: "
            "its rewards and returns are those of the former.",
            label,
            recorded.id,
            kwargs,
            kwargs_of(env.unwrapped),
        )


def _as_text(kwargs: Mapping[str, Any]) -> str:
    """As the dataset's metadata keep them, where tuples are lists."""
    return json.dumps(kwargs, sort_keys=True, default=repr)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, array) of all infos."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _named(infos: Mapping[str, Any], key: str) -> str | None:
    """The path that ends with `key`, at the lowest depth; None if there is no such path, or two."""
    paths = [path for path in infos if path.split("/")[-1] == key]
    lowest = min((path.count("/") for path in paths), default=0)
    paths = [path for path in paths if path.count("/") == lowest]
    return paths[0] if len(paths) == 1 else None


def _row(tree: Any, index: int) -> Any:
    """Row `index` of a dataset's observations or actions."""
    if isinstance(tree, Mapping):
        return {key: _row(value, index) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_row(value, index) for value in tree)
    return tree[index]


def _length(tree: Any) -> int:
    """The number of rows of observations or actions, of the shortest part."""
    if isinstance(tree, Mapping | tuple):
        return min(map(_length, tree.values() if isinstance(tree, Mapping) else tree))
    return len(tree)


def _difference(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Difference relative to 1 + |two|."""
    return np.abs(one - two) / (1 + np.abs(two))
