"""TODO."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlearly.config.overrides import parse_overrides
from rlearly.core.errors import ConfigError


def set_key(config: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key of a structured config, converting `value` to the field's type.

    Raises:
        ConfigError: there is no such key (the nearest ones are named), or the type is wrong.
    """
    known = dict(key_types(config))
    if key not in known and not any(key.startswith(f"{k}.") for k in known if k.endswith("kwargs")):
        groups = sorted({k.rsplit(".", 1)[0] for k in known if "." in k})
        if key in groups:
            raise ConfigError(
                f"{key}: expected one of its keys, "
                f"{', '.join(k for k in known if k.startswith(key + '.'))}."
            )
        raise ConfigError(
            f"There is no key {key!r}; {did_you_mean(key, known)} (--help lists all keys)."
        )
    expected = known.get(key, "a value")
    if isinstance(value, str) and expected.startswith("list[str]"):
        value = [value]
    if isinstance(value, float) and value.is_integer() and expected.startswith("int"):
        value = int(value)
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException:
        raise ConfigError(f"{key}: expected {expected}, received {value!r}.") from None


def from_overrides(defaults: Any, words: Sequence[str]) -> Any:
    """A config dataclass with `key=value` words set on it, checked.

    Raises:
        ConfigError: a word does not parse, names no key, or its value has a wrong type or size.
    """
    view = as_dictconfig(defaults)
    for key, value in parse_overrides(words):
        set_key(view, key, value)
    return as_dataclass(view)


def key_types(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a structured config with the name of its type."""
    for name, type_name, _, _, nested in describe_fields(OmegaConf.get_type(config)):
        node = OmegaConf.select(config, name)
        nested = nested or (isinstance(node, DictConfig) and type_name == "Any")
        if nested and isinstance(node, DictConfig):
            yield from key_types(node, f"{prefix}{name}.")
        else:
            yield prefix + name, type_name


def describe_fields(cls: Any) -> Iterator[tuple[str, str, str, Any, bool]]:
    """(name, type, help, default, is a group) of every field of a config dataclass."""
    for field in dataclasses.fields(cls):
        type_name = str(field.type).replace("dict[str, Any]", "{key: value}")
        if field.default_factory is dataclasses.MISSING:
            default = field.default
        else:
            default = field.default_factory()
        is_group = dataclasses.is_dataclass(default)
        yield field.name, type_name, field.metadata.get("help", ""), default, is_group


def did_you_mean(name: str, valid: Iterable[str], most: int = 4) -> str:
    """`did you mean X or Y?`, or the valid names if none is near (a handful of them)."""
    names = sorted(valid)
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, n=most, cutoff=0.55)
    near += [n for n in lower if n.rsplit(".", 1)[-1] == name.lower() and n not in near]
    if near:
        return f"did you mean {' or '.join(lower[n] for n in near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid names: {shown}."


# --- validation ---


def bound_violations(config: Any, prefix: str = "") -> Iterator[str]:
    """One sentence for every value outside its field's bounds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from bound_violations(value, f"{key}.")
        elif value is not None:
            expected = _violation(value, field.metadata)
            if expected:
                yield f"{key}: expected {expected}, received {value!r}."


def _violation(value: Any, bounds: Any) -> str | None:
    if "choices" in bounds and value not in bounds["choices"]:
        return f"one of {', '.join(bounds['choices'])}"
    checks = {
        "above": lambda bound: value > bound,
        "at_least": lambda bound: value >= bound,
        "at_most": lambda bound: value <= bound,
        "multiple_of": lambda bound: value % bound == 0,
    }
    wanted = [
        f"{name.replace('_', ' ')} {bounds[name]}"
        for name, holds in checks.items()
        if name in bounds and not holds(bounds[name])
    ]
    return f"a number {' and '.join(wanted)}" if wanted else None


def as_dictconfig(config: Any) -> DictConfig:
    """A structured, typed and writable view of a frozen config dataclass."""
    view = OmegaConf.structured(config)
    _unlock(view)
    return view


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for name in node:
        if not OmegaConf.is_interpolation(node, str(name)):
            child = node[name]
            if isinstance(child, DictConfig):
                _unlock(child)


def as_dataclass(view: DictConfig) -> Any:
    """The frozen dataclass of an edited view, checked against every field's bounds.

    Raises:
        ConfigError: one or more values are out of bounds; all of them are reported together.
    """
    try:
        config = OmegaConf.to_object(view)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The config does not resolve: {str(error).splitlines()[0]}.") from None
    found = list(bound_violations(config))
    if found:
        raise ConfigError(" ".join(found))
    return config


def as_yaml(config: Any) -> str:
    """The config as YAML text, groups nested."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
