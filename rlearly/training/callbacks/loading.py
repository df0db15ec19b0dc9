"""Make the callbacks that a config names: `callback=module:NAME`, `callback_kwargs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlearly.config import plugins
from rlearly.config.schema import RunConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, raised
from rlearly.training.callbacks.callback import Callback
from rlearly.training.callbacks.calls import Named

HOOKS = [name for name in dir(Callback) if name.startswith("on_")]


def load_callbacks(config: RunConfig, objects: Sequence[Callback] = ()) -> list[Named]:
    """The callbacks of a config, then those that Python code gave as objects.

    Raises:
        ConfigError: one cannot be made, or is not a `Callback`.
    """
    names = list(config.callback or ())
    kwargs = dict(config.callback_kwargs)
    found = [(name, _made(name, _kwargs_of(name, names, kwargs))) for name in names]
    found += [(f"{type(one).__module__}:{type(one).__qualname__}", one) for one in objects]
    for name, callback in found:
        _check(name, callback)
        if [other for other, _ in found].count(name) > 1:
            raise ConfigError(f"callback={name}: it is given twice; keep one of them.")
    return found


def _kwargs_of(name: str, names: Sequence[str], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one callback; those of several are grouped by what follows the colon."""
    if len(names) == 1:
        return dict(kwargs)
    short = [other.rpartition(":")[2] for other in names]
    wrong = [key for key, value in kwargs.items() if not isinstance(value, Mapping)]
    wrong += [key for key in kwargs if key not in short]
    if wrong:
        raise ConfigError(
            f"callback_kwargs: expected the arguments of several callbacks under their names, as "
            f"in callback_kwargs.{short[0]}.KEY=VALUE, received {wrong[0]!r}."
        )
    return dict(kwargs.get(name.rpartition(":")[2], {}))


def _made(name: str, kwargs: Mapping[str, Any]) -> Any:
    expected = "a class, or a function that returns a callback"
    factory = plugins.load("callback", name, expected, callable)
    try:
        return factory(**kwargs)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"callback={name}: making it {raised(error)}.") from error


def _check(name: str, callback: Any) -> None:
    if not isinstance(callback, Callback):
        raise ConfigError(
            f"callback={name}: expected a rlearly.training.callbacks.Callback, received a "
            f"{type(callback).__name__}: let its class inherit from that."
        )
    for method in dir(callback):
        if method.startswith("on_") and method not in HOOKS:
            raise ConfigError(
                f"callback={name}: nothing calls its {method}; {did_you_mean(method, HOOKS)}"
            )
