"""The guard around a user's env: what it raises, or returns wrongly, becomes one sentence.

`guarded(env)` puts it directly around the unwrapped env, and around the user's own wrappers. It
changes no value, and is no part of a saved state.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlearly.core.errors import OURS, ConfigError, UserCodeFailed, raised

RESET = "expected reset(self, *, seed=None, options=None)"
STEP_VALUES = "obs, reward, terminated, truncated, info"
OLD_API = (
    "this is the API of gym before 0.26: return all of them, or wrap the env with shimmy's "
    "GymV21CompatibilityV0"
)
USUAL_NUMBERS = frozenset({float, int, np.float64, np.float32})
USUAL_FLAGS = frozenset({bool, np.bool_})


class Guard(gymnasium.Wrapper):
    """Checks what an env's calls return, and names the call that failed.

    It changes no value. Attributes are read from and written to the env inside, as wrappers of the
    user's that are around it expect, and saving and restoring skip it. It takes less than a
    microsecond a step if observations are arrays.

    Raises:
        UserCodeFailed: a call raised, or returned something unusable: another number of values, a
            reward that is not one finite number, an ending that is not one truth value, an info
            that is not a dict, or an observation whose shape, kind of dtype or keys are not those
            of its space. A list is accepted as an array.
    """

    def __init__(self, env: gymnasium.Env, name: str):
        super().__init__(env)
        vars(self).clear()  # gymnasium's private attributes would hide those of the env
        # _guard_shape, _guard_dtype, _guard_parts: of the last observation that was checked in full
        vars(self).update(env=env, _guard_name=name)
        vars(self).update(_guard_shape=None, _guard_dtype=None, _guard_parts=None)

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = "_guard_name" not in vars(self) or name in vars(self)
        if own:
            object.__setattr__(self, name, value)
        else:
            setattr(self.env, name, value)

    @property
    def spec(self) -> Any:
        return self.env.spec

    @property
    def observation_space(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.env.observation_space

    @property
    def action_space(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.env.action_space

    @property
    def metadata(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.env.metadata

    def __str__(self) -> str:
        return str(self.env)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        call = f"reset({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"
        lacking = _lacking(self.env.reset)
        if lacking:
            raise self._failed(call, f"takes no keyword argument {lacking!r}", RESET)
        try:
            result = self.env.reset(**kwargs)
        except OURS:
            raise
        except BaseException as error:
            raise self._failed(call, raised(error)) from error
        if not isinstance(result, tuple | list) or len(result) != 2:
            remedy = f"expected obs, info{'' if result is None else f': {OLD_API}'}"
            raise self._failed(call, f"returned {_count(result)}", remedy)
        obs, info = result
        self._check_info(call, info)
        self._check_observation(call, obs)
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            result = self.env.step(action)
        except OURS:
            raise
        except BaseException as error:
            raise self._failed("step(action)", raised(error), action=action) from error
        if result.__class__ is tuple and len(result) == 5:
            obs, reward, terminated, truncated, info = result
            if (
                (
                    (obs.shape == self._guard_shape and obs.dtype == self._guard_dtype)
                    if obs.__class__ is np.ndarray
                    else self._is_like_the_last(obs)
                )
                and reward.__class__ in USUAL_NUMBERS
                and math.isfinite(reward)
                and terminated.__class__ in USUAL_FLAGS
                and truncated.__class__ in USUAL_FLAGS
                and info.__class__ is dict
            ):
                return result
        try:
            self._check_step(result)
        except UserCodeFailed as failed:
            failed.facts["action"] = action
            raise
        return result

    def render(self) -> Any:
        try:
            return self.env.render()
        except OURS:
            raise
        except BaseException as error:
            raise self._failed("render()", raised(error)) from error

    def close(self) -> None:
        try:
            self.env.close()
        except OURS:
            raise
        except BaseException as error:
            raise self._failed("close()", raised(error)) from error

    def _failed(self, call: str, did: str, remedy: str = "", **facts: Any) -> UserCodeFailed:
        return UserCodeFailed(f"env={self._guard_name}: {call} {did}", remedy=remedy, **facts)

    def _check_step(self, result: Any) -> None:
        call = "step(action)"
        if not isinstance(result, tuple | list) or len(result) != 5:
            old = isinstance(result, tuple | list) and len(result) == 4
            remedy = f"expected {STEP_VALUES}{f': {OLD_API}' if old else ''}"
            raise self._failed(call, f"returned {_count(result)}", remedy)
        obs, reward, *endings, info = result
        number = _number(reward)
        if number is None or not math.isfinite(number):
            shown = _described(reward) if number is None else number
            raise self._failed(call, f"returned a reward of {shown}", "expected one finite number")
        for name, ending in zip(("terminated", "truncated"), endings, strict=True):
            if _number(ending) is None:
                did = f"returned {name}={_described(ending)}"
                raise self._failed(call, did, "expected True or False")
        self._check_info(call, info)
        self._check_observation(call, obs)

    def _check_info(self, call: str, info: Any) -> None:
        if not isinstance(info, dict):
            did = f"returned an info of {_described(info)}"
            raise self._failed(call, did, "expected a dict, which may be empty")

    def _check_observation(self, call: str, obs: Any) -> None:
        wrong = misfit(obs, self.env.observation_space)
        if wrong:
            received, expected = wrong
            raise self._failed(
                call,
                f"returned an observation of {received}",
                f"expected {expected}, as its observation_space says",
                observation=obs,
            )
        if isinstance(obs, np.ndarray):
            self._guard_shape, self._guard_dtype = obs.shape, obs.dtype
        elif isinstance(obs, dict) and all(isinstance(part, np.ndarray) for part in obs.values()):
            self._guard_parts = {key: (part.shape, part.dtype) for key, part in obs.items()}

    def _is_like_the_last(self, obs: Any) -> bool:
        """Whether a dict of arrays has the keys, shapes and dtypes of the last one checked."""
        parts = self._guard_parts
        if obs.__class__ is not dict or parts is None or len(obs) != len(parts):
            return False
        for key, part in obs.items():
            seen = parts.get(key)
            if seen is None or part.__class__ is not np.ndarray:
                return False
            if part.shape != seen[0] or part.dtype != seen[1]:
                return False
        return True


class InnermostGuard(Guard):
    """The guard directly around the unwrapped env, inside everything that is inserted there."""


def guarded(env: gymnasium.Env, name: str | None = None) -> gymnasium.Env:
    """`env` with guards around its unwrapped env, and around wrappers of the user's.

    `env` is changed in place if it has wrappers. Guards that it has already are kept.

    Args:
        name: for messages; None: the registered id, or else the class.

    Raises:
        ConfigError: its observation or action space is missing, or is no gymnasium space.
    """
    chain: list[Any] = [env]
    while isinstance(chain[-1], gymnasium.Wrapper):
        chain.append(chain[-1].env)
    *wrappers, base = chain
    spec = getattr(base, "spec", None)
    if name is None:
        name = str(spec.id if spec else f"{type(base).__module__}:{type(base).__qualname__}")
    for attribute in ("observation_space", "action_space"):
        _check_space(base, attribute, name)
    if not any(isinstance(wrapper, InnermostGuard) for wrapper in wrappers):
        guard = InnermostGuard(base, name)
        if not wrappers:
            return guard
        wrappers[-1].env = guard
    for wrapper in wrappers:
        if isinstance(wrapper, Guard):
            break
        if type(wrapper).__module__.partition(".")[0] not in ("gymnasium", "rlearly"):
            return Guard(env, name)
    return env


def bare(env: gymnasium.Env) -> gymnasium.Env:
    """The unwrapped env, in its guard if it has one."""
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, InnermostGuard):
        env = env.env
    return env


def called(name: str, function: Callable[..., Any], *args: Any, where: str = "") -> Any:
    """`function(*args)`, for a policy or another function of the user's.

    Raises:
        UserCodeFailed: it raised. `name` and `where` say which function and when.
    """
    try:
        return function(*args)
    except OURS:
        raise
    except BaseException as error:
        failed = UserCodeFailed(f"{name}: it {raised(error)}")
        failed.where = where
        raise failed from error


def misfit(obs: Any, space: Any, at: str = "") -> tuple[str, str] | None:
    """Descriptions of (obs, space) if its structure, keys, shape or kind of dtype differ.

    Numbers may have another dtype if it can be cast within its kind, or from integers to floats.
    Values out of bounds are not looked for. `at`: where in the observation, for the description.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            return f"{_described(obs)}{at}", _described(space.spaces)
        parts: Any = space.spaces.items()
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            return f"{_described(obs)}{at}", f"a tuple of {len(space.spaces)}"
        parts = enumerate(space.spaces)
    else:
        return _leaf_misfit(obs, space, at)
    for key, part in parts:
        wrong = misfit(obs[key], part, f"{at or ' at obs'}[{key!r}]")
        if wrong:
            return wrong
    return None


