"""The saved state of an env in mid-episode, by the method that is exact for it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import Guard
from rlearly.envs.state import codec, simulators
from rlearly.envs.state.action_replay import (
    ActionRecorder,
    InexactState,
    encode_recording,
    id_of,
    own_randomness,
    recorder_of,
    replay,
    set_randomness,
)
from rlearly.envs.state.generators import with_state
from rlearly.envs.state.objects import (
    RANDOM,
    attributes_of,
    is_function,
    is_plain,
    root_of,
    shared_values,
    trusted,
)
from rlearly.envs.state.serialization import DamagedState, from_bytes, to_bytes

METHODS = ("mujoco", "control", "attributes", "ale", "replay")  # these names are in saved files
PLAIN_FAMILIES = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "minigrid")
"""Packages of envs that are fully described by their Python attributes."""
WALL_CLOCK = {"RecordEpisodeStatistics": {"episode_start_time", "time_queue"}}
"""Wrapper -> attributes that hold wall-clock time, which cannot be restored."""
_PROVED: dict[type, list[tuple[str, dict[str, Any]]]] = {}
"""Class of an env or wrapper -> (method, settings) by and with which `self_test` proved that it
returns."""
_PROVED_HERE: dict[int, tuple[weakref.ref[Any], str]] = {}
"""id -> (env or wrapper, method) of those that were played by `self_test` themselves."""


@dataclass(frozen=True, eq=False)
class EnvState:
    """The saved state of an env in mid-episode: arrays and plain Python data, no code.

    Attributes:
        method: how it was saved, see `method_of`.
        env_id: the env's registered id.
        simulator: the simulated world, the task and everything else that the env keeps.
        random: the random generators of the env and its wrappers.
        wrappers: of each wrapper, outermost first: [class name, {attribute: value}].
        versions: package -> version, of the packages that exactness depends on.
    """

    method: str
    env_id: str
    simulator: dict[str, Any]
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
    proved = None if trusted(type(base)) else _proof_of(base)
    if proved is not None:
        return proved
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


def save_unchecked(env: gymnasium.Env, method: str | None = None) -> EnvState:
    """`save` without asking whether the env's classes were proved.

    Raises:
        InexactState: the env or one of its wrappers cannot be saved to the bit.
    """
    base = env.unwrapped
    recorder = recorder_of(env)
    chosen = method or method_of(env)
    encoder = _encoder(env)
    simulator: dict[str, Any] = {}
    if chosen != "replay":
        try:
            simulator = encoder.encode(base)
        except (codec.Unencodable, RecursionError) as error:
            if method or recorder is None:
                raise InexactState(
                    f"{id_of(base)} cannot be saved by its attributes: {error}, expected numbers, "
                    "text, arrays and containers of them; call with_action_recorder(env) before "
                    "its reset: its actions are then repeated."
                ) from None
            chosen = "replay"
    random = encoder.random
    if chosen == "replay":
        simulator = encode_recording(base, recorder)
        encoder = codec.Encoder(chain_of(env), shared=encoder.shared)
        random = own_randomness(base)
    wrappers = _encode_wrappers(env, encoder)
    return EnvState(
        method=chosen,
        env_id=id_of(base),
        simulator=simulator,
        random=random | encoder.random,
        wrappers=wrappers,
        versions=_versions(chosen, base),
    )


def restore(env: gymnasium.Env, state: EnvState) -> None:
    """Make an env continue from `state` to the bit. See `save` for an example.

    Args:
        env: the saved env or one built alike. An env without wrappers accepts the state of one
            with wrappers; the state of the wrappers is then ignored.
        state: from `save`.

    Raises:
        ConfigError: the state is from a different env, different wrappers or package versions.
        InexactState: the env did not reach the state. Reset it after any error.
    """
    base, wrappers = env.unwrapped, _wrappers(env)
    check_fits(base, state)
    _check_wrappers(wrappers, state)
    if state.method == "replay":
        replay(base, recorder_of(env), state.simulator, state.random)
        decoder = codec.Decoder(chain_of(env), state.random, in_place=held_by([base]))
    else:
        decoder = _restore_attributes(env, state)
    if wrappers:
        _decode_wrappers(env, state.wrappers, decoder)


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    """The wrappers of an env, outermost first, without its `ActionRecorder` and guards."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, ActionRecorder | Guard):
            found.append(env)
        env = env.env
    return found


