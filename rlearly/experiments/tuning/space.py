"""The search space: which settings are tuned, and in which ranges.

A range is written as on the command line, `space.KEY=RANGE`:

    log(1e-5,1e-2)       log-uniform numbers; integers if the setting is an integer
    uniform(0.9,1)       uniform numbers
    int(1,5)             integers, both ends included
    choice(64,128,256)   one of these values, each as on the command line
    auto                 the setting's own bounds or choices
    null                 do not tune it
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from rlearly.config.overrides import parse_value, split_values
from rlearly.config.resolve import RESUMABLE, compose
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_dictconfig, did_you_mean, key_types
from rlearly.core.errors import ConfigError

GRAMMAR = "log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,HIGH), choice(A,B,...), auto or null"
DIGITS = 4
"""Significant digits of the numbers that are tried."""

NOT_TUNED = (
    "agent", "env", "agent_name", "env.name", "env.family", "seed", "run_dir", "resume",
    "snapshot_sha256", "jump_start.sha256",
    "env.max_episode_steps", "env.rules", "env.kwargs",
)  # fmt: skip
"""Keys that name a run or its task, besides those of RESUMABLE: the returns of different tasks
cannot be compared."""

NOT_TUNED_GROUPS = ("wandb.", "plasticity.")

Value = int | float | str
"""A number, or the text of a choice as it is typed."""


@dataclass(frozen=True)
class Numbers:
    """Numbers between two ends, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        name = "log" if self.log else "int" if self.whole else "uniform"
        return f"{name}({','.join(self.ends())})"

    def rounded(self, value: float) -> Value:
        """The value as it is tried: an integer, or four significant digits within the range."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> Value | None:
        """The value, if it is in the range; else None."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.low <= value <= self.high else None

    def ends(self) -> list[str]:
        return [text_of(self.low), text_of(self.high)]


@dataclass(frozen=True)
class Choices:
    """Some values, as they are typed, with what they mean."""

    texts: tuple[str, ...]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"choice({','.join(self.texts)})"

    def holds(self, value: Any) -> Value | None:
        """The text of the choice with this value; None if there is none."""
        for text, own in zip(self.texts, self.values, strict=True):
            if own == value and isinstance(own, bool) == isinstance(value, bool):
                return text
        return None

    def ends(self) -> list[str]:
        return list(self.texts)


Range = Numbers | Choices
Space = dict[str, Range]
"""Dotted key of a setting -> its range."""


def override(key: str, value: Value) -> str:
    """The override that sets a key to a value of its range."""
    return f"{key}={text_of(value)}"


