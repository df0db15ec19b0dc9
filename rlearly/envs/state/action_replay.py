"""Save any env as its episode's seed and actions; restore it by repeating them."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import InnermostGuard
from rlearly.envs.state import codec


class InexactState(ConfigError):
    """An env cannot be saved or restored to the bit."""


class InnermostWrapper(gymnasium.Wrapper):
    """A wrapper directly around the unwrapped env, inserted by `innermost`."""

    @property
    def spec(self) -> Any:
        """The env's own spec, without this wrapper."""
        return self.env.spec


def innermost(env: gymnasium.Env, make: Callable[[gymnasium.Env], Any]) -> tuple[Any, Any]:
    """Insert the wrapper `make(inner)` around the unwrapped env, its guard and its action recorder.

    Returns (env, the new wrapper); `env` is changed in place unless it is itself the innermost.
    """
    inner, outer = env, None
    while isinstance(inner, gymnasium.Wrapper) and not isinstance(inner, ADJACENT):
        outer, inner = inner, inner.env
    wrapper = make(inner)
    if outer is None:
        return wrapper, wrapper
    outer.env = wrapper
    return env, wrapper


class ActionRecorder(InnermostWrapper):
    """Records an episode's seed, options and actions, so that it can be repeated.

    Insert it with `with_action_recorder(env)`. A reset without a seed draws one from the env's own
    generator, so that every episode can be repeated. If other code uses that generator between two
    steps, its state is recorded too. Box2D's world carries hidden state from one episode to the
    next and is therefore rebuilt at each reset.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.clear()

    def clear(self) -> None:
        """Drop the recording, because repeating it would no longer lead to the env's state."""
        self.seed: int | None = None
        self.options: Any = None
        self.actions: list[Any] = []
        self.drawn: list[list[Any]] = []  # [steps before it, the generator's state]
        self.checksum = 0  # of all observations, rewards and flags
        self._generator: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.clear()
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2**31))
        self.options = copy.deepcopy(options)
        _rebuild_box2d_world(self.unwrapped)
        obs, info = self.env.reset(seed=seed, options=options)
        self.seed = seed
        self._record(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        generator = self._generator_state()
        if self.seed is not None and not same(generator, self._generator):
            self.drawn.append([len(self.actions), generator])
        self.actions.append(copy.deepcopy(action))
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._record([obs, reward, terminated, truncated])
        return obs, reward, terminated, truncated, info

    def _record(self, outputs: Any) -> None:
        self.checksum = _checksum(outputs, self.checksum)
        self._generator = self._generator_state()

    def _generator_state(self) -> Any:
        generator = getattr(self.unwrapped, "_np_random", None)
        return None if generator is None else codec.generator_state(generator)


ADJACENT = (ActionRecorder, InnermostGuard)
"""What stays directly around an unwrapped env."""


def with_action_recorder(env: gymnasium.Env) -> gymnasium.Env:
    """`env` with an `ActionRecorder` around its unwrapped env, unless it has one already."""
    return env if recorder_of(env) else innermost(env, ActionRecorder)[0]


def recorder_of(env: gymnasium.Env) -> ActionRecorder | None:
    """The `ActionRecorder` in a chain of wrappers, if there is one."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ActionRecorder):
            return env
        env = env.env
    return None


def encode_recording(base: gymnasium.Env, recorder: ActionRecorder | None) -> dict[str, Any]:
    """A recording as a tree.

    Raises:
        InexactState: there is no recording, or its actions are not plain data.
    """
    if recorder is None or recorder.seed is None:
        why = "its actions were not recorded" if recorder is None else "it was not reset"
        raise InexactState(
            f"{id_of(base)} can be saved only by repeating its actions, and {why}: call "
            "with_action_recorder(env) before the reset, and reset it with a seed."
        )
    actions: Any = recorder.actions
    first = actions[0] if actions else None
    if isinstance(first, np.ndarray | np.generic) and all(
        type(a) is type(first) and a.dtype == first.dtype and a.shape == first.shape
        for a in actions
    ):
        actions = np.stack(actions)
    recording = {
        "seed": recorder.seed,
        "options": recorder.options,
        "actions": actions,
        "drawn": recorder.drawn,
        "checksum": recorder.checksum,
    }
    try:
        return codec.Encoder().encode(recording, "the recording")
    except codec.Unencodable as error:
        raise InexactState(
            f"{id_of(base)} cannot be saved: {error}, expected reset options and actions that are "
            "numbers, text, arrays and containers of them."
        ) from None


def replay(
    base: gymnasium.Env,
    recorder: ActionRecorder | None,
    recording: dict[str, Any],
    random: dict[str, Any] | None,
    clocks: dict[str, Any] | None,
) -> None:
    """Repeat a recorded episode, then set generators and clocks (None: as they were before).

    Raises:
        InexactState: it did not lead to the same observations, rewards and endings.
    """
    recorder = recorder or ActionRecorder(base)
    saved = codec.Decoder(base, {}, {}).decode(recording, codec.MISSING, "")
    own_random, own_clocks = own_randomness(base)
    recorder.reset(seed=saved["seed"], options=saved["options"])
    drawn = dict(saved["drawn"])
    for i, action in enumerate(saved["actions"]):
        if i in drawn:
            set_randomness(base, {"_np_random": drawn[i]}, {})
        recorder.step(action)
    if recorder.checksum != saved["checksum"]:
        recorder.clear()
        raise InexactState(
            f"{id_of(base)} did not return to its saved state when its {len(saved['actions'])} "
            "actions were repeated from its seed: it keeps something from one episode to the "
            "next, or draws randomness that does not follow from its seed."
        )
    set_randomness(
        base,
        own_random if random is None else random,
        own_clocks if clocks is None else clocks,
    )


def _holders(base: Any) -> list[tuple[str, Any]]:
    """(path, object) of each object that may hold an env's generators and clocks."""
    holders = [("", base)]
    for path in ("_control", "_env", "_control._task", "_env._task"):
        owner = base
        for name in path.split("."):
            owner = getattr(owner, "__dict__", {}).get(name)
        if hasattr(owner, "__dict__"):
            holders.append((path, owner))
    return holders


def own_randomness(base: gymnasium.Env) -> tuple[dict[str, Any], dict[str, Any]]:
    """(states of the generators, clocks) of an env, by their paths."""
    random, clocks = {}, {}
    for path, holder in _holders(base):
        for key, value in vars(holder).items():
            where = f"{path}.{key}" if path else key
            if isinstance(value, np.random.Generator | np.random.RandomState):
                random[where] = codec.generator_state(value)
            elif key in codec.CLOCKS and isinstance(value, bool | int):
                clocks[where] = value
    return random, clocks


def set_randomness(base: gymnasium.Env, random: dict[str, Any], clocks: dict[str, Any]) -> None:
    """Set what `own_randomness` returned."""
    for path, holder in _holders(base):
        held = vars(holder)
        for saved, is_random in ((random, True), (clocks, False)):
            for where, value in saved.items():
                owner, _, key = where.rpartition(".")
                if owner == path:
                    held[key] = codec.with_state(held.get(key), value) if is_random else value


def _rebuild_box2d_world(base: Any) -> None:
    world = vars(base).get("world")
    if type(world).__name__ != "b2World":
        return
    base._destroy()
    base.world = type(world)(gravity=world.gravity)
    listener = getattr(world, "contactListener", None)
    if listener is not None:
        base.world.contactListener = listener


def id_of(base: Any) -> str:
    """The registered id, dm_control's task name, or the class."""
    if base.spec is not None:
        return base.spec.id
    return getattr(base, "task_name", f"{type(base).__module__}:{type(base).__qualname__}")


def _checksum(tree: Any, start: int) -> int:
    """CRC-32 of the bits of observations, rewards and flags."""
    if isinstance(tree, Mapping):
        tree = [part for item in tree.items() for part in item]
    if isinstance(tree, list | tuple):
        for item in tree:
            start = _checksum(item, start)
        return start
    if isinstance(tree, np.ndarray | np.generic) and not tree.dtype.hasobject:
        return zlib.crc32(np.ascontiguousarray(tree).data, start)
    data = struct.pack("<d", tree) if isinstance(tree, float) else repr(tree).encode()
    return zlib.crc32(data, start)


def same(one: Any, two: Any) -> bool:
    """Equal to the bit, including types, shapes, NaNs and signs of zero."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if type(one) is not type(two):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, np.ndarray | np.generic):
        same_kind = one.dtype == two.dtype and one.shape == two.shape
        return same_kind and one.tobytes() == two.tobytes()
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", two)
    return one == two
