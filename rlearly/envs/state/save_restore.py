"""Saving an env in mid-episode and continuing to the bit, by the method that is exact for it."""

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
    id_of,
    log_of,
    own_randomness,
    recording_of,
    replay,
    same,
    set_randomness,
    with_action_recorder,
)
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes
from rlearly.envs.wrappers import UNBOUNDED

log = logging.getLogger(__name__)

METHODS = ("mujoco", "control", "attributes", "ale", "replay")
PLAIN_FAMILIES = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "minigrid")
"""Families whose envs are what their attributes hold."""
WALL_CLOCK = {"RecordEpisodeStatistics": {"episode_start_time", "time_queue"}}
"""Wrapper -> attributes that measure the machine's time, which cannot return."""


@dataclass(frozen=True, eq=False)
class EnvState:
    """An env in mid-episode: arrays and plain Python, nothing that runs.

    `simulator` is the world and the task, `counters` the unwrapped env's own episode clocks,
    `random` its generators, `wrappers` what each wrapper holds (outermost first: [class name,
    {attribute: value}]), `versions` the packages that exactness rests on.
    """

    method: str
    env_id: str
    simulator: dict[str, Any]
    counters: dict[str, Any]
    random: dict[str, Any]
    wrappers: list[Any]
    versions: dict[str, str]

    def to_tree(self) -> dict[str, Any]:
        """Nested dicts and lists of arrays, numbers and text; nothing is copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> EnvState:
        return EnvState(**{field.name: tree[field.name] for field in fields(EnvState)})

    def to_bytes(self) -> bytes:
        """A JSON header, the arrays, and a checksum."""
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
    """How an env is saved: "mujoco", "control", "attributes", "ale" or "replay".

    "control" is dm_control's suite; "attributes" families whose Python attributes are everything;
    "ale" Atari without sticky actions; "replay" everything else: the episode's actions repeated
    from its seed, which needs `with_action_recorder(env)`.
    """
    base: Any = env.unwrapped
    holders = [base, *(item for item in vars(base).values() if hasattr(item, "_physics"))]
    for holder in holders:
        if simulators.kind_of(getattr(holder, "_physics", None)) == "physics":
            composed = any("composer" in kind.__module__ for kind in type(holder).__mro__)
            return "replay" if composed else "control"  # composed worlds are built at each reset
    inner = [base, *(item for item in vars(base).values() if isinstance(item, gymnasium.Env))]
    if any(simulators.kind_of(vars(one.unwrapped).get("data")) == "data" for one in inner):
        return "mujoco"
    if simulators.kind_of(vars(base).get("ale")) == "ale":
        return "replay" if base.ale.getFloat("repeat_action_probability") > 0 else "ale"
    if any(kind.__module__.startswith(PLAIN_FAMILIES) for kind in type(base).__mro__):
        return "attributes"
    return "replay"


def save(env: gymnasium.Env, method: str | None = None) -> EnvState:
    """The state of an env and of all its wrappers; the env does not change.

    `method` forces one; None takes `method_of(env)`, or "replay" if an attribute is not data and
    the env is `with_action_recorder`.

    Raises:
        InexactState: the env, or one of its wrappers, cannot be saved to the bit.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
    base, wrappers = env.unwrapped, _wrappers(env)
    recording = recording_of(env)
    chosen = method or method_of(env)
    simulator, random, clocks = {}, {}, {}
    if chosen != "replay":
        encoder = codec.Encoder(wrappers)
        try:
            simulator = encoder.encode(base, "")
            random, clocks = encoder.random, encoder.clocks
        except codec.Unencodable as error:
            if method or recording is None:
                raise InexactState(
                    f"{id_of(base)} cannot be saved by its attributes: {error}, expected numbers, "
                    "text, arrays and containers of them; call with_action_recorder(env) before "
                    "its reset: its actions are then repeated."
                ) from None
            chosen = "replay"
    if chosen == "replay":
        simulator = log_of(base, recording)
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
    """Make an env, the same or one built alike, continue from `state` to the bit.

    A bare env takes a wrapped env's state without the wrappers'. With `only_simulator` the world
    and the task are restored and all else stays the env's own: randomness, episode clocks,
    wrappers (a frame stack then holds the images of before); the env must have been reset. After
    an error the env must be reset.

    Raises:
        ConfigError: the state is of another env, of other wrappers, or of other versions.
        InexactState: the env did not get there.
    """
    base, wrappers = env.unwrapped, _wrappers(env)
    _check(base, wrappers, state, only_simulator)
    recording = recording_of(env)
    if state.method == "replay":
        own = None if only_simulator else state.random
        replay(base, recording, state.simulator, own, None if only_simulator else state.counters)
    else:
        if recording is not None:
            recording.forget()
        try:
            _put(base, state, only_simulator)
        except (codec.Incomplete, simulators.DifferentModel):
            if only_simulator:
                raise _not_alike(base, "it was never reset, or it is built otherwise") from None
            env.reset(seed=0)  # an env that was never reset may lack some of itself
            if recording is not None:
                recording.forget()
            try:
                _put(base, state, only_simulator)
            except (codec.Incomplete, simulators.DifferentModel) as error:
                raise _not_alike(base, str(error)) from None
    if only_simulator or not wrappers:
        return
    for wrapper, (_, saved) in zip(wrappers, state.wrappers, strict=True):
        _restore_wrapper(wrapper, saved, env)


