"""Saving an env in mid-episode and continuing to the bit, by the method that is exact for it."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import logging
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np

from rlearly.config import ConfigError
from rlearly.envs import state_codec as codec
from rlearly.envs import state_simulators as simulators
from rlearly.envs.state_codec import DamagedState
from rlearly.seeding import episode_seed

__all__ = ["DamagedState", "EnvState", "Episodes", "InexactState", "Recorded", "method_of"]
__all__ += ["recorded", "restore", "save", "self_test"]
log = logging.getLogger(__name__)

METHODS = ("mujoco", "control", "attributes", "ale", "replay")
PLAIN_FAMILIES = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "minigrid")
"""Families whose envs are what their attributes hold."""
WALL_CLOCK = {"RecordEpisodeStatistics": {"episode_start_time", "time_queue"}}
"""Wrapper -> attributes that measure the machine's time, which cannot return."""


class InexactState(ConfigError):
    """An env cannot be saved, or brought back, to the bit."""


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
        return codec.to_bytes(self.to_tree())

    @staticmethod
    def from_bytes(data: bytes) -> EnvState:
        """The state that `to_bytes` wrote.

        Raises:
            DamagedState: anything is missing or changed.
        """
        try:
            return EnvState.from_tree(codec.from_bytes(data))
        except (KeyError, TypeError) as error:
            raise DamagedState(f"The saved state is malformed ({error}).") from None


def method_of(env: gymnasium.Env) -> str:
    """How an env is saved: "mujoco", "control", "attributes", "ale" or "replay".

    "control" is dm_control's suite; "attributes" families whose Python attributes are everything;
    "ale" Atari without sticky actions; "replay" everything else: the episode's actions repeated
    from its seed, which needs `recorded(env)`.
    """
    base: Any = env.unwrapped
    holders = [base, *(item for item in vars(base).values() if hasattr(item, "_physics"))]
    for holder in holders:
        if simulators.kind_of(getattr(holder, "_physics", None)) == "physics":
            composed = any("composer" in kind.__module__ for kind in type(holder).__mro__)
            return "replay" if composed else "control"  # composed worlds are built at each reset
    inner = [base, *(item for item in vars(base).values() if isinstance(item, gymnasium.Env))]
    if any(simulators.kind_of(vars(env.unwrapped).get("data")) == "data" for env in inner):
        return "mujoco"
    if simulators.kind_of(vars(base).get("ale")) == "ale":
        return "replay" if base.ale.getFloat("repeat_action_probability") > 0 else "ale"
    if any(kind.__module__.startswith(PLAIN_FAMILIES) for kind in type(base).__mro__):
        return "attributes"
    return "replay"


