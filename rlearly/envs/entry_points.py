"""Envs named by what makes them, `env=module:NAME`, or passed as objects by a Python program.

Both are registered with gymnasium, and made like any registered env.
"""

from __future__ import annotations

import copy
import functools
import importlib
import re
import weakref
from collections.abc import Callable
from typing import Any, cast

import gymnasium

from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, RunFailed, raised
from rlearly.envs.state.action_replay import InexactState
from rlearly.envs.state.between_episodes import kept_by
from rlearly.envs.state.compare import first_difference
from rlearly.envs.state.save_restore import method_of
from rlearly.envs.state.transfer import settings_that_differ, study

PLAIN = (bool, int, float, str, type(None))
"""Types of values that a config file can hold."""

GIVEN = "given/"
"""Prefix of the names of envs that a Python program passed as objects."""


def gymnasium_id(name: str) -> str:
    """The id under which gymnasium makes env=NAME; imports the module in `module:NAME`.

    NAME is an id that the module registers, or else a class or function in it that makes the env.

    Raises:
        ConfigError: the module cannot be imported, or has nothing of that name.
    """
    module_name, _, local = name.rpartition(":")
    if not module_name:
        return name
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        why = str(error) if isinstance(error, ImportError) else raised(error)
        raise ConfigError(
            f"env={name}: the module {module_name} cannot be imported: {why.rstrip('.')}; it must "
            "be in the current folder, on PYTHONPATH or installed."
        ) from error
    if local in gymnasium.registry:
        return local
    maker = attribute(module, local)
    if not callable(maker):
        valid = [n for n, value in vars(module).items() if _makes_envs(value, module_name)]
        valid += [
            spec.id for spec in gymnasium.registry.values() if _module_of(spec) == module_name
        ]
        raise ConfigError(
            f"env={name}: {module_name} registers no env {local!r} and has no class or function of "
            f"that name; {did_you_mean(local, valid) if valid else 'it has no env at all.'}"
        )
    env_id = "rlearly/" + re.sub(r"[^\w.]", "-", f"{module_name}.{local}")
    _register(env_id, cast(Any, maker))
    return env_id


def attribute(module: Any, name: str) -> Any:
    """A module's attribute, as in `NAME` or `Class.method`; None if there is none."""
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _makes_envs(value: Any, module: str) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, gymnasium.Env)
        and not issubclass(value, gymnasium.Wrapper)
        and value.__module__ == module
    )


def _module_of(spec: Any) -> str:
    """The module of the class or function that makes a registered env."""
    maker = spec.entry_point
    return maker.partition(":")[0] if isinstance(maker, str) else getattr(maker, "__module__", "")


def name_of_factory(factory: Callable[..., gymnasium.Env]) -> str:
    """The name of an env for `env=`: `module:NAME`, from which any process can make it.

    What only this process can make, such as a lambda or a class of a script or notebook, is
    registered in this process as `given/NAME`.
    """
    module, qualified = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if module and module != "__main__" and qualified:
        found = attribute(importlib.import_module(module), qualified)
        if found is factory:
            return f"{module}:{qualified}"
    inner = factory.func if isinstance(factory, functools.partial) else factory
    name = getattr(inner, "__name__", type(inner).__name__)
    return register_given(name, factory)


def name_of_env(env: gymnasium.Env) -> tuple[str, dict[str, Any]]:
    """(name, other settings) of an env object for `env=` and `env.*`; the object is not changed.

    An unchanged env from `gymnasium.make` is made again in the same way. Of any other env, each use
    gets a copy of its current state.

    Raises:
        ConfigError: neither gives an env with the settings of this one.
    """
    name = type(env.unwrapped).__name__
    spec = env.spec
    problem = ""
    if spec is not None and _can_be_made_again(spec):
        problem = _difference(env, _made_again(spec), as_new=True)
        settings, module = _settings(spec), _module_of(spec)
        if not problem and settings is not None and module != "__main__":
            own = module.split(".")[0] != "gymnasium"
            return (f"{module}:{spec.id}" if own else spec.id), settings
        if not problem:
            return register_given(spec.id, functools.partial(_made_again, spec)), {}
    try:
        original = copy.deepcopy(env)  # the caller may go on using theirs
        problem = _difference(env, copy.deepcopy(env))
    except Exception as error:
        problem = problem or f"it cannot be copied ({raised(error)})"
    if problem:
        raise ConfigError(
            f"env: a run needs one env for training and others for evaluations, and this {name} "
            f"cannot be made again: {problem}; pass a function that makes it, as in "
            f"env=lambda: {name}(...)."
        )
    return register_given(name, lambda: copy.deepcopy(original)), {}