def _leaf_misfit(obs: Any, space: Any, at: str) -> tuple[str, str] | None:
    if isinstance(space, spaces.Text):
        return None if isinstance(obs, str) else (f"{_described(obs)}{at}", "text")
    numeric = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if not isinstance(space, numeric):
        return (f"None{at}", str(space)) if obs is None else None
    try:
        array = np.asarray(obs)
    except Exception:  # a ragged list, or a tensor that numpy cannot read
        array = np.asarray(None)
    if array.shape == space.shape and (
        array.dtype == space.dtype or np.can_cast(array.dtype, space.dtype, "same_kind")
    ):
        return None
    received = _described(array if array.dtype.kind in "biufc" else obs)
    return f"{received}{at}", f"{space.dtype} {list(space.shape or ())}"


def _check_space(env: Any, attribute: str, name: str) -> None:
    space = getattr(env, attribute, None)
    if not isinstance(space, gymnasium.Space):
        received = "none" if space is None else f"{type(space).__module__}.{type(space).__name__}"
        raise ConfigError(
            f"env={name}: expected {attribute} to be a space of gymnasium, received {received}; "
            "set it in the env's class or constructor."
        )


def as_float(reward: Any) -> float:
    """A number, or an array or tensor of one entry, as a float."""
    try:
        return float(reward)
    except TypeError:  # numpy converts only arrays of no dimension
        return float(reward.item())


def _number(value: Any) -> float | None:
    """The value as a float, or None if it is no number, and no array or tensor of one entry."""
    try:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, str | bytes) else float(value)
    except Exception:  # of a type of the user's
        return None


def _lacking(reset: Callable[..., Any]) -> str | None:
    """The argument of gymnasium's reset that this one does not take, if there is one."""
    try:
        parameters = inspect.signature(reset).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return next((name for name in ("seed", "options") if name not in parameters), None)


def _count(result: Any) -> str:
    if not isinstance(result, tuple | list):
        return _described(result)
    return "1 value" if len(result) == 1 else f"{len(result)} values"


def _described(value: Any) -> str:
    """What was received, in a few words."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    return f"the text {value[:40]!r}" if isinstance(value, str) else f"a {type(value).__name__}"
