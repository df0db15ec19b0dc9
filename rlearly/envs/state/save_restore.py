"""Save an env in mid-episode and restore it to the bit, where trying shows that it is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import guarded
from rlearly.envs.state import env_state
from rlearly.envs.state.action_replay import (
    InexactState,
    id_of,
    own_randomness,
    recorder_of,
    require_one_env,
    with_action_recorder,
)
from rlearly.envs.state.codec import Encoder
from rlearly.envs.state.compare import first_difference
from rlearly.envs.state.env_state import (
    METHODS,
    EnvState,
    chain_of,
    method_of,
    restore,
    save_unchecked,
)
from rlearly.envs.state.generators import global_generators_watched
from rlearly.envs.state.objects import outside_values, trusted
from rlearly.envs.state.world import tree_text
from rlearly.envs.wrappers import UNBOUNDED


def save(env: gymnasium.Env, method: str | None = None) -> EnvState:
    """Save the state of an env and of all its wrappers. The env does not change.

    Envs and wrappers of gymnasium, dm_control and other packages that our tests restore are saved
    as they are. Of any other class, `self_test` must have shown that it returns to its saved
    states. If it was never called, it is called now, on a new env made from `env.spec`.

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
        InexactState: the env or one of its wrappers cannot be saved to the bit, or was never shown
            to return.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, received {method!r}.")
    require_one_env(env)
    replays = recorder_of(env) is not None and (method or method_of(env)) == "replay"
    if not replays or any(not trusted(type(w)) for w in chain_of(env)[1:]):
        _prove(env)
    return save_unchecked(env, method)


def self_test(
    env: gymnasium.Env, steps: int = 20, make_fresh: Callable[[], gymnasium.Env] | None = None
) -> str:
    """Find the method that restores this env to the bit, by trying it.

    The env is played, saved, played for `steps` random steps, restored from bytes, and played with
    the same actions again. This is done from three points of an episode, and everything must be
    equal, including episodes that begin afterwards. Nothing may be drawn from the global generators
    of numpy, Python or torch, or change outside the env's attributes. Afterwards wrappers and
    random generators are as before, and the env must be reset. If the method is "replay", it has an
    action recorder. From then on the classes of the env and its wrappers count as proved: `save`
    accepts them.

    Args:
        make_fresh: makes a second env built alike, in which the state is restored too.

    Raises:
        InexactState: no method is exact. The message says what differed first.
        UserCodeFailed: the env raised, or returned something unusable.
    """
    require_one_env(env)
    env = guarded(env)
    first = method_of(env)
    if first == "replay" and not trusted(type(env.unwrapped)):
        first = "attributes"
    reasons: dict[str, str] = {}
    for method in dict.fromkeys((first, "replay")):
        fresh = guarded(make_fresh()) if make_fresh else None
        try:
            settings = _try_method(env, fresh, method, steps)
            env_state.count_as_proved(env, method, settings)
            return method
        except ConfigError as error:
            reasons.setdefault(str(error).rstrip("."), method)
        finally:
            if fresh is not None:
                fresh.close()
    listed = "; ".join(f"{method}: {reason}" for reason, method in reasons.items())
    raise InexactState(
        f"{id_of(env.unwrapped)} cannot return to a saved state to the bit ({listed}): start its "
        "episodes from the beginning."
    )


def _prove(env: gymnasium.Env) -> None:
    """Run `self_test` on copies of this env if one of its classes was never proved.

    The unwrapped env is made anew from its spec, or copied if its class is one that our tests
    restore. An env that may share something with its copy (a server, a device) is never copied.

    Raises:
        InexactState: it cannot be made again, or it does not return to its saved states.
    """
    base: Any = env.unwrapped
    for attempt in (_from_spec, _copy):
        if not env_state.unproved(env):
            return
        fresh = None
        try:
            fresh = attempt(env, base)
            if fresh is not None:
                self_test(fresh)
        except InexactState:
            raise
        except Exception:  # copying and making run code of others, which may raise anything
            continue
        finally:
            if fresh is not None:
                fresh.close()
    names = env_state.unproved(env)
    if names:
        raise InexactState(
            f"{id_of(base)} was never shown to return to a saved state (its {', '.join(names)}): "
            "call rlearly.self_test(env) once before the reset; it plays the env and compares."
        )


def _from_spec(env: gymnasium.Env, base: gymnasium.Env) -> gymnasium.Env | None:
    """The env as its registration makes it."""
    if base.spec is None:
        return None
    return gymnasium.make(base.spec, disable_env_checker=True)