def save(env: gymnasium.Env, method: str | None = None) -> EnvState:
    """The state of an env and of all its wrappers; the env does not change.

    `method` forces one; None takes `method_of(env)`, or "replay" if an attribute is not data and
    the env is `recorded`.

    Raises:
        InexactState: the env, or one of its wrappers, cannot be saved to the bit.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
    base, wrappers = env.unwrapped, _wrappers(env)
    recording = _recording(env)
    chosen = method or method_of(env)
    encoder = codec.Encoder([w for w in wrappers if w is not base])
    simulator: dict[str, Any] = {}
    if chosen != "replay":
        try:
            simulator = encoder.encode(base, "")
        except codec.Unencodable as error:
            if method or recording is None:
                raise InexactState(
                    f"{_id(base)} cannot be saved by its attributes: {error}, expected numbers, "
                    "text, arrays and containers of them; wrap it with recorded(env) before its "
                    "reset: its actions are then repeated."
                ) from None
            chosen = "replay"
    if chosen == "replay":
        encoder = codec.Encoder()
        simulator = _log_of(base, recording)
        for path, holder in _holders(base):
            _note_own(encoder, holder, path)
    return EnvState(
        method=chosen,
        env_id=_id(base),
        simulator=simulator,
        counters=encoder.clocks,
        random=encoder.random,
        wrappers=[_save_wrapper(wrapper, env) for wrapper in wrappers],
        versions=_versions(chosen, base),
    )


def restore(env: gymnasium.Env, state: EnvState, *, only_simulator: bool = False) -> None:
    """Make an env, the same or one built alike, continue from `state` to the bit.

    A bare env takes a wrapped env's state without the wrappers'. With `only_simulator` the world
    and the task are restored and all else stays the env's own: randomness, episode clocks,
    wrappers.

    Raises:
        ConfigError: the state is of another env, of other wrappers, or of other versions.
        InexactState: the env did not get there.
    """
    base, wrappers = env.unwrapped, _wrappers(env)
    _check(base, wrappers, state, only_simulator)
    recording = _recording(env)
    if state.method == "replay":
        _replay(base, recording, state, only_simulator)
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

    It is played `steps` random steps, saved, played on, restored from the bytes and played the
    same again, in the same env and in one from `make_fresh`; everything must be equal, new
    episodes included. Wrappers and random generators are as before afterwards; the env must be
    reset.

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
        f"{_id(env.unwrapped)} cannot return to a saved state to the bit ({' '.join(reasons)}); "
        "start its episodes from the beginning."
    )


# --- replay ---


class Recorded(gymnasium.Wrapper):
    """Remembers the episode's seed, options and actions, so that it can be played again.

    It belongs directly around the unwrapped env: `recorded(env)` puts it there. A reset without a
    seed draws one from the env's own generator, so that every episode can be repeated. What others
    draw from that generator between two steps is remembered too. Box2D's world, which
    carries hidden state over, is built anew at each reset.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.forget()

    def forget(self) -> None:
        """The env is no longer where the recording leads."""
        self.seed: int | None = None
        self.options: Any = None
        self.actions: list[Any] = []
        self.drawn: list[list[Any]] = []  # [steps before it, the generator's state]
        self.checksum = 0  # of all observations, rewards and flags
        self._generator: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.forget()
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2**31))
        self.options = copy.deepcopy(options)
        _rebuild_world(self.unwrapped)
        obs, info = self.env.reset(seed=seed, options=options)
        self.seed = seed
        self._note(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        now = self._generator_state()
        if self.seed is not None and not _same(now, self._generator):
            self.drawn.append([len(self.actions), now])
        self.actions.append(copy.copy(action))
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._note([obs, reward, terminated, truncated])
        return obs, reward, terminated, truncated, info

    def _note(self, seen: Any) -> None:
        self.checksum = _checksum(seen, self.checksum)
        self._generator = self._generator_state()

    def _generator_state(self) -> Any:
        generator = getattr(self.unwrapped, "_np_random", None)
        return None if generator is None else codec.generator_state(generator)


def recorded(env: gymnasium.Env) -> gymnasium.Env:
    """`env` with a `Recorded` directly around its unwrapped env, once."""
    if _recording(env) is not None:
        return env
    base, outer = env.unwrapped, env
    if env is base:
        return Recorded(base)
    while isinstance(outer, gymnasium.Wrapper) and outer.env is not base:
        outer = outer.env
    assert isinstance(outer, gymnasium.Wrapper)
    outer.env = Recorded(base)
    return env


def _log_of(base: gymnasium.Env, recording: Recorded | None) -> dict[str, Any]:
    if recording is None or recording.seed is None:
        why = "its actions were not recorded" if recording is None else "it was not reset"
        raise InexactState(
            f"{_id(base)} can be saved only by repeating its actions, and {why}: wrap it with "
            "recorded(env) before the reset, and reset it with a seed."
        )
    actions: Any = recording.actions
    first = actions[0] if actions else None
    if isinstance(first, np.ndarray | np.generic) and all(
        type(a) is type(first) and a.dtype == first.dtype and a.shape == first.shape
        for a in actions
    ):
        actions = np.stack(actions)
    try:
        return codec.Encoder().encode(
            {
                "seed": recording.seed,
                "options": recording.options,
                "actions": actions,
                "drawn": recording.drawn,
                "checksum": recording.checksum,
            },
            "the recording",
        )
    except codec.Unencodable as error:
        raise InexactState(
            f"{_id(base)} cannot be saved: {error}, expected reset options and actions that are "
            "numbers, text, arrays and containers of them."
        ) from None


def _replay(
    base: gymnasium.Env, recording: Recorded | None, state: EnvState, only_simulator: bool
) -> None:
    recording = recording or Recorded(base)
    saved = codec.Decoder(base, {}, {}).decode(state.simulator, codec.MISSING, "")
    own = codec.Encoder()
    for path, holder in _holders(base):
        _note_own(own, holder, path)
    recording.reset(seed=saved["seed"], options=saved["options"])
    drawn = {step: generator for step, generator in saved["drawn"]}
    for i, action in enumerate(saved["actions"]):
        if i in drawn:
            _set_own(base, {"_np_random": drawn[i]}, {})
        recording.step(action)
    if recording.checksum != saved["checksum"]:
        recording.forget()
        raise InexactState(
            f"{_id(base)} did not return to its saved state when its {len(saved['actions'])} "
            "actions were repeated from its seed: it keeps something from one episode to the "
            "next, or draws randomness that its seed does not decide."
        )
    if only_simulator:
        _set_own(base, own.random, own.clocks)
    else:
        _set_own(base, state.random, state.counters)


def _holders(base: Any) -> list[tuple[str, Any]]:
    """Where an env's generators and clocks are looked for when its actions are repeated."""
    holders = [("", base)]
    for name in ("_control", "_env"):
        inner = vars(base).get(name)
        if inner is not None and hasattr(inner, "__dict__"):
            holders.append((name, inner))
    return holders


def _note_own(encoder: codec.Encoder, holder: Any, path: str) -> None:
    for key, value in vars(holder).items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, np.random.Generator | np.random.RandomState):
            encoder.random[where] = codec.generator_state(value)
        elif key in codec.CLOCKS and isinstance(value, bool | int):
            encoder.clocks[where] = value