def chain_of(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The unwrapped env, then its wrappers, outermost first, without its `ActionRecorder`."""
    return [env.unwrapped, *_wrappers(env)]


def unproved(env: gymnasium.Env) -> list[str]:
    """The classes of an env and its wrappers that may not return to their saved states.

    Those of packages that are restored by our tests, and those that `self_test` proved with the
    same settings, do.
    """
    return [
        type(one).__qualname__
        for one in chain_of(env)
        if not trusted(type(one)) and _proof_of(one) is None
    ]


def settings_of(one: Any) -> dict[str, Any]:
    """The numbers, texts and names of functions among an object's attributes."""
    scalars = (bool, int, float, str, type(None))
    return {
        name: value if isinstance(value, scalars) else getattr(value, "__qualname__", None)
        for name, value in vars(one).items()
        if name not in RANDOM and (isinstance(value, scalars) or is_function(value))
    }


def count_as_proved(env: gymnasium.Env, method: str, settings: list[dict[str, Any]]) -> None:
    """From now on `save` trusts the classes of this env and its wrappers, by this method.

    Args:
        settings: for each of `chain_of(env)`, the `settings_of` it that playing did not change.
    """
    for one, constant in zip(chain_of(env), settings, strict=True):
        proofs = _PROVED.setdefault(type(one), [])
        if (method, constant) not in proofs:
            proofs.append((method, constant))
        _PROVED_HERE[id(one)] = (weakref.ref(one), method)


def _proof_of(one: Any) -> str | None:
    """The method by which this env or wrapper, or one with the same settings, was proved."""
    reference, method = _PROVED_HERE.get(id(one), (None, ""))
    if reference is not None and reference() is one:
        return method
    own = settings_of(one)
    for method, settings in _PROVED.get(type(one), ()):
        if all(name in own and own[name] == value for name, value in settings.items()):
            return method
    return None


def _encoder(env: gymnasium.Env) -> codec.Encoder:
    chain = chain_of(env)
    return codec.Encoder(chain[1:], shared=shared_values([type(one) for one in chain]))


def _restore_attributes(env: gymnasium.Env, state: EnvState) -> codec.Decoder:
    base, recorder = env.unwrapped, recorder_of(env)
    for may_reset in (True, False):
        if recorder is not None:
            recorder.clear()
        decoder = codec.Decoder(chain_of(env), state.random)
        try:
            decoder.decode(state.simulator, base)
            return decoder
        except (codec.Incomplete, simulators.DifferentModel) as error:
            if not may_reset:
                raise ConfigError(
                    f"This {id_of(base)} is not built like the saved one (different: {error}): "
                    "build it with the same arguments (and model seed)."
                ) from None
            env.reset(seed=0)  # an env that was never reset may lack attributes
    raise AssertionError


def held_by(holders: list[Any]) -> set[int]:
    """The ids of arrays that envs or wrappers hold, and of those that own their memory."""
    held: set[int] = set()
    todo: list[tuple[Any, int]] = [(holder, 3) for holder in holders]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, np.ndarray):
            held |= {id(value), id(root_of(value))}
        elif isinstance(value, list | tuple | deque | dict) and depth and len(value) <= 1000:
            items = value.values() if isinstance(value, dict) else value
            todo += [(item, depth - 1) for item in items]
        elif is_plain(type(value)) and depth:
            own = attributes_of(value).items()
            todo += [(item, depth - 1) for key, item in own if key != "env"]
    return held


def set_generators(base: gymnasium.Env, random: Mapping[str, Any]) -> None:
    """Set an env's random generators to the states in an `EnvState`, wherever they are."""
    encoder = _encoder(base)
    with contextlib.suppress(codec.Unencodable, RecursionError):
        encoder.encode(base)
    for where, state in random.items():
        if where in encoder.generators:
            with_state(encoder.generators[where], state)
        elif not where.startswith("#"):
            set_randomness(base, {where: state})