def _can_be_made_again(spec: Any) -> bool:
    """Whether its id is registered, and all its wrappers have recorded their arguments."""
    recorded = all(wrapper.kwargs is not None for wrapper in spec.additional_wrappers)
    return recorded and spec.id in gymnasium.registry


def _difference(env: gymnasium.Env, other: gymnasium.Env, *, as_new: bool = False) -> str:
    """The settings in which another env differs from the first; "" if there are none.

    Settings are what no episode changes. Where they cannot be told from the rest, envs count as
    alike, or with `as_new` only if all is alike, as in envs that were not reset yet. The other env
    is played and closed.
    """
    method = method_of(other)
    try:
        if method == "replay":
            alike = first_difference(kept_by(env), kept_by(other)) is None
            return "" if alike or not as_new else "it may have been changed"
        found = settings_that_differ(env.unwrapped, study(other, method))
    except (RunFailed, InexactState, ConfigError):
        return "" if not as_new else "it may have been changed"
    finally:
        other.close()
    names = sorted(found.keys() - {"spec", "render_mode"})
    return f"it was changed since it was made ({', '.join(names)})" if names else ""


def _settings(spec: Any) -> dict[str, Any] | None:
    """The `env.*` settings that make an env, together with env=ID; None: none can express it."""
    kwargs, registered = (
        {k: v for k, v in s.kwargs.items() if k != "render_mode"}
        for s in (spec, gymnasium.registry[spec.id])
    )
    if spec.additional_wrappers or not all(isinstance(v, PLAIN) for v in kwargs.values()):
        return None
    settings: dict[str, Any] = {}
    if kwargs != registered:
        settings["env.kwargs"] = kwargs
    if spec.max_episode_steps != gymnasium.registry[spec.id].max_episode_steps:
        settings["env.max_episode_steps"] = spec.max_episode_steps
    return settings


def _made_again(spec: Any, render_mode: str | None = None) -> gymnasium.Env:
    return gymnasium.make(spec, render_mode=render_mode, disable_env_checker=True)


def register_given(name: str, factory: Callable[..., gymnasium.Env]) -> str:
    """Register what makes an env of this process as `given/NAME`, and return that."""
    env_id = GIVEN + (re.sub(r"[^\w.-]", "", name) or "env")
    _register(env_id, factory)
    return env_id


def given_is_missing(name: str) -> ConfigError:
    """The error for an env that another process was given as an object."""
    return ConfigError(
        f"env={name}: was passed to rlearly.train as an object, so only a Python program can make "
        "it again: pass it once more, as in rlearly.train(resume=..., env=...) or "
        "rlearly.load(..., env=...)."
    )


class MakesAnother:
    """A user's function, which must return a new env at each call.

    Raises:
        ConfigError: it returned an env that it had returned before.
    """

    def __init__(self, factory: Callable[..., gymnasium.Env]):
        functools.update_wrapper(self, factory, updated=())
        self.factory = factory
        self.made: list[weakref.ref[Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> gymnasium.Env:
        env = self.factory(*args, **kwargs)
        self.made = [one for one in self.made if one() is not None]
        if any(one() is env for one in self.made):
            raise ConfigError(
                "env: the function returned the same env twice, but a run needs one for training "
                "and others for evaluations: let each call make a new one."
            )
        self.made.append(weakref.ref(env))
        return env


def _register(env_id: str, factory: Callable[..., gymnasium.Env]) -> None:
    """Register, replacing an earlier registration: a notebook cell may redefine a class."""
    gymnasium.registry.pop(env_id, None)
    makes = factory if isinstance(factory, type | MakesAnother) else MakesAnother(factory)
    gymnasium.register(env_id, entry_point=makes)
