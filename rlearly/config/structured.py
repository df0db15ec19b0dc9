"""Config dataclasses: set keys by name, describe fields, check bounds."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlearly.config.overrides import parse_overrides
from rlearly.core.errors import ConfigError


def from_overrides(defaults: Any, overrides: Sequence[str]) -> Any:
    """A copy of a config dataclass with `key=value` overrides applied and checked.

    Raises:
        ConfigError: an override does not parse, or names a key that does not exist, or its value
            has the wrong type or is out of bounds.
    """
    config = as_dictconfig(defaults)
    set_keys(config, parse_overrides(overrides))
    return as_dataclass(config)


def set_keys(config: DictConfig, pairs: Iterable[tuple[str, Any]]) -> None:
    """Set dotted keys of a structured config, converting each value to the field's type.

    Raises:
        ConfigError: a key does not exist (the error names the nearest ones), or a value has the
            wrong type.
    """
    known = dict(key_types(config))
    for key, value in pairs:
        if key not in known and not any(
            key.startswith(f"{k}.") for k in known if k.endswith("kwargs")
        ):
            inside = [name for name in known if name.startswith(f"{key}.")]
            if inside:
                raise ConfigError(f"{key}: expected one of its keys, {', '.join(inside)}.")
            groups = {name.partition(".")[0] for name in known if "." in name}
            raise ConfigError(
                f"There is no key {key!r}; {did_you_mean(key, {*known, *groups})} (--help lists "
                "all keys)."
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


def key_types(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a structured config, with the name of its type."""
    for name, type_name, _, _, is_group in describe_fields(OmegaConf.get_type(config)):
        node = OmegaConf.select(config, name)
        is_group = is_group or type_name == "Any"
        if is_group and isinstance(node, DictConfig):
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
    """`did you mean X or Y?`, or up to 12 valid names if none is close."""
    names = sorted(valid)
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, n=most, cutoff=0.55)
    near += [n for n in lower if n.rsplit(".", 1)[-1] == name.lower() and n not in near]
    if near:
        return f"did you mean {' or '.join(lower[n] for n in near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid names: {shown}."


def bound_violations(config: Any, prefix: str = "") -> Iterator[str]:
    """One sentence for every value that is outside its field's bounds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from bound_violations(value, f"{key}.")
        elif value is not None:
            expected = _violated_bounds(value, field.metadata)
            if expected:
                yield f"{key}: expected {expected}, received {value!r}."


def _violated_bounds(value: Any, bounds: Mapping[str, Any]) -> str | None:
    if "choices" in bounds and value not in bounds["choices"]:
        return f"one of {', '.join(bounds['choices'])}"
    checks = {
        "above": lambda bound: value > bound,
        "at_least": lambda bound: value >= bound,
        "at_most": lambda bound: value <= bound,
        "multiple_of": lambda bound: value % bound == 0,
    }
    violated = [
        f"{name.replace('_', ' ')} {bounds[name]}"
        for name, holds in checks.items()
        if name in bounds and not holds(bounds[name])
    ]
    return f"a number {' and '.join(violated)}" if violated else None


def as_dictconfig(config: Any) -> DictConfig:
    """A typed, writable DictConfig of a frozen config dataclass."""
    typed = OmegaConf.structured(config)
    _make_writable(typed)
    return typed


def _make_writable(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for name in node:
        if not OmegaConf.is_interpolation(node, str(name)):
            child = node[name]
            if isinstance(child, DictConfig):
                _make_writable(child)


def as_dataclass(config: DictConfig) -> Any:
    """The frozen dataclass of a structured config, checked against every field's bounds.

    Raises:
        ConfigError: values are out of bounds; all of them are reported together.
    """
    try:
        resolved = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The config does not resolve: {str(error).splitlines()[0]}.") from None
    violations = list(bound_violations(resolved))
    if violations:
        raise ConfigError(" ".join(violations))
    return resolved


def as_yaml(config: Any) -> str:
    """The config as YAML, with nested groups."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