def self_test(
    env: gymnasium.Env, steps: int = 20, make_fresh: Callable[[], gymnasium.Env] | None = None
) -> str:
    """The method by which this env was just seen to return to the bit.

    It is played, saved, played on for `steps` random steps, restored from the bytes and played
    the same again, in the same env and in one from `make_fresh`, from three points of an episode;
    everything must be equal, new episodes included. Wrappers and random generators are as before
    afterwards; the env must be reset, and is `with_action_recorder` if its method is "replay".

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


# --- the parts of a state ---


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    """Outermost first; `ActionRecorder` is transparent."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, ActionRecorder):
            found.append(env)
        env = env.env
    return found


def _put(base: gymnasium.Env, state: EnvState, only_simulator: bool) -> None:
    decoder = codec.Decoder(base, state.random, state.counters, only_simulator=only_simulator)
    decoder.decode(state.simulator, base, "")


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
            "containers of them; give it state_dict() and load_state_dict(), or take it off."
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
    usual = method_of(base)
    if usual != state.method and state.method not in ("attributes", "replay"):
        raise ConfigError(
            f"The state of {state.env_id} was saved by the method {state.method!r}, and this env "
            f"is restored by {usual!r}: build it with the same arguments."
        )
    have = _versions(state.method, base)
    for package, version in state.versions.items():
        if have.get(package) != version:
            raise ConfigError(
                f"The state of {state.env_id} was saved with {package} {version}, and this is "
                f"{package} {have.get(package)}: it would not continue to the bit; "
                f"pip install {package}=={version}."
            )
    names = [type(wrapper).__name__ for wrapper in wrappers]
    saved = [name for name, _ in state.wrappers]
    if names and names != saved and not only_simulator:
        raise ConfigError(
            f"The saved state of {state.env_id} expects the wrappers {', '.join(saved) or 'none'}, "
            f"outermost first, and this env has {', '.join(names)}: wrap it alike, or restore "
            "into env.unwrapped."
        )


def _not_alike(base: gymnasium.Env, error: str) -> ConfigError:
    return ConfigError(
        f"This {id_of(base)} is not built like the saved one (different: {error}): build it with "
        "the same arguments (and model seed), and reset it before restoring only its simulator."
    )


def _versions(method: str, base: Any) -> dict[str, str]:
    packages = {"attributes": [], "ale": ["ale_py"]}.get(method)
    if method == "mujoco":
        task = type(base).__module__.split(".")[0]
        packages = ["mujoco"] if task == "gymnasium" else ["mujoco", task]
    if method == "control":
        packages = ["mujoco", "dm_control"]
    if packages is None:
        packages = [type(base).__module__.split(".")[0]]
        world = type(vars(base).get("world")).__module__.split(".")[0]
        packages += [world] if world == "Box2D" else []
        packages += ["mujoco", "dm_control"] if hasattr(base, "_control") else []
    found = {package: installed(package) for package in packages}
    return {package: version for package, version in found.items() if version}


@functools.cache
def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the self-test ---


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
        env.reset()  # a later episode: what the first one left behind counts
        for played in (0, steps, 1):
            _play(env, [_sample(space) for _ in range(played)])
            data = save(env, method).to_bytes()
            actions = [_sample(space) for _ in range(steps)]
            expected = _play(env, actions)
            for name, place in (("a fresh env", fresh), ("the same env", env)):
                if place is None:
                    continue
                restore(place, EnvState.from_bytes(data))
                if not same(_play(place, actions), expected):
                    raise InexactState(f"{name} went on differently after restoring.")
    finally:
        for wrapper, (_, saved) in zip(_wrappers(env), before, strict=True):
            _restore_wrapper(wrapper, saved, env)
        set_randomness(base, *own)
        if not seeded:  # an env that nobody has seeded yet must not keep the test's seed
            base._np_random = None


def _sample(space: gymnasium.Space) -> Any:
    """A random action; within [-1, 1] where the space has no bounds that a simulator survives."""
    action = space.sample()
    if isinstance(space, Box) and np.abs(space.high).max(initial=0) >= UNBOUNDED:
        return np.clip(action, -1, 1).astype(space.dtype)
    return action


def _play(env: gymnasium.Env, actions: list[Any]) -> list[Any]:
    """All that an env answers, and its generators at the end; an ended episode is followed by
    one."""
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
