"""Selection rules of the user's own: `snapshot_phase.selection=module:NAME`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlearly.config import plugins
from rlearly.core.errors import ConfigError, raised

METHODS = ("prepare", "choose", "report", "state_dict", "load_state_dict")
"""What a rule must have; see `Selection`."""


def own_class(name: str, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The class of a rule, or a function that makes one, as `module:NAME`.

    Raises:
        ConfigError: there is none, or it does not take these arguments.
    """
    key = "snapshot_phase.selection"
    cls = plugins.load(key, name, "the class of a selection rule", _may_make_rules)
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}_kwargs: {name} cannot be made with them ({error}).") from None
    return cls


def _may_make_rules(thing: Any) -> bool:
    if isinstance(thing, type):
        return all(callable(getattr(thing, method, None)) for method in METHODS)
    return inspect.isfunction(thing)


def uses_scores(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether the rule's attribute `uses_scores` asks for the learner's |TD error| of episodes."""
    return bool(getattr(own_class(name, kwargs), "uses_scores", False))


def own_rule(name: str, kwargs: Mapping[str, Any]) -> Any:
    """A new rule.

    Raises:
        ConfigError: making it raised, or it lacks a method of `Selection`.
    """
    title = f"snapshot_phase.selection={name}"
    try:
        rule = own_class(name, kwargs)(**kwargs)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{title}: making it {raised(error)}.") from error
    missing = [method for method in METHODS if not callable(getattr(rule, method, None))]
    if missing:
        raise ConfigError(
            f"{title}: expected a rule with {', '.join(METHODS)}; it has no "
            f"{' and no '.join(missing)}."
        )
    return plugins.guarded(rule, title, (*METHODS, "episode_over"))
