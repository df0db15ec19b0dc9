"""Save an env in mid-episode and restore it to the bit, by the method that is exact for it."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlearly.core.errors import ConfigError
from rlearly.envs.state import codec, simulators
from rlearly.envs.state.action_replay import (
    ActionRecorder,
    InexactState,
    encode_recording,
    id_of,
    own_randomness,
    recorder_of,
    replay,
    same,
    set_randomness,
    with_action_recorder,
)
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes
from rlearly.envs.wrappers import UNBOUNDED

log = logging.getLogger(__name__)

METHODS = ("mujoco", "control", "attributes", "ale", "replay")  # these names are in saved files
PLAIN_FAMILIES = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "minigrid")
"""Packages of envs that are fully described by their Python attributes."""
WALL_CLOCK = {"RecordEpisodeStatistics": {"episode_start_time", "time_queue"}}
"""Wrapper -> attributes that hold wall-clock time, which cannot be restored."""


@dataclass(frozen=True, eq=False)
class EnvState:
    """The saved state of an env in mid-episode: arrays and plain Python data, no code.

    Attributes:
        method: how it was saved, see `method_of`.
        env_id: the env's registered id.
        simulator: the simulated world and the task.
        counters: the unwrapped env's own episode clocks.
        random: its random generators.
        wrappers: of each wrapper, outermost first: [class name, {attribute: value}].
        versions: package -> version, of the packages that exactness depends on.
    """

    method: str
    env_id: str
    simulator: dict[str, Any]
    counters: dict[str, Any]
    random: dict[str, Any]
    wrappers: list[Any]
    versions: dict[str, str]

    def to_tree(self) -> dict[str, Any]:
        """Nested dicts and lists of arrays, numbers and text, without copying."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> EnvState:
        return EnvState(**{field.name: tree[field.name] for field in fields(EnvState)})

    def to_bytes(self) -> bytes:
        """The state as bytes with a checksum, without pickle."""
        return to_bytes(self.to_tree())

    @staticmethod
    def from_bytes(data: bytes) -> EnvState:
        """The state that `to_bytes` wrote.

        Raises:
            DamagedState: anything is missing or changed.
        """
        try:
            return EnvState.from_tree(from_bytes(data))
        except (KeyError, TypeError) as error:
            raise DamagedState(f"The saved state is malformed ({error}).") from None


def method_of(env: gymnasium.Env) -> str:
    """The method by which `save` saves an env.

    "mujoco": gymnasium's MuJoCo envs and envs like them. "control": dm_control's suite.
    "attributes": packages whose envs are fully described by their Python attributes. "ale": Atari
    without sticky actions. "replay": everything else; the episode's actions are repeated from its
    seed, which requires `with_action_recorder(env)`.
    """
    base: Any = env.unwrapped
    holders = [base, *(item for item in vars(base).values() if hasattr(item, "_physics"))]
    for holder in holders:
        if simulators.kind_of(getattr(holder, "_physics", None)) == "physics":
            composed = any("composer" in kind.__module__ for kind in type(holder).__mro__)
            return "replay" if composed else "control"  # composed worlds are rebuilt at each reset
    inner = [base, *(item for item in vars(base).values() if isinstance(item, gymnasium.Env))]
    if any(simulators.kind_of(vars(one.unwrapped).get("data")) == "data" for one in inner):
        return "mujoco"
    if simulators.kind_of(vars(base).get("ale")) == "ale":
        return "replay" if base.ale.getFloat("repeat_action_probability") > 0 else "ale"
    if any(kind.__module__.startswith(PLAIN_FAMILIES) for kind in type(base).__mro__):
        return "attributes"
    return "replay"


