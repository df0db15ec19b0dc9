"""What Python objects are made of: attributes, paths to parts, and which of them are state."""

from __future__ import annotations

import enum
import functools
import logging
import sys
import threading
import types
from collections import OrderedDict, deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

MISSING: Any = object()
TRUSTED = ("gymnasium.", "gymnasium_robotics.", "minigrid.", "ale_py.", "dm_control.", "mujoco.")
TRUSTED += ("metaworld.", "rlearly.", "stable_baselines3.", "numpy.", "torch.")
TRUSTED += ("builtins.", "typing.", "abc.", "collections.")
"""Packages of envs and wrappers that keep their state in attributes, and that our tests restore."""
LAYOUT = {"metadata", "_metadata", "observation_space", "action_space", "spec", "_cached_spec"}
LAYOUT |= {"_observation_space", "_action_space"}
LAYOUT |= {"_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs"}
"""Attributes that are the same in all envs built alike."""
RANDOM = {"_np_random", "_np_random_seed"}
"""Randomness of every gymnasium env."""
CONSTANTS = (types.ModuleType, logging.Logger, EnvSpec)
CONSTANTS += (type(threading.Lock()), type(threading.RLock()), threading.Event)
"""Types of values that are not state: neither saved nor changed by restoring."""
CONTAINERS = (tuple, set, frozenset, list, dict, deque, OrderedDict)
RENDERING_PACKAGES = ("pygame", "glfw", "OpenGL", "cv2", "matplotlib", "PIL", "moviepy")
RENDERING_CLASSES = {"Renderer", "MujocoRenderer", "OffScreenViewer", "WindowViewer", "Camera"}
OWN_RENDERING = "rlearly.envs.mujoco_rendering"

Path = tuple[str, ...]
"""The way to a part of an env: ".name" an attribute, "[3]" an item, "['key']" a dict's value,
"<name>" a variable that a function keeps, "<self>" a bound method's object, "<base>" the array that
a view belongs to, "#1" the first wrapper (outermost first) instead of the unwrapped env."""


def text_of(path: Path) -> str:
    """A path as users write it: task.goal[0]."""
    return "".join(path).lstrip(".") or "the env"


def module_of(kind: Any) -> str:
    """The module of a class; "" for classes of some C extensions, which name none."""
    return str(getattr(kind, "__module__", ""))


def class_name(kind: type) -> str:
    return f"{module_of(kind)}:{kind.__qualname__}"


@functools.cache
def trusted(kind: Any) -> bool:
    """Whether a class or function is of a package whose envs and wrappers our tests restore."""
    return f"{module_of(kind)}.".startswith(TRUSTED)


@functools.cache
def renders(kind: type) -> bool:
    """Whether objects of a class render images: such objects are caches, not state."""
    package = module_of(kind).split(".")[0]
    if package in ("mujoco", "gymnasium", "dm_control") and kind.__name__ in RENDERING_CLASSES:
        return True
    return package in RENDERING_PACKAGES or module_of(kind) == OWN_RENDERING


def is_renderer(value: Any, depth: int = 2) -> bool:
    """True for an object that renders images, also within containers, `depth` deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return depth > 0 and any(is_renderer(item, depth - 1) for item in value)
    return renders(type(value))


@functools.cache
def is_plain(kind: type) -> bool:
    """True if all state of an object of this class is in its `__dict__` and `__slots__`."""
    if kind.__new__ is not object.__new__:
        return False
    heap = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement (or by a C extension)
    if not all(base is object or base.__flags__ & heap for base in kind.__mro__):
        return False
    return kind.__dictoffset__ != 0 or bool(slots(kind))


@functools.cache
def slots(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, without `__dict__` and `__weakref__`."""
    return tuple(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType) and value.__objclass__ is base
    )


@functools.cache
def is_frozen(kind: type) -> bool:
    """Whether objects of a class must be replaced rather than changed: frozen dataclasses."""
    return bool(getattr(getattr(kind, "__dataclass_params__", None), "frozen", False))


def attributes_of(value: Any) -> dict[str, Any]:
    """All attributes of a plain object, with those in slots. Not a copy if it has no slots."""
    names = slots(type(value))
    if not names:
        return vars(value)
    held = dict(getattr(value, "__dict__", {}))
    return held | {name: getattr(value, name) for name in names if hasattr(value, name)}


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Set an attribute as it is stored, past properties and frozen dataclasses."""
    if name in slots(type(owner)):
        object.__setattr__(owner, name, value)
    else:
        vars(owner)[name] = value


def delete_attribute(owner: Any, name: str) -> None:
    if name in slots(type(owner)):
        object.__delattr__(owner, name)
    else:
        del vars(owner)[name]


def step_into(owner: Any, step: str) -> Any:
    """The part of an object at one step of a `Path`, or MISSING."""
    if owner is MISSING:
        return MISSING
    if step[0] == ".":
        held = attributes_of(owner) if hasattr(owner, "__dict__") or slots(type(owner)) else {}
        return held.get(step[1:], MISSING)
    if step == "<base>":
        return root_of(owner) if isinstance(owner, np.ndarray) else MISSING
    name = step[1:-1]
    if step[0] == "<":
        return kept_by_function(owner).get(name, MISSING)
    if isinstance(owner, dict):
        return next((item for key, item in owner.items() if repr(key) == name), MISSING)
    if isinstance(owner, list | tuple | deque) and name.isdigit() and int(name) < len(owner):
        return owner[int(name)]
    if isinstance(owner, np.ndarray) and owner.dtype.hasobject and int(name) < owner.size:
        return owner.flat[int(name)]
    return MISSING


def root_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory which `array` shows, or the outermost array that shows it."""
    while True:
        base: Any = array.base
        if type(base).__name__ == "DummyArray":  # of numpy's as_strided
            base = base.base
        if not isinstance(base, np.ndarray):
            return array
        array = base


FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
FUNCTIONS += (type, types.MethodWrapperType)


def is_function(value: Any) -> bool:
    """True for functions, methods, partials and classes."""
    return isinstance(value, FUNCTIONS)


def kept_by_function(value: Any) -> dict[str, Any]:
    """What a function keeps from one call to the next, by name.

    Those are the variables of its closure, its defaults that can change, the object of a bound
    method, and the arguments of a partial.
    """
    if isinstance(value, types.MethodType | types.BuiltinFunctionType | types.MethodWrapperType):
        owner = value.__self__
        return {} if owner is None or isinstance(owner, types.ModuleType) else {"self": owner}
    if isinstance(value, functools.partial):
        return {
            "func": value.func,
            **{str(i): item for i, item in enumerate(value.args)},
            **value.keywords,
        }
    if not isinstance(value, types.FunctionType):
        return {}
    kept: dict[str, Any] = {}
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            kept[name] = cell.cell_contents
        except ValueError:  # a variable without a value
            kept[name] = MISSING
    defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    for i, item in enumerate(defaults):
        if not _immutable(item):
            kept[f"default {i}"] = item
    return kept | {f"its {name}": item for name, item in vars(value).items()}


def _immutable(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes, type, *CONSTANTS))


def set_kept_by_function(function: Any, name: str, value: Any) -> bool:
    """Set what `kept_by_function` names; False if it can only be changed in place."""
    if isinstance(function, types.FunctionType):
        if name in function.__code__.co_freevars:
            cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
            cell.cell_contents = value
            return True
        if name.startswith("its "):
            vars(function)[name[4:]] = value
            return True
    return False


def loaded_class(name: str) -> Any:
    """The loaded class that `class_name` named, or None."""
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


@functools.cache
def _all_trusted(kind: type) -> bool:
    return all(trusted(base) for base in kind.__mro__)


@functools.cache
def _globals_used(kind: type) -> tuple[tuple[str, str], ...]:
    """(module, name) of each global that the methods of a class use, without `trusted` ones."""
    todo = [item for base in kind.__mro__ if not trusted(base) for item in vars(base).values()]
    found: dict[tuple[str, str], None] = {}
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if isinstance(item, property):
            todo += [item.fget, item.fset]
        function = getattr(item, "__func__", getattr(item, "func", item))
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        module = str(function.__globals__.get("__name__"))
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
            for name in code.co_names:
                if name in function.__globals__:
                    found[module, name] = None
                    used = function.__globals__[name]
                    if isinstance(used, types.FunctionType):
                        todo.append(used)
                    elif isinstance(used, type) and not trusted(used):
                        todo += vars(used).values()
    return tuple(found)


def outside_values(kinds: list[type]) -> dict[tuple[str, Path], Any]:
    """What envs keep outside their attributes: (module, path) -> value.

    Args:
        kinds: classes of the env and its wrappers.

    Those are globals that methods use, class attributes, and variables and defaults that methods
    keep; of classes that are not `trusted`.
    """
    values: dict[tuple[str, Path], Any] = {}
    for kind in kinds:
        for module, name in _globals_used(kind):
            value = vars(sys.modules[module]).get(name) if module in sys.modules else None
            if not isinstance(value, CONSTANTS) and not is_function(value):
                values[module, (f".{name}",)] = value
        for base in kind.__mro__:
            if trusted(base) or base is object:
                continue
            path: Path = tuple(f".{name}" for name in base.__qualname__.split("."))
            for name, item in vars(base).items():
                where = (*path, f".{name}")
                function = getattr(item, "__func__", item)
                if isinstance(function, types.FunctionType):
                    for kept, value in kept_by_function(function).items():
                        if kept != "__class__" and not is_function(value):
                            values[base.__module__, (*where, f"<{kept}>")] = value
                elif not name.startswith("__") and not isinstance(item, CONSTANTS):
                    values[base.__module__, where] = item
    return {key: value for key, value in values.items() if not isinstance(value, CONSTANTS)}


def shared_values(kinds: list[type]) -> dict[int, tuple[Any, str, Path]]:
    """Arrays, containers and plain objects among `outside_values`: id -> (value, module, path)."""
    found: dict[int, tuple[Any, str, Path]] = {}
    if all(_all_trusted(kind) for kind in kinds):
        return found
    for (module, path), value in outside_values(kinds).items():
        if not any("<" in step for step in path):
            _add_shared(found, value, module, path, depth=2)
    return found


def _add_shared(found: dict[int, Any], value: Any, module: str, path: Path, depth: int) -> None:
    kind = type(value)
    if isinstance(value, np.ndarray):
        found.setdefault(id(value), (value, module, path))
    elif kind in (list, dict, deque, OrderedDict, tuple):
        if kind is not tuple:
            found.setdefault(id(value), (value, module, path))
        if depth and len(value) <= 1000:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                _add_shared(found, item, module, (*path, f"[{key!r}]"), depth - 1)
    elif is_plain(kind) and not isinstance(value, enum.Enum | type | gymnasium.Env):
        found.setdefault(id(value), (value, module, path))
