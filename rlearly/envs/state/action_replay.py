"""Save any env as its episode's seed and actions; restore it by repeating them."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import InnermostGuard
from rlearly.envs.state import codec
from rlearly.envs.state.compare import same
from rlearly.envs.state.generators import draw_seed, generator_state, is_generator, with_state
from rlearly.envs.state.objects import is_plain, renders


class InexactState(ConfigError):
    """An env cannot be saved or restored to the bit."""


def require_one_env(env: Any) -> None:
    """Raise ConfigError if `env` is a vector env, or no gymnasium env at all."""
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ConfigError(
            "Expected one env, received a vector of them: save or wrap each of its envs by itself, "
            "as in gymnasium.make_vec(id, 4, wrappers=[lambda env: SnapshotRL(env, ...)])."
        )
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"Expected a gymnasium env, received {env!r}; see gymnasium.make.")


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
        self.observed = 0  # checksum of all observations
        self._generator: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.clear()
        if seed is None:
            seed = draw_seed(self.unwrapped.np_random)
        self.options = copy.deepcopy(options)
        rebuild_box2d_world(self.unwrapped)
        obs, info = self.env.reset(seed=seed, options=options)
        self.seed = seed
        self._record(obs, [])
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        generator = self._generator_state()
        if self.seed is not None and not same(generator, self._generator):
            self.drawn.append([len(self.actions), generator])
        self.actions.append(copy.deepcopy(action))
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._record(obs, [reward, terminated, truncated])
        return obs, reward, terminated, truncated, info

    def _record(self, obs: Any, others: list[Any]) -> None:
        self.checksum = _checksum([obs, *others], self.checksum)
        self.observed = _checksum(obs, self.observed)
        self._generator = self._generator_state()

    def _generator_state(self) -> Any:
        generator = getattr(self.unwrapped, "_np_random", None)
        return generator_state(generator) if is_generator(generator) else None


ADJACENT = (ActionRecorder, InnermostGuard)
"""What stays directly around an unwrapped env."""


def with_action_recorder(env: gymnasium.Env) -> gymnasium.Env:
    """`env` with an `ActionRecorder` around its unwrapped env, unless it has one already.

    Raises:
        ConfigError: it is a vector env, or no gymnasium env.
    """
    require_one_env(env)
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
        "observed": recorder.observed,
    }
    try:
        return codec.Encoder().encode(recording)
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
    *,
    only_observations: bool = False,
) -> None:
    """Repeat a recorded episode, then set the generators (None: as they were before).

    Args:
        only_observations: rewards and endings may differ from the recorded ones.

    Raises:
        InexactState: it did not lead to the same observations, rewards and endings.
    """
    recorder = recorder or ActionRecorder(base)
    saved = codec.Decoder([base], {}).decode(recording, codec.MISSING)
    own_random = own_randomness(base)
    recorder.reset(seed=saved["seed"], options=saved["options"])
    drawn = dict(saved["drawn"])
    for i, action in enumerate(saved["actions"]):
        if i in drawn:
            set_randomness(base, {"_np_random": drawn[i]})
        recorder.step(action)
    name = "observed" if only_observations else "checksum"
    if getattr(recorder, name) != saved[name]:
        recorder.clear()
        raise InexactState(
            f"{id_of(base)} did not return to its saved state when its {len(saved['actions'])} "
            "actions were repeated from its seed: it keeps something from one episode to the "
            "next, or draws randomness that does not follow from its seed."
        )
    set_randomness(base, own_random if random is None else random)


def holders(base: Any) -> Iterator[tuple[str, Any]]:
    """(path, object) of the env and of the objects in its attributes, two deep."""
    todo: list[tuple[str, Any, int]] = [("", base, 2)]
    seen = {id(base)}
    while todo:
        path, owner, depth = todo.pop()
        yield path, owner
        for key, item in vars(owner).items() if depth else ():
            kind = type(item)
            inner = is_plain(kind) and hasattr(item, "__dict__") and not renders(kind)
            if inner and id(item) not in seen:
                seen.add(id(item))
                todo.append((f"{path}.{key}" if path else key, item, depth - 1))


def own_randomness(base: gymnasium.Env) -> dict[str, Any]:
    """States of the generators of an env, by their paths."""
    random = {}
    for path, holder in holders(base):
        for key, value in vars(holder).items():
            if is_generator(value):
                random[f"{path}.{key}" if path else key] = generator_state(value)
    return random


def set_randomness(base: gymnasium.Env, random: dict[str, Any]) -> None:
    """Set what `own_randomness` returned."""
    by_path = dict(holders(base))
    for where, state in random.items():
        owner, _, key = where.rpartition(".")
        if owner in by_path and "value" not in state:
            held = vars(by_path[owner])
            held[key] = with_state(held.get(key), state)


def rebuild_box2d_world(base: Any) -> None:
    """Before a reset: replace Box2D's world, which carries hidden state between episodes."""
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