def remembered(env: gymnasium.Env) -> Callable[[], None]:
    """A function that puts an env and its wrappers back as they are now, as far as possible.

    Of an env that is saved by repeating its actions only the random generators, the wrappers and,
    if it is none that our tests restore, attributes that are integers or floats are put back.
    """
    base: Any = env.unwrapped
    encoder = _encoder(env)
    tree: Any = None
    with contextlib.suppress(codec.Unencodable, RecursionError):
        if method_of(env) != "replay" or not trusted(type(base)):
            tree = encoder.encode(base)
    random: dict[str, Any] = {}
    counters: dict[str, Any] = {}
    if tree is None:
        if not trusted(type(base)):
            counters = {k: v for k, v in vars(base).items() if type(v) in (int, float)}
        chain = chain_of(env)
        encoder = codec.Encoder(chain, shared=encoder.shared)
        random = own_randomness(base)
    seeded = getattr(base, "_np_random", None) is not None
    wrappers = _encode_wrappers(env, encoder)

    def put_back() -> None:
        held = held_by([base]) if tree is None else ()
        decoder = codec.Decoder(chain_of(env), encoder.random, in_place=held)
        if tree is not None:
            with contextlib.suppress(codec.Incomplete, simulators.DifferentModel):
                decoder.decode(tree, base)
        else:
            set_randomness(base, random)
            for key, value in counters.items():
                if type(vars(base).get(key)) is type(value):
                    vars(base)[key] = value
        if not seeded:  # an env that was never seeded must not keep the test's seed
            with contextlib.suppress(AttributeError):
                base._np_random = None
        _decode_wrappers(env, wrappers, decoder)

    return put_back


def save_own_states(env: gymnasium.Env) -> list[Any]:
    """[class name, its `state_dict`, generators in it] of each wrapper that has one.

    These are independent of the env's state, so that they can be restored without it. None takes
    the place of a state that is not plain data.
    """
    saved = []
    for wrapper in _with_own_state(env):
        encoder = codec.Encoder(chain_of(env))
        try:
            tree = encoder.encode(dict(wrapper.state_dict()))
        except (codec.Unencodable, RecursionError):
            tree = None
        saved.append([type(wrapper).__name__, tree, encoder.random])
    return saved


def restore_own_states(env: gymnasium.Env, saved: list[Any]) -> None:
    """Restore what `save_own_states` returned; the env must be reset afterwards.

    Nothing is restored if the wrappers are others. A wrapper that has `forget_episode` is told that
    its running episode is lost.
    """
    wrappers = _with_own_state(env)
    if [type(wrapper).__name__ for wrapper in wrappers] != [name for name, _, _ in saved]:
        return
    for wrapper, (_, tree, random) in zip(wrappers, saved, strict=True):
        if tree is not None:
            decoder = codec.Decoder(chain_of(env), random)
            wrapper.load_state_dict(decoder.decode(tree, codec.MISSING))
        if hasattr(wrapper, "forget_episode"):
            wrapper.forget_episode()


def _with_own_state(env: gymnasium.Env) -> list[Any]:
    return [wrapper for wrapper in _wrappers(env) if hasattr(wrapper, "state_dict")]


def _encode_wrappers(env: gymnasium.Env, encoder: codec.Encoder) -> list[Any]:
    saved = []
    for i, wrapper in enumerate(_wrappers(env), 1):
        name, path = type(wrapper).__name__, (f"#{i}",)
        try:
            if hasattr(wrapper, "state_dict"):
                values = dict(wrapper.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
                saved.append([name, {"~state_dict": encoder.encode(values, (*path, "~"))}])
            else:
                skip = {"env", *WALL_CLOCK.get(name, ())}
                saved.append([name, encoder.attributes(wrapper, path, skip)])
        except (codec.Unencodable, RecursionError) as error:
            reason = str(error).removeprefix(f"#{i}.")
            raise InexactState(
                f"The wrapper {name} cannot be saved: {reason}, expected numbers, text, arrays and "
                "containers of them; give it state_dict() and load_state_dict(), or remove it."
            ) from None
    return saved


def _decode_wrappers(env: gymnasium.Env, saved: list[Any], decoder: codec.Decoder) -> None:
    for i, (wrapper, (_, tree)) in enumerate(zip(_wrappers(env), saved, strict=True), 1):
        held: Any = wrapper
        try:
            if "~state_dict" in tree:
                path = (f"#{i}", "~")
                held.load_state_dict(decoder.decode(tree["~state_dict"], codec.MISSING, path))
            else:
                decoder.attributes(tree, held, (f"#{i}",))
        except codec.Incomplete as error:
            reason = str(error).removeprefix(f"#{i}.")
            raise InexactState(
                f"The wrapper {type(wrapper).__name__} cannot be restored: {reason}; build the env "
                "and its wrappers as the saved ones were built."
            ) from None


def check_fits(base: gymnasium.Env, state: EnvState) -> None:
    """Check that a state is of an env with this id, and of these package versions.

    Raises:
        ConfigError: it is not.
    """
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


def _check_wrappers(wrappers: list[Any], state: EnvState) -> None:
    names = [type(wrapper).__name__ for wrapper in wrappers]
    saved = [name for name, _ in state.wrappers]
    if names and names != saved:
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
