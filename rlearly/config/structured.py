"""Config dataclasses: set keys by name, describe fields, check bounds."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import OmegaConfDumper, get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from rlearly.config.overrides import (
    format_command,
    format_override,
    parse_value,
    split_overrides,
)
from rlearly.core.errors import ConfigError

LINE_SEPARATORS = frozenset("\x85\u2028\u2029\ufeff")
"""Characters that PyYAML reads back unchanged only if they are in double quotes."""


def from_overrides(defaults: Any, overrides: Sequence[str]) -> Any:
    """A copy of a config dataclass with `key=value` overrides applied and checked.

    Raises:
        ConfigError: an override does not parse, or names a key that does not exist, or its value
            has the wrong type or is out of bounds.
    """
    config = as_dictconfig(defaults)
    set_keys(config, overrides)
    return as_dataclass(config)


def refuse_folders(arguments: Iterable[str], config_class: Any, key: str) -> None:
    """Refuse an argument that is a folder's name; the error names the key that takes it.

    A folder's name may contain =, as those that a sweep makes do.
    """
    known = {name for name, *_ in describe_fields(config_class)}
    for argument in arguments:
        first = argument.partition("=")[0].partition(".")[0]
        if ("=" not in argument or first not in known) and Path(argument).is_dir():
            meant = format_command([format_override(key, argument)])
            raise ConfigError(f"Expected key=value, received {argument!r}; did you mean {meant}?")


def set_keys(config: DictConfig, overrides: Sequence[str]) -> None:
    """Set dotted keys of a structured config, reading each value as the field's type.

    Raises:
        ConfigError: an override does not parse, a key does not exist (the error names the nearest
            ones), or a value has the wrong type.
    """
    known = dict(key_types(config))
    for key, text in split_overrides(overrides):
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
        value = parse_value(key, text, expected)
        if value == "???":  # OmegaConf's word for a missing value
            raise ConfigError(f"{key}: expected a value other than ???, which is reserved.")
        if isinstance(value, float) and value.is_integer() and expected.startswith("int"):
            value = int(value)
        try:
            OmegaConf.update(config, key, _literal(value))
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
        type_name = (
            field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        )
        type_name = type_name.replace("dict[str, Any]", "{key: value}")
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
        own = bounds.get("or_plugin", False)
        if not (own and ":" in value):
            return f"one of {', '.join([*bounds['choices'], *(['module:NAME'] if own else [])])}"
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
    typed = OmegaConf.structured(_literal(config))
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


def as_dict(config: Any) -> dict[str, Any]:
    """The values of a config dataclass, with nested groups as dicts."""
    tree: Any = OmegaConf.to_container(as_dictconfig(config), resolve=True)
    return tree


def as_yaml(config: Any) -> str:
    """The config as YAML, with nested groups."""
    return yaml.dump(as_dict(config), Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def read_yaml(file: Path) -> Any:
    """The tree in a YAML file, with texts as they are; raises the errors of `OmegaConf.load`."""
    tree = yaml.load(file.read_text(encoding="utf-8"), Loader=get_yaml_loader())
    return OmegaConf.create(_literal({} if tree is None else tree))


class _Dumper(OmegaConfDumper):
    """Writes what OmegaConf's loader reads back, line separators included."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        if LINE_SEPARATORS & set(text):
            return self.represent_scalar("tag:yaml.org,2002:str", text, style='"')
        return OmegaConfDumper.str_representer(self, text)


_Dumper.add_representer(str, _Dumper.represent_text)


def _literal(value: Any) -> Any:
    """A value, with its texts written so that OmegaConf does not interpolate `${...}` in them."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_literal, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{f.name: _literal(getattr(value, f.name)) for f in fields}
        )
    return value