def save(env: gymnasium.Env, method: str | None = None) -> EnvState:
    """Save the state of an env and of all its wrappers. The env does not change.

    >>> import gymnasium
    >>> from rlearly import restore, save
    >>> env = gymnasium.make("Hopper-v5")
    >>> _ = env.reset(seed=0)
    >>> state = save(env)
    >>> first = env.step([0.1, 0.2, 0.3])
    >>> restore(env, state)
    >>> bool((env.step([0.1, 0.2, 0.3])[0] == first[0]).all())
    True

    Args:
        env: any gymnasium env, reset.
        method: one of `METHODS`; None: `method_of(env)`, or "replay" if an attribute is not plain
            data and the env has an action recorder.

    Raises:
        ConfigError: there is no such method.
        InexactState: the env or one of its wrappers cannot be saved to the bit.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
    base, wrappers = env.unwrapped, _wrappers(env)
    recorder = recorder_of(env)
    chosen = method or method_of(env)
    simulator, random, clocks = {}, {}, {}
    if chosen != "replay":
        encoder = codec.Encoder(wrappers)
        try:
            simulator = encoder.encode(base, "")
            random, clocks = encoder.random, encoder.clocks
        except codec.Unencodable as error:
            if method or recorder is None:
                raise InexactState(
                    f"{id_of(base)} cannot be saved by its attributes: {error}, expected numbers, "
                    "text, arrays and containers of them; call with_action_recorder(env) before "
                    "its reset: its actions are then repeated."
                ) from None
            chosen = "replay"
    if chosen == "replay":
        simulator = encode_recording(base, recorder)
        random, clocks = own_randomness(base)
    return EnvState(
        method=chosen,
        env_id=id_of(base),
        simulator=simulator,
        counters=clocks,
        random=random,
        wrappers=[_save_wrapper(wrapper, env) for wrapper in wrappers],
        versions=_versions(chosen, base),
    )


def restore(env: gymnasium.Env, state: EnvState, *, only_simulator: bool = False) -> None:
    """Make an env continue from `state` to the bit. See `save` for an example.

    Args:
        env: the saved env or one built alike. An env without wrappers accepts the state of one
            with wrappers; the state of the wrappers is then ignored.
        state: from `save`.
        only_simulator: restore the world and the task only. Randomness, episode clocks and
            wrappers (with the old images in a frame stack) stay as they are. The env must have
            been reset.

    Raises:
        ConfigError: the state is from a different env, different wrappers or package versions.
        InexactState: the env did not reach the state. Reset it after any error.
    """
    base, wrappers = env.unwrapped, _wrappers(env)
    _check(base, wrappers, state, only_simulator)
    if state.method == "replay":
        random, clocks = (None, None) if only_simulator else (state.random, state.counters)
        replay(base, recorder_of(env), state.simulator, random, clocks)
    else:
        _restore_attributes(env, state, only_simulator)
    if only_simulator or not wrappers:
        return
    for wrapper, (_, saved) in zip(wrappers, state.wrappers, strict=True):
        _restore_wrapper(wrapper, saved, env)


def save_wrappers(env: gymnasium.Env) -> list[Any]:
    """[class name, state] of each wrapper that has a `state_dict`, outermost first.

    The state is empty if it is not plain data.
    """
    saved = []
    for wrapper in _stateful_wrappers(env):
        try:
            saved.append(_save_wrapper(wrapper, env))
        except InexactState:
            saved.append([type(wrapper).__name__, {}])
    return saved


def restore_wrappers(env: gymnasium.Env, saved: list[Any]) -> None:
    """Restore the wrappers that have a `state_dict`, but no episode: the env must be reset.

    Args:
        saved: from `save_wrappers`, or `EnvState.wrappers`. Of an env that is wrapped differently,
            nothing is restored.
    """
    wrappers = _stateful_wrappers(env)
    names = [type(wrapper).__name__ for wrapper in wrappers]
    states = [(name, state) for name, state in saved if name in names]
    if [name for name, _ in states] != names:
        return
    for wrapper, (_, state) in zip(wrappers, states, strict=True):
        if "~state_dict" in state:
            _restore_wrapper(wrapper, state, env)
            if hasattr(wrapper, "forget_episode"):
                wrapper.forget_episode()


def self_test(
    env: gymnasium.Env, steps: int = 20, make_fresh: Callable[[], gymnasium.Env] | None = None
) -> str:
    """Find the method that restores this env to the bit, by trying it.

    The env is played, saved, played for `steps` random steps, restored from bytes, and played with
    the same actions again. This is done from three points of an episode, and everything must be
    equal, including episodes that begin afterwards. Afterwards wrappers and random generators are
    as before, and the env must be reset. If the method is "replay", it has an action recorder.

    Args:
        make_fresh: makes a second env built alike, in which the state is restored too.

    Raises:
        InexactState: no method is exact.
    """
    reasons = []
    for method in dict.fromkeys((method_of(env), "replay")):
        fresh = make_fresh() if make_fresh else None
        try:
            _try_method(env, fresh, method, steps)
            return method
        except ConfigError as error:
            reasons.append(f"{method}: {error}")
        finally:
            if fresh is not None:
                fresh.close()
    raise InexactState(
        f"{id_of(env.unwrapped)} cannot return to a saved state to the bit ({' '.join(reasons)}); "
        "start its episodes from the beginning."
    )


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    """The wrappers of an env, outermost first, without its `ActionRecorder`."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, ActionRecorder):
            found.append(env)
        env = env.env
    return found


