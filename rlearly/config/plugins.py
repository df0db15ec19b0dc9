"""Objects of the user's own modules, named `module:NAME` in a setting.

The module is imported as any other: from an installed package, a folder on PYTHONPATH, or the
current folder.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlearly.config.schema import RunConfig
from rlearly.config.structured import (
    as_dictconfig,
    bound_violations,
    describe_fields,
    did_you_mean,
)
from rlearly.core.errors import OURS, ConfigError, UserCodeFailed, raised


def is_plugin(name: Any) -> bool:
    """Whether a name has the form `module:NAME`."""
    return isinstance(name, str) and ":" in name


def load(key: str, name: str, expected: str, accepts: Callable[[Any], bool]) -> Any:
    """The object `module:NAME` that a setting names.

    Args:
        key: the setting, for messages.
        name: its value.
        expected: what the object must be, as in "an AgentSpec".
        accepts: whether an object is that.

    Raises:
        ConfigError: the module does not import, has no such name, or the object is another kind of
            thing.
    """
    module_name, _, attribute = name.rpartition(":")
    if not (module_name and attribute):
        raise ConfigError(
            f"{key}={name}: expected module:NAME, as in {key}=my_module:NAME, where NAME is "
            f"{expected}."
        )
    module = _imported(key, name, module_name)
    if not hasattr(module, attribute):
        offered = [n for n, value in vars(module).items() if n[:1] != "_" and accepts(value)]
        hint = did_you_mean(attribute, offered) if offered else f"nothing in it is {expected}."
        raise ConfigError(f"{key}={name}: {module_name} has no {attribute}; {hint}")
    found = getattr(module, attribute)
    if not accepts(found):
        raise ConfigError(f"{key}={name}: expected {expected}, received {_described(found)}.")
    return found


def _imported(key: str, name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (KeyboardInterrupt, GeneratorExit, ConfigError):
        raise
    except BaseException as error:  # third-party code may raise anything, SystemExit too
        reason = f"importing {module} {raised(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            reason = (
                f"there is no module {error.name}: run the command in the folder that holds it, "
                "or put that folder on PYTHONPATH"
            )
        raise ConfigError(f"{key}={name}: {reason}.") from error


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of the class {type(value).__name__}"


def is_frozen_dataclass(cls: Any) -> bool:
    """Whether it is a dataclass of settings that cannot change."""
    is_class = isinstance(cls, type) and dataclasses.is_dataclass(cls)
    return is_class and getattr(cls, "__dataclass_params__").frozen  # noqa: B009  not in the stubs


def settings_from(defaults: Any, values: Mapping[str, Any], key: str) -> Any:
    """The settings of a plug-in: its frozen dataclass with some values replaced.

    Args:
        defaults: the dataclass.
        values: by the name of the field.
        key: the setting that holds them, for messages.

    Raises:
        ConfigError: there is no such setting, or a value has the wrong type or is out of bounds.
    """
    config = as_dictconfig(defaults)
    types = {name: type_name for name, type_name, *_ in describe_fields(type(defaults))}
    for name, value in values.items():
        if name not in types:
            raise ConfigError(f"{key}: no setting {name!r}; {did_you_mean(name, types)}")
        try:
            OmegaConf.update(config, name, value)
        except OmegaConfBaseException:
            raise ConfigError(
                f"{key}.{name}: expected {types[name]}, received {value!r}."
            ) from None
    settings = OmegaConf.to_object(config)
    if violations := list(bound_violations(settings, f"{key}.")):
        raise ConfigError(" ".join(violations))
    return settings


def guarded(thing: Any, title: str, methods: Sequence[str]) -> Any:
    """The object itself, with methods that name it in the errors that they raise.

    Args:
        title: what it is in messages, as in "intervention=my_module:Clip".
        methods: those that are called from here; it need not have all.
    """
    for name in methods:
        if callable(getattr(thing, name, None)):
            setattr(thing, name, _guarded(getattr(thing, name), f"{title}: {name}()"))
    return thing


def _guarded(method: Callable[..., Any], call: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded_method(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (*OURS, MemoryError):
            raise
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            raise UserCodeFailed(f"{call} {raised(error)}") from error

    return guarded_method


def named_in(config: RunConfig) -> dict[str, str]:
    """The plug-ins of a run: setting -> `module:NAME`, with one entry for each intervention and
    callback."""
    interventions = config.intervention if isinstance(config.intervention, list) else []
    named: list[tuple[str, Any]] = [
        ("agent", config.agent_name),
        ("agent.network", getattr(config.agent, "network", None)),
        ("snapshot_phase.selection", config.snapshot_phase.selection),
        *((f"intervention {name}", name) for name in interventions),
        *((f"callback {name}", name) for name in config.callback or ()),
    ]
    return {key: name for key, name in named if is_plugin(name)}


def modules_of(config: RunConfig) -> list[str]:
    """The modules of a run's plug-ins, for its provenance: those that settings name, and those that
    define the named objects."""
    found: dict[str, None] = {}
    for name in named_in(config).values():
        module, _, attribute = name.rpartition(":")
        found[module] = None
        thing = getattr(sys.modules.get(module), attribute, None)
        for part in (thing, getattr(thing, "make", None)):
            defined = getattr(part, "__module__", None)
            if isinstance(defined, str) and defined.split(".")[0] != "rlearly":
                found[defined] = None
    return list(found)
