"""Python values as the `key=value` overrides of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.api.run import Run
from rlearly.config.overrides import format_override, quoted
from rlearly.core.errors import ConfigError


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """`{"agent": "td3", "agent__lr": 3e-4, "replay": {"capacity": 1000}}` as overrides.

    Two underscores stand for a dot. A dict holds keys of a group; a list is one value. A string is
    parsed as on the command line, so that `replay_ratio="linear(0.5,2,1000)"` is a schedule.

    Raises:
        ConfigError: a value is neither text, number, boolean, None, list nor dict.
    """
    return [override for key, value in settings.items() for override in _overrides(key, value)]


def seeds_text(seeds: Any) -> str:
    """Seeds as on the command line: 3 as "3", which means 0 to 2, and [5, 6] as "[5,6]"."""
    listed = isinstance(seeds, list | tuple)
    return f"[{','.join(map(str, seeds))}]" if listed else str(seeds)


def _overrides(key: str, value: Any) -> Iterator[str]:
    key = key.replace("__", ".")
    if isinstance(value, Mapping) and not key.endswith("kwargs"):
        for name, inner in value.items():
            yield from _overrides(f"{key}.{name}", inner)
    elif isinstance(value, Run):
        at = "" if value.checkpoint is None else f"@{value.checkpoint}"
        yield format_override(key, f"{value.path}{at}")
    elif isinstance(value, str | Path):
        yield format_override(key, value)
    else:
        yield f"{key}={_text(key, value)}"


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return quoted(str(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(key, item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_text(key, item)}' for name, item in value.items())}}}"
    if callable(value):
        raise ConfigError(
            f"{key}: expected a name, received {value!r}: put it into a module of its own, and "
            f'write its name, as in {key}="my_module:NAME".'
        )
    raise ConfigError(
        f"{key}: expected text, a number, True, False, None, a list or a dict, received "
        f"{value!r} of the class {type(value).__name__}."
    )