def _stateful_wrappers(env: gymnasium.Env) -> list[Any]:
    return [wrapper for wrapper in _wrappers(env) if hasattr(wrapper, "state_dict")]


def _restore_attributes(env: gymnasium.Env, state: EnvState, only_simulator: bool) -> None:
    base, recorder = env.unwrapped, recorder_of(env)
    for may_reset in (not only_simulator, False):
        if recorder is not None:
            recorder.clear()
        decoder = codec.Decoder(base, state.random, state.counters, only_simulator=only_simulator)
        try:
            decoder.decode(state.simulator, base, "")
            return
        except (codec.Incomplete, simulators.DifferentModel) as error:
            why = "it was never reset, or is built differently"
            why = why if only_simulator else f"different: {error}"
            if not may_reset:
                raise ConfigError(
                    f"This {id_of(base)} is not built like the saved one ({why}): build it with "
                    "the same arguments (and model seed), and reset it before restoring only its "
                    "simulator."
                ) from None
            env.reset(seed=0)  # an env that was never reset may lack attributes


def _save_wrapper(wrapper: Any, env: gymnasium.Env) -> list[Any]:
    encoder = codec.Encoder([env.unwrapped, *_wrappers(env)], simulate=False)
    name = type(wrapper).__name__
    try:
        if hasattr(wrapper, "state_dict"):
            tree = encoder.encode(dict(wrapper.state_dict()), "state_dict")
            return [name, {"~state_dict": tree, "~random": encoder.random}]
        skip = {"env", *WALL_CLOCK.get(name, ())}
        attributes = encoder.attributes(wrapper, "", skip)
    except codec.Unencodable as error:
        raise InexactState(
            f"The wrapper {name} cannot be saved: {error}, expected numbers, text, arrays and "
            "containers of them; give it state_dict() and load_state_dict(), or remove it."
        ) from None
    return [name, {**attributes, "~random": encoder.random}]


def _restore_wrapper(wrapper: Any, saved: dict[str, Any], env: gymnasium.Env) -> None:
    decoder = codec.Decoder(wrapper, saved.get("~random", {}), {})
    attributes = {key: value for key, value in saved.items() if key != "~random"}
    try:
        if "~state_dict" in saved:
            wrapper.load_state_dict(decoder.decode(saved["~state_dict"], codec.MISSING, ""))
        else:
            decoder.attributes(attributes, wrapper, "")
    except codec.Incomplete as error:
        raise InexactState(
            f"The wrapper {type(wrapper).__name__} cannot be restored: {error}; build the env "
            "and its wrappers as the saved ones were built."
        ) from None


