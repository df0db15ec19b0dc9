"""Read and set attributes of a user's env, inside the wrappers that rlearly puts around it."""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium


def users_env(env: gymnasium.Env) -> gymnasium.Env:
    """The outermost wrapper that is not rlearly's, or the unwrapped env."""
    while isinstance(env, gymnasium.Wrapper) and type(env).__module__.startswith("rlearly."):
        env = env.env
    return env


def get_env_attribute(env: gymnasium.Env, name: str) -> Any:
    """The value of an attribute of the env or of a wrapper around it.

    Raises:
        AttributeError: there is none; the message names similar ones.
    """
    own = users_env(env)
    if own.has_wrapper_attr(name):
        return own.get_wrapper_attr(name)
    known = [known for known in dir(own.unwrapped) if not known.startswith("_")]
    near = " or ".join(difflib.get_close_matches(name, known))
    hint = f"; did you mean {near}?" if near else ""
    raise AttributeError(f"the env has no attribute {name!r}{hint}")


def set_env_attribute(env: gymnasium.Env, name: str, value: Any) -> None:
    """Set an attribute that the env or a wrapper around it has."""
    users_env(env).set_wrapper_attr(name, value, force=False)