def _copy(env: gymnasium.Env, base: gymnasium.Env) -> gymnasium.Env | None:
    """A copy of the wrappers, around a new or copied env."""
    fresh: gymnasium.Env | None = None
    if base.spec is not None:
        fresh = gymnasium.make(base.spec, disable_env_checker=True).unwrapped
    elif trusted(type(base)):
        fresh = copy.deepcopy(base)
    return None if fresh is None else copy.deepcopy(env, {id(base): fresh})


@contextmanager
def left_as_before(env: gymnasium.Env) -> Iterator[None]:
    """Within the block, the env may be played; afterwards it must be reset.

    The env, its wrappers and random generators are then as before, as far as the env is saved by
    its attributes; of others, the wrappers and generators are.

    Raises:
        InexactState: within the block a global generator was drawn from, or something changed that
            the env keeps outside its attributes.
    """
    put_back = env_state.remembered(env)
    kinds = [type(one) for one in chain_of(env)]
    before = _encoded(outside_values(kinds))
    try:
        with global_generators_watched() as drawn:
            yield
    finally:
        put_back()
    if drawn:
        raise InexactState(
            f"it draws from the global generator {' and '.join(drawn)}, which is not its own: let "
            "it draw from self.np_random"
        )
    after = _encoded(outside_values(kinds))
    changed = [key for key in after if key not in before or before[key] != after[key]]
    if changed:
        module, path = changed[0]
        raise InexactState(
            f"it changes {module}{''.join(path)}, which is outside its attributes: keep it in self"
        )


def _encoded(values: dict[Any, Any]) -> dict[Any, Any]:
    """Texts of values, so that a change shows."""
    texts: dict[Any, str] = {}
    for key, value in values.items():
        encoder = Encoder(opaque=True)
        with suppress(RecursionError):
            tree = encoder.encode(value)
            texts[key] = tree_text([tree, encoder.random])
    return texts


def _try_method(
    env: gymnasium.Env, fresh: gymnasium.Env | None, method: str, steps: int
) -> list[dict[str, Any]]:
    """Try a method; returns the settings of the env and its wrappers that did not change."""
    built = fresh if fresh is not None else env
    settings = [env_state.settings_of(one) for one in chain_of(built)]
    if method == "replay":
        env, fresh = with_action_recorder(env), fresh and with_action_recorder(fresh)
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    with left_as_before(env):
        env.reset(seed=1)
        env.reset()  # a later episode: what the first one leaves behind must not matter
        for played, away in ((0, 3), (steps - 3, 5), (1, 4)):
            play(env, [sample(space) for _ in range(played)])
            data = save_unchecked(env, method).to_bytes()
            actions = [sample(space) for _ in range(steps)]
            expected = play(env, actions)
            play(env, [sample(space) for _ in range(away)])  # not back at the same step by chance
            settings = _unchanged(settings, [env_state.settings_of(one) for one in chain_of(env)])
            for name, other in (("a fresh env", fresh), ("the same env", env)):
                if other is None:
                    continue
                restore(other, EnvState.from_bytes(data))
                difference = first_difference(expected, play(other, actions))
                if difference:
                    raise InexactState(f"{name} continued differently: {difference}")
    return settings


def _unchanged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in one.items() if name in two and two[name] == value}
        for one, two in zip(before, now, strict=True)
    ]


def sample(space: gymnasium.Space) -> Any:
    """A random action, within [-1, 1] if the space's bounds are too wide for a simulator."""
    action = space.sample()
    if isinstance(space, Box) and np.abs(space.high).max(initial=0) >= UNBOUNDED:
        return np.clip(action, -1, 1).astype(space.dtype)
    return action


def play(env: gymnasium.Env, actions: list[Any], *, one_episode: bool = False) -> dict[str, Any]:
    """Step an env; returns all its outputs and its generators' final states, each by its name.

    When an episode ends, the env is reset, or with `one_episode` not stepped any more.
    """
    seen: dict[str, Any] = {}
    for i, action in enumerate(actions):
        obs, reward, terminated, truncated, info = env.step(action)
        outputs = {
            "observation": obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "info": _without_clock(info),
        }
        seen |= {f"{key} at step {i}": copy.deepcopy(value) for key, value in outputs.items()}
        if terminated or truncated:
            if one_episode:
                break
            seen[f"observation of the reset after step {i}"] = copy.deepcopy(env.reset()[0])
    return seen | {"random generators": own_randomness(env.unwrapped)}


def _without_clock(info: dict[str, Any]) -> dict[str, Any]:
    episode = info.get("episode")
    if not isinstance(episode, dict):
        return info
    return info | {"episode": {key: value for key, value in episode.items() if key != "t"}}