def _set_own(base: gymnasium.Env, random: dict[str, Any], clocks: dict[str, Any]) -> None:
    for path, holder in _holders(base):
        held = vars(holder)
        for saved, is_random in ((random, True), (clocks, False)):
            for where, value in saved.items():
                owner, _, key = where.rpartition(".")
                if owner == path:
                    held[key] = codec.with_state(held.get(key), value) if is_random else value


def _rebuild_world(base: Any) -> None:
    world = vars(base).get("world")
    if type(world).__name__ != "b2World":
        return
    base._destroy()
    base.world = type(world)(gravity=world.gravity)
    listener = getattr(world, "contactListener", None)
    if listener is not None:
        base.world.contactListener = listener


# --- the parts of a state ---


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    """Outermost first; `Recorded` is transparent."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, Recorded):
            found.append(env)
        env = env.env
    return found


def _recording(env: gymnasium.Env) -> Recorded | None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, Recorded):
            return env
        env = env.env
    return None


def _id(base: Any) -> str:
    """The registered id, dm_control's task name, or the class."""
    if base.spec is not None:
        return base.spec.id
    return getattr(base, "task_name", f"{type(base).__module__}:{type(base).__qualname__}")


def _put(base: gymnasium.Env, state: EnvState, only_simulator: bool) -> None:
    decoder = codec.Decoder(base, state.random, state.counters, only_simulator=only_simulator)
    decoder.decode(state.simulator, base, "")


def _save_wrapper(wrapper: Any, env: gymnasium.Env) -> list[Any]:
    encoder = codec.Encoder([env.unwrapped, *_wrappers(env)], simulate=False)
    name = type(wrapper).__name__
    encoder.chain.discard(id(wrapper))
    try:
        if hasattr(wrapper, "state_dict"):
            return [name, {"~state_dict": encoder.encode(dict(wrapper.state_dict()), "state_dict")}]
        skip = {"env", *WALL_CLOCK.get(name, ())}
        encoder.chain.add(id(wrapper))
        attributes = encoder.attributes(wrapper, "", skip)
    except codec.Unencodable as error:
        raise InexactState(
            f"The wrapper {name} cannot be saved: {error}, expected numbers, text, arrays and "
            "containers of them; give it state_dict() and load_state_dict(), or take it off."
        ) from None
    return [name, {**attributes, "~random": encoder.random}]


def _restore_wrapper(wrapper: Any, saved: dict[str, Any], env: gymnasium.Env) -> None:
    decoder = codec.Decoder(wrapper, saved.get("~random", {}), {})
    if "~state_dict" in saved:
        wrapper.load_state_dict(decoder.decode(saved["~state_dict"], codec.MISSING, ""))
        return
    attributes = {key: value for key, value in saved.items() if key != "~random"}
    try:
        decoder.attributes(attributes, wrapper, "")
    except codec.Incomplete as error:
        raise InexactState(
            f"The wrapper {type(wrapper).__name__} cannot be restored: {error}; build the env "
            "and its wrappers as the saved ones were built."
        ) from None


def _check(
    base: gymnasium.Env, wrappers: list[Any], state: EnvState, only_simulator: bool
) -> None:
    if _id(base) != state.env_id:
        raise ConfigError(
            f"The saved state is of {state.env_id}, and this env is {_id(base)}: restore it into "
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
        f"This {_id(base)} is not built like the saved one (different: {error}): build it with "
        "the same arguments (and model seed), and reset it before restoring only its simulator."
    )


def _versions(method: str, base: Any) -> dict[str, str]:
    packages = {"attributes": [], "ale": ["ale_py"], "mujoco": ["mujoco"]}.get(method)
    if method == "control":
        packages = ["mujoco", "dm_control"]
    if packages is None:
        packages = [type(base).__module__.split(".")[0]]
        world = type(vars(base).get("world")).__module__.split(".")[0]
        packages += [world] if world == "Box2D" else []
        packages += ["mujoco", "dm_control"] if hasattr(base, "_control") else []
    found = {package: _version(package) for package in packages}
    return {package: version for package, version in found.items() if version}


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- comparing ---


