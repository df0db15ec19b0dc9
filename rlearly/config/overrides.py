"""Command-line overrides: `key=value` in Hydra's grammar."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from rlearly.core.errors import ConfigError


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Parse `key=value` strings into (key, value) pairs.

    Raises:
        ConfigError: an override does not parse, adds or deletes a key, or lists several values.
    """
    _refuse_spaces(overrides)
    parser = _parser()
    parsed = [_parse(parser, override) for override in overrides]
    return [
        (one.key_or_group, _single_value(one, text))
        for one, text in zip(parsed, overrides, strict=True)
    ]


def sweep_values(override: str) -> tuple[str, list[str]]:
    """Split an override into its key and the values that it lists, as text.

    `a=1,2` gives ("a", ["1", "2"]); `a=[1,2]` is one value.

    Raises:
        ConfigError: it does not parse, adds or deletes a key, or does not list plain values.
    """
    parsed = _parse(_parser(), override)
    if not parsed.is_sweep_override():
        _single_value(parsed, override)
        return parsed.key_or_group, [override.split("=", 1)[1]]
    try:
        if parsed.type == OverrideType.CHANGE and parsed.is_choice_sweep():
            return parsed.key_or_group, list(parsed.sweep_string_iterator())
    except HydraException:  # the sweep is not a list of values, as in glob(*)
        pass
    raise ConfigError(f"Expected key=VALUE,VALUE,..., received {override!r}.")


def format_override(key: str, value: object) -> str:
    """`key=value`, or `key='value'` where the grammar would not read back the same text."""
    with contextlib.suppress(ConfigError):
        if parse_overrides([f"{key}={value}"]) == [(key, str(value))]:
            return f"{key}={value}"
    quoted = str(value).replace("'", "\\'")
    return f"{key}='{quoted}'"


def format_command(arguments: Iterable[str]) -> str:
    """A command line for a shell; quotes arguments only if needed, with " rather than ' if safe."""
    shown = []
    for argument in arguments:
        quoted = shlex.quote(argument)
        keep = quoted == argument or set(argument) & set('"$`\\!')
        shown.append(quoted if keep else f'"{argument}"')
    return " ".join(shown)


def _parser() -> OverridesParser:
    functions = create_functions()
    for name in ("linear", "step", "decay"):
        functions.register(name, _schedule_text(name))
    return OverridesParser(functions)


def _schedule_text(name: str) -> Any:
    """A grammar function that returns its own text, so that linear(0.5,2,1000) stays a string."""

    def text(*arguments):  # no annotations: the grammar would check the argument types
        return f"{name}({','.join(map(str, arguments))})"

    return text


def _parse(parser: OverridesParser, override: str) -> Override:
    try:
        return parser.parse_override(override)
    except HydraException:
        if override.endswith(","):
            raise ConfigError(
                f"Expected key=value, received {override!r}, which ends in a comma: write "
                f"{override.rstrip(',')}, or add a value after the comma."
            ) from None
        key = override.partition("=")[0]
        raise ConfigError(
            f"Expected key=value, received {override!r}, which does not parse. Quote a value that "
            f"begins or ends with a space or contains commas, brackets or =: \"{key}='VALUE'\"."
        ) from None


def _refuse_spaces(overrides: Sequence[str]) -> None:
    """Refuse spaces around =, which the shell turns into separate arguments.

    `agent = td3` arrives as three of them, `agent= td3` and `agent =td3` as two.
    """
    found = re.search(r"[^\0]+(\0=\0?|=\0)[^\0=]*(?=\0|$)", "\0".join(overrides))
    if found:
        parts = found[0].split("\0")
        raise ConfigError(
            f"Expected key=value with no spaces around =, received {' '.join(parts)!r}; "
            f"write {''.join(parts)}."
        )


def _single_value(parsed: Override, override: str) -> Any:
    key = parsed.key_or_group
    if parsed.type != OverrideType.CHANGE:
        raise ConfigError(
            f"Expected key=value, received {override!r}: keys cannot be added or deleted, "
            "only set (see --help)."
        )
    if parsed.is_sweep_override():
        raise ConfigError(
            f"{key}: expected one value, received the list {override!r}. Start one run for each "
            f"value; to pass a list as one value, write '{key}=[A,B]'."
        )
    return parsed.value()
