"""TODO."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from rlearly.core.errors import ConfigError

# --- the override grammar ---


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`key=value` words in Hydra's grammar as (key, value) pairs.

    Raises:
        ConfigError: a word does not parse, adds or deletes a key, or lists several values.
    """
    _refuse_spaces(arguments)
    return [
        (override.key_or_group, _value(override, word)) for override, word in _parsed(arguments)
    ]


def format_override(key: str, value: object) -> str:
    """`key=value`, or `key='value'` where the grammar would read other than this text."""
    with contextlib.suppress(ConfigError):
        if parse_overrides([f"{key}={value}"]) == [(key, str(value))]:
            return f"{key}={value}"
    quoted = str(value).replace("'", "\\'")
    return f"{key}='{quoted}'"


def format_command(words: Iterable[str]) -> str:
    """A command as a shell takes it: quoted where it must be, in double quotes if they do."""
    shown = []
    for word in words:
        quoted = shlex.quote(word)
        plain = quoted == word or set(word) & set('"$`\\!')
        shown.append(quoted if plain else f'"{word}"')
    return " ".join(shown)


def sweep_values(word: str) -> tuple[str, list[str]]:
    """The key of a word, and each of the values that it lists, as words write them: `a=1,2` gives
    a, [1, 2], and `a=[1,2]` one value.

    Raises:
        ConfigError: it does not parse, or adds or deletes a key, or lists no plain values.
    """
    ((override, _),) = _parsed([word])
    if not override.is_sweep_override():
        _value(override, word)
        return override.key_or_group, [word.split("=", 1)[1]]
    try:
        if override.type == OverrideType.CHANGE and override.is_choice_sweep():
            return override.key_or_group, list(override.sweep_string_iterator())
    except HydraException:  # of a choice that is none, as glob(*)
        pass
    raise ConfigError(f"Expected key=VALUE,VALUE,..., received {word!r}.")


def _parsed(words: Sequence[str]) -> Iterator[tuple[Override, str]]:
    functions = create_functions()
    for name in ("linear", "step", "decay"):
        functions.register(name, _as_text(name))
    parser = OverridesParser(functions)
    for word in words:
        try:
            yield parser.parse_override(word), word
        except HydraException:
            if word.endswith(","):
                raise ConfigError(
                    f"Expected key=value, received {word!r}, which ends in a comma: write "
                    f"{word.rstrip(',')}, or another value after it."
                ) from None
            key = word.partition("=")[0]
            raise ConfigError(
                f"Expected key=value, received {word!r}, which is not in the grammar; a value with "
                f"spaces at its ends, commas, brackets or = in it wants quotes: \"{key}='VALUE'\"."
            ) from None


def _as_text(name: str) -> Any:
    """A function of the grammar whose value is its own text, as in linear(0.5,2,1000)."""

    def text(*arguments):  # unannotated: the grammar would check the types
        return f"{name}({','.join(map(str, arguments))})"

    return text


def _refuse_spaces(words: Sequence[str]) -> None:
    """`agent = td3` arrives as three words, `agent= td3` and `agent =td3` as two."""
    for at, word in enumerate(words):
        after = words[at + 1 : at + 2]
        if word.startswith("=") and at:
            parts = [words[at - 1], word, *(after if word == "=" else [])]
        elif word.endswith("=") and after and "=" not in after[0] and not word.startswith("="):
            parts = [word, *after]
        else:
            continue
        raise ConfigError(
            f"Expected key=value with no spaces around =, received {' '.join(parts)!r}; "
            f"write {''.join(parts)}."
        )


def _value(override: Override, word: str) -> Any:
    if override.type != OverrideType.CHANGE:
        raise ConfigError(
            f"Expected key=value, received {word!r}: keys cannot be added or deleted, "
            "only set (see --help)."
        )
    if override.is_sweep_override():
        raise ConfigError(
            f"{override.key_or_group}: expected one value, received the list {word!r}; "
            "a run has one of each, so start one run for each value (a list as one value is "
            f"written '{override.key_or_group}=[A,B]')."
        )
    return override.value()
