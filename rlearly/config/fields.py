"""Fields of config dataclasses, each with its help text and bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
    choices: Sequence[str] | None = None,
    search: str | None = None,
    or_plugin: bool = False,
) -> Any:
    """A config field with a one-line description and optional bounds.

    search: the range in which `rlearly.tune` looks for a value unless it is told otherwise, as in
        "log(1e-5,1e-2)"; a setting without it is tuned only if asked for.
    or_plugin: a `module:NAME` is a choice too.
    """
    metadata = {
        "help": help,
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
        "multiple_of": multiple_of,
        "choices": choices,
        "search": search,
        "or_plugin": or_plugin or None,
    }
    metadata = {name: value for name, value in metadata.items() if value is not None}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(cls: type, help: str) -> Any:
    """A nested config dataclass with its own defaults."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})
