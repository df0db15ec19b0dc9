"""Objects of the user's own modules, named `module:NAME` in a setting.

The module is imported as any other: from an installed package, a folder on PYTHONPATH, or the
current folder.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rlearly.config.schema import RunConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, raised


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


def named_in(config: RunConfig) -> dict[str, str]:
    """The plug-ins of a run: setting -> `module:NAME`; an intervention is one of several."""
    interventions = config.intervention if isinstance(config.intervention, list) else []
    named: list[tuple[str, Any]] = [
        ("agent", config.agent_name),
        ("agent.network", getattr(config.agent, "network", None)),
        ("snapshot_phase.selection", config.snapshot_phase.selection),
        *((f"intervention {name}", name) for name in interventions),
    ]
    return {key: name for key, name in named if is_plugin(name)}


def modules_of(config: RunConfig) -> list[str]:
    """The modules of a run's plug-ins, for its provenance: those named, and those that define what
    is named there."""
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