def _check(base: gymnasium.Env, wrappers: list[Any], state: EnvState, only_simulator: bool) -> None:
    if id_of(base) != state.env_id:
        raise ConfigError(
            f"The saved state is of {state.env_id}, and this env is {id_of(base)}: restore it into "
            f"a {state.env_id}."
        )
    if state.method not in METHODS:
        raise ConfigError(
            f"The saved state's method: expected one of {', '.join(METHODS)}, received "
            f"{state.method!r}."
        )
    expected = method_of(base)
    if expected != state.method and state.method not in ("attributes", "replay"):
        raise ConfigError(
            f"The state of {state.env_id} was saved by the method {state.method!r}, and this env "
            f"is restored by {expected!r}: build it with the same arguments."
        )
    installed_here = _versions(state.method, base)
    for package, version in state.versions.items():
        if installed_here.get(package) != version:
            raise ConfigError(
                f"The state of {state.env_id} was saved with {package} {version}, and this is "
                f"{package} {installed_here.get(package)}: it would not continue to the bit; "
                f"pip install {package}=={version}."
            )
    names = [type(wrapper).__name__ for wrapper in wrappers]
    saved = [name for name, _ in state.wrappers]
    if names and names != saved and not only_simulator:
        raise ConfigError(
            f"The saved state of {state.env_id} expects the wrappers {', '.join(saved) or 'none'}, "
            f"outermost first, and this env has {', '.join(names)}: wrap it likewise, or restore "
            "into env.unwrapped."
        )


def _versions(method: str, base: Any) -> dict[str, str]:
    """The installed versions of the packages that a state's exactness depends on."""
    package = type(base).__module__.split(".")[0]
    packages = {
        "mujoco": ["mujoco"] if package == "gymnasium" else ["mujoco", package],
        "control": ["mujoco", "dm_control"],
        "attributes": [],
        "ale": ["ale_py"],
    }.get(method)
    if packages is None:  # replay
        world = type(vars(base).get("world")).__module__.split(".")[0]
        packages = [package, "Box2D"] if world == "Box2D" else [package]
        packages += ["mujoco", "dm_control"] if hasattr(base, "_control") else []
    found = {package: installed(package) for package in packages}
    return {package: version for package, version in found.items() if version}


@functools.cache
def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _try_method(env: gymnasium.Env, fresh: gymnasium.Env | None, method: str, steps: int) -> None:
    if method == "replay":
        env, fresh = with_action_recorder(env), fresh and with_action_recorder(fresh)
    before = [_save_wrapper(wrapper, env) for wrapper in _wrappers(env)]
    base: Any = env.unwrapped
    own = own_randomness(base)
    seeded = getattr(base, "_np_random", None) is not None
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    try:
        env.reset(seed=1)
        env.reset()  # a later episode: what the first one leaves behind must not matter
        for played in (0, steps, 1):
            _play(env, [_sample(space) for _ in range(played)])
            data = save(env, method).to_bytes()
            actions = [_sample(space) for _ in range(steps)]
            expected = _play(env, actions)
            for name, other in (("a fresh env", fresh), ("the same env", env)):
                if other is None:
                    continue
                restore(other, EnvState.from_bytes(data))
                if not same(_play(other, actions), expected):
                    raise InexactState(f"{name} continued differently after restoring.")
    finally:
        for wrapper, (_, saved) in zip(_wrappers(env), before, strict=True):
            _restore_wrapper(wrapper, saved, env)
        set_randomness(base, *own)
        if not seeded:  # an env that was never seeded must not keep the test's seed
            base._np_random = None


def _sample(space: gymnasium.Space) -> Any:
    """A random action, within [-1, 1] if the space's bounds are too wide for a simulator."""
    action = space.sample()
    if isinstance(space, Box) and np.abs(space.high).max(initial=0) >= UNBOUNDED:
        return np.clip(action, -1, 1).astype(space.dtype)
    return action


def _play(env: gymnasium.Env, actions: list[Any]) -> list[Any]:
    """Step an env; returns all its outputs and its generators' final states.

    When an episode ends, the env is reset.
    """
    seen: list[Any] = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(copy.deepcopy([obs, reward, terminated, truncated, _without_clock(info)]))
        if terminated or truncated:
            seen.append(copy.deepcopy(env.reset()[0]))
    return [*seen, own_randomness(env.unwrapped)[0]]


def _without_clock(info: dict[str, Any]) -> dict[str, Any]:
    episode = info.get("episode")
    if not isinstance(episode, dict):
        return info
    return info | {"episode": {key: value for key, value in episode.items() if key != "t"}}
