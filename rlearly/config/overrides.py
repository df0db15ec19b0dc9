"""Command-line overrides: `key=value`. The key's declared type decides how its value is read.

Text is taken as it was typed; a value that is wholly in quotes loses them, with \\' or \\" for a
quote in it. Numbers, booleans, lists and dicts are written in Hydra's grammar.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException

from rlearly.core.errors import ConfigError

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


# --- reading ---


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """The key and the value, as typed, of each `key=value`.

    Raises:
        ConfigError: an override has no key or no =, or adds or deletes a key.
    """
    _refuse_spaces(overrides)
    pairs = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if key.startswith(("+", "~")):
            raise ConfigError(
                f"Expected key=value, received {override!r}: keys cannot be added or deleted, "
                "only set (see --help)."
            )
        if not (key and equals):
            raise ConfigError(f"Expected key=value, received {override!r} (see --help).")
        pairs.append((key, text))
    return pairs


def parse_value(key: str, text: str, type_name: str) -> Any:
    """The value of a key of this type, as in "int", "str | None", "list[str]" or "Any".

    Raises:
        ConfigError: it does not parse, or lists several values.
    """
    if text == "null" and type_name.endswith("| None"):
        return None
    if type_name.startswith("str"):
        return parse_text(text)
    if type_name.startswith(("list[str]", "tuple[str")):
        if text.startswith("[") and text.endswith("]"):
            return [parse_text(part) for part in split_values(text[1:-1])] if text[1:-1] else []
        return [parse_text(text)]
    return _parse_by_grammar(key, text)


def parse_text(text: str) -> str:
    """A text as it was typed, without quotes around the whole of it."""
    if not QUOTED.fullmatch(text):
        return text
    quote, inner = text[0], text[1:-1]
    return re.sub(rf"(\\+)({quote}|\Z)", lambda m: "\\" * (len(m[1]) // 2) + m[2], inner)


def sweep_values(override: str) -> tuple[str, list[str]]:
    """Split an override into its key and the values that it lists, as typed.

    `a=1,2` gives ("a", ["1", "2"]); `a=[1,2]` and `a='1,2'` are one value.

    Raises:
        ConfigError: it is not key=value, adds or deletes a key, or lists an empty value.
    """
    ((key, text),) = split_overrides([override])
    values = split_values(text)
    if len(values) > 1 and not values[-1]:
        raise _trailing_comma(override)
    if len(values) > 1 and "" in values:
        raise ConfigError(f"Expected {key}=VALUE,VALUE,..., received {override!r}.")
    return key, values if len(values) > 1 else [text]


def split_values(text: str) -> list[str]:
    """Split at the commas that are outside quotes and brackets; spaces around parts are removed."""
    parts, depth = [""], 0
    # an apostrophe inside a word opens no quote
    for token in re.findall(rf"(?<!\w)(?:{QUOTED.pattern})|.", text, re.DOTALL):
        depth = max(0, depth + (token in "([{") - (token in ")]}"))
        if token == "," and not depth:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _parse_by_grammar(key: str, text: str) -> Any:
    """A number, boolean, list, dict or word in Hydra's grammar."""
    override = f"{key}={text}"
    functions = create_functions()
    for name in ("linear", "step", "decay"):
        functions.register(name, _schedule_text(name))
    try:
        parsed = OverridesParser(functions).parse_override(override)
    except HydraException:
        if text.endswith(","):
            raise _trailing_comma(override) from None
        raise ConfigError(
            f"Expected key=value, received {override!r}, which does not parse. Quote a value that "
            f"begins or ends with a space or contains commas, brackets or =: \"{key}='VALUE'\"."
        ) from None
    if parsed.is_sweep_override():
        raise ConfigError(
            f"{key}: expected one value, received the list {override!r}. Start one run for each "
            f"value; to pass a list as one value, write '{key}=[A,B]'."
        )
    return parsed.value()


def _schedule_text(name: str) -> Any:
    """A grammar function that returns its own text, so that linear(0.5,2,1000) stays a string."""

    def text(*arguments):  # no annotations: the grammar would check the argument types
        return f"{name}({','.join(map(str, arguments))})"

    return text


def _trailing_comma(override: str) -> ConfigError:
    return ConfigError(
        f"Expected key=value, received {override!r}, which ends in a comma: write "
        f"{override.rstrip(',')}, or add a value after the comma."
    )


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


# --- printing ---


def format_override(key: str, value: object) -> str:
    """The override that sets a key to a text: `key=value`, in quotes only where it needs them."""
    text = str(value)
    if text != "null" and parse_text(text) == text:
        return f"{key}={text}"
    return f"{key}={quoted(text)}"


def quoted(text: str) -> str:
    """A text in quotes, as `parse_text` reads it back."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def python_command(module: str, *overrides: str) -> str:
    """A command for the shell that runs a module with the Python of this process."""
    found, own = shutil.which("python"), Path(sys.executable)
    python = "python" if found and Path(found).absolute().parent == own.parent else str(own)
    return format_command([python, "-m", module, *overrides])


def format_command(arguments: Iterable[str]) -> str:
    """A command for the shell; quotes arguments only if needed, with " rather than ' if safe."""
    return " ".join(map(_quoted_for_shell, arguments))


def _quoted_for_shell(argument: str) -> str:
    if CONTROL_CHARACTERS.search(argument):  # a terminal or a log may not show them as they are
        escaped = re.sub(r"[\\']", r"\\\g<0>", argument)
        return "$'" + CONTROL_CHARACTERS.sub(lambda m: rf"\x{ord(m[0]):02x}", escaped) + "'"
    safe = shlex.quote(argument)
    keep = safe == argument or set(argument) & set('"$`\\!')
    return safe if keep else f'"{argument}"'