def _checksum(tree: Any, start: int) -> int:
    """CRC-32 of observations, rewards and flags, to the bit."""
    if isinstance(tree, Mapping):
        tree = [part for item in tree.items() for part in item]
    if isinstance(tree, list | tuple):
        for item in tree:
            start = _checksum(item, start)
        return start
    if isinstance(tree, np.ndarray | np.generic):
        return zlib.crc32(np.ascontiguousarray(tree).data, start)
    if isinstance(tree, float):
        return zlib.crc32(struct.pack("<d", tree), start)
    return zlib.crc32(repr(tree).encode(), start)


def _same(one: Any, two: Any) -> bool:
    """Equal to the bit, types, shapes, NaNs and signs of zero included."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return list(one) == list(two) and all(_same(one[key], two[key]) for key in one)
    if type(one) is not type(two):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, np.ndarray | np.generic):
        same_kind = one.dtype == two.dtype and one.shape == two.shape
        return same_kind and one.tobytes() == two.tobytes()
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", two)
    return one == two


def _try_method(
    env: gymnasium.Env, fresh: gymnasium.Env | None, method: str, steps: int
) -> None:
    if method == "replay":
        env, fresh = recorded(env), fresh and recorded(fresh)
    before = [_save_wrapper(wrapper, env) for wrapper in _wrappers(env)]
    own = codec.Encoder()
    for path, holder in _holders(env.unwrapped):
        _note_own(own, holder, path)
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    try:
        env.reset(seed=1)
        env.reset()  # a later episode: what the first one left behind counts
        _play(env, [space.sample() for _ in range(steps)])
        data = save(env, method).to_bytes()
        actions = [space.sample() for _ in range(steps)]
        expected = _play(env, actions)
        for name, place in (("the same env", env), ("a fresh one", fresh)):
            if place is None:
                continue
            restore(place, EnvState.from_bytes(data))
            if not _same(_play(place, actions), expected):
                raise InexactState(f"{name} went on differently after restoring.")
    finally:
        for wrapper, (_, saved) in zip(_wrappers(env), before, strict=True):
            _restore_wrapper(wrapper, saved, env)
        _set_own(env.unwrapped, own.random, own.clocks)


def _play(env: gymnasium.Env, actions: list[Any]) -> list[Any]:
    """All that an env answers, and its generators at the end; an ended episode is followed by one."""
    seen: list[Any] = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(copy.deepcopy([obs, reward, terminated, truncated, _without_clock(info)]))
        if terminated or truncated:
            seen.append(copy.deepcopy(env.reset()[0]))
    own = codec.Encoder()
    for path, holder in _holders(env.unwrapped):
        _note_own(own, holder, path)
    return [*seen, own.random]


def _without_clock(info: dict[str, Any]) -> dict[str, Any]:
    episode = info.get("episode")
    if not isinstance(episode, dict):
        return info
    return info | {"episode": {key: value for key, value in episode.items() if key != "t"}}


# --- the training loop's env ---


class Episodes(gymnasium.Wrapper):
    """An env whose every episode follows from a seed of its own and the actions taken.

    `reset()` draws the episode's seed from `generator`. `state_dict()` holds the env in
    mid-episode, so that a resumed run continues to the bit.
    """

    def __init__(self, env: gymnasium.Env, generator: np.random.Generator):
        super().__init__(recorded(env) if method_of(env) == "replay" else env)
        self.generator = generator
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
        return self.obs, float(reward), terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """The generator and, within an episode, the EnvState's bytes as one array.

        An env that cannot be saved is reported, and its episode is not there.
        """
        episode = None
        if self.seed is not None:
            try:
                episode = np.frombuffer(save(self.env).to_bytes(), np.uint8)
            except InexactState as error:
                log.warning("A resumed run would begin a new episode: %s", error)
        return {
            "generator": self.generator.bit_generator.state,
            "seed": self.seed,
            "episode": episode,
            "obs": None if self.obs is None else np.array(self.obs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the saved episode and step; `obs` is then its observation.

        An env that does not get there again (it keeps something from one episode to the next, or
        a package has changed) is reported, and `obs` is None: the caller begins a new episode.
        """
        self.generator.bit_generator.state = state["generator"]
        self.seed, self.obs = None, None
        if state["seed"] is None:
            return
        try:
            if state.get("episode") is None:
                raise InexactState("The checkpoint does not hold its episode.")
            restore(self.env, EnvState.from_bytes(state["episode"].tobytes()))
        except (ConfigError, DamagedState) as error:
            log.warning(
                "The env did not return to its saved state: %s The run goes on, with a new "
                "episode, but not to the bit.",
                error,
            )
            return
        self.seed, self.obs = state["seed"], np.array(state["obs"])