def text_of(value: Value) -> str:
    """A value of a range as it is typed."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else repr(value)


def space_of(fixed: Sequence[str], given: Mapping[str, str], *, own: bool = True) -> Space:
    """The space of a search: the agent's own, with the ranges that were given.

    A setting that is fixed by an override is not tuned.

    Args:
        fixed: the overrides of all runs.
        given: dotted key of a setting -> its range, as typed.
        own: False: the given ranges are the whole space.

    Raises:
        ConfigError: a key or range is wrong or contradicts `fixed`, or nothing is left to tune.
    """
    config = compose(fixed)
    fixed_keys = {word.partition("=")[0] for word in fixed}
    types = dict(key_types(as_dictconfig(config)))
    texts = {
        key: field.metadata["search"]
        for key, field in _fields(config.agent, "agent.")
        if own and "search" in field.metadata and key not in fixed_keys
    }
    for key, text in given.items():
        _check_key(key, types, fixed_keys)
        if text == "null" and key not in texts:
            raise ConfigError(
                f"space.{key}: is not tuned by default, so null has no effect; leave it out."
            )
    texts |= given
    space = {
        key: _range_of(key, text, types[key], config)
        for key, text in texts.items()
        if text != "null"
    }
    if not space:
        raise ConfigError(
            f"space: agent={config.agent_name} has no setting left to tune; give one a range, as "
            "in space.agent.lr=log(1e-5,1e-2)."
        )
    for key, found in space.items():
        for text in found.ends():
            try:
                compose([*fixed, f"{key}={text}"])
            except ConfigError as error:
                raise ConfigError(f"space.{key}={found}: {error}") from None
    return space


def _check_key(key: str, types: Mapping[str, str], fixed: set[str]) -> None:
    known = [name for name in types if not _is_not_tuned(name)]
    if _is_not_tuned(key):
        raise ConfigError(
            f"space.{key}: cannot be tuned: it sets the task or what a run logs, not how the agent "
            f"learns; did you mean a fixed {key}=VALUE?"
        )
    if key not in types:
        raise ConfigError(f"space.{key}: there is no such key; {did_you_mean(key, known)}")
    if key in fixed:
        raise ConfigError(f"space.{key}: {key} is also given a fixed value; keep one of them.")


def _is_not_tuned(key: str) -> bool:
    return key in (*NOT_TUNED, *RESUMABLE) or key.startswith(NOT_TUNED_GROUPS)


def _range_of(key: str, text: str, kind: str, config: RunConfig) -> Range:
    """The range that a text stands for, of a key of this type.

    Raises:
        ConfigError: it is no range, or its ends are wrong.
    """
    if text == "auto":
        return _own_range(key, kind, config)
    found = re.fullmatch(r"(log|uniform|int|choice)\((.*)\)", text.strip(), re.DOTALL)
    if not found:
        raise ConfigError(f"space.{key}: expected {GRAMMAR}, received {text!r}.")
    name, inner = found[1], split_values(found[2])
    if name == "choice":
        return _choices(key, inner, kind)
    try:
        low, high = (float(part) for part in inner)
    except ValueError:
        raise ConfigError(f"space.{key}: expected {name}(LOW,HIGH), received {text!r}.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"space.{key}: expected two numbers, the lower one first, received {text!r}."
        )
    if name == "log" and low <= 0:
        raise ConfigError(f"space.{key}: log needs numbers above 0, received {text!r}.")
    if not kind.startswith(("int", "float", "Any")):
        raise ConfigError(
            f"space.{key}: expected choice(A,B,...), as this setting is a {kind}, received "
            f"{text!r}."
        )
    whole = name == "int" or kind.startswith("int")
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"space.{key}: expected whole numbers, received {text!r}.")
    multiple = _field(config, key).metadata.get("multiple_of")
    if multiple:
        raise ConfigError(
            f"space.{key}: expected choice(A,B,...) of multiples of {multiple}, received {text!r}."
        )
    return Numbers(low, high, log=name == "log", whole=whole)


def _choices(key: str, texts: Sequence[str], kind: str) -> Choices:
    texts = list(texts)
    values = [parse_value(key, text, kind) for text in texts]
    twice = any(value in values[:at] for at, value in enumerate(values))
    if len(texts) < 2 or "" in texts or twice:
        raise ConfigError(
            f"space.{key}: expected at least two different values, received "
            f"choice({','.join(texts)})."
        )
    return Choices(tuple(texts), tuple(values))


def _own_range(key: str, kind: str, config: RunConfig) -> Range:
    """The range that a setting's own bounds or choices make."""
    bounds = _field(config, key).metadata
    if "choices" in bounds:
        return _choices(key, bounds["choices"], "str")
    if kind.startswith("bool"):
        return _choices(key, ["false", "true"], "bool")
    low, high = bounds.get("at_least"), bounds.get("at_most")
    if low is None or high is None or not kind.startswith(("int", "float")):
        missing = "no bounds" if not bounds.keys() & {"at_least", "above", "at_most"} else (
            f"no {'upper' if high is None else 'lower'} bound that is a value of its own"
        )  # fmt: skip
        raise ConfigError(
            f"space.{key}: the setting has {missing}, so auto is not a range; give one, as in "
            f"space.{key}=log(LOW,HIGH) or choice(A,B)."
        )
    return Numbers(float(low), float(high), whole=kind.startswith("int"))


def defaults_of(fixed: Sequence[str], space: Space) -> tuple[dict[str, Value], list[str]]:
    """The settings that runs have without tuning, as values of the space.

    Returns those that the space holds, and the keys of the others.
    """
    view = as_dictconfig(compose(fixed))
    held = {key: found.holds(OmegaConf.select(view, key)) for key, found in space.items()}
    values = {key: value for key, value in held.items() if value is not None}
    return values, [key for key in space if key not in values]


def _fields(config: Any, prefix: str) -> list[tuple[str, Any]]:
    """Every dotted key of a config dataclass with its field."""
    found = []
    for name, field in config.__dataclass_fields__.items():
        value = getattr(config, name)
        inner = hasattr(value, "__dataclass_fields__")
        found += _fields(value, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", field)]
    return found


def _field(config: Any, key: str) -> Any:
    """The field of a dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        config = getattr(config, group)
    with contextlib.suppress(KeyError, AttributeError):
        return config.__dataclass_fields__[name]
    raise ConfigError(f"space.{key}: expected a setting, received a part of one.")
