"""Convert an env's or wrapper's objects to trees of plain data, and back.

A tree is None, bool, int, float, str, numpy array, list, or dict with text keys. Anything else is a
dict with a "~" entry that names its kind. Restoring changes objects in place, or builds them from
classes that are already loaded: decoding runs no constructor and imports nothing.
"""

from __future__ import annotations

import enum
import functools
import logging
import pathlib
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rlearly.core.tree import map_leaves
from rlearly.envs.state import simulators

KIND = "~"
MISSING: Any = object()
LAYOUT = {"metadata", "_metadata", "observation_space", "action_space", "spec", "_cached_spec"}
LAYOUT |= {"_observation_space", "_action_space"}
LAYOUT |= {"_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs"}
"""Attributes that are the same in all envs built alike."""
RANDOM = {"_np_random", "_np_random_seed"}
"""Randomness of every gymnasium env."""
CLOCKS = {"_step_count", "_reset_next_step", "_steps", "step_count", "curr_path_length"}
"""Episode clocks: of dm_control's environments, DMControlEnv, MiniGrid and MetaWorld."""
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
CONSTANTS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
CONSTANTS += (type, functools.partial, np.dtype, np.ufunc, logging.Logger, pathlib.PurePath)
CONSTANTS += (gymnasium.Space, EnvSpec)
"""Types of values that are not state: neither saved nor changed by restoring."""
RENDERING_PACKAGES = ("pygame", "glfw", "OpenGL", "cv2", "matplotlib", "PIL", "moviepy")
RENDERING_CLASSES = {"Renderer", "MujocoRenderer", "OffScreenViewer", "WindowViewer", "Camera"}
OWN_RENDERING = "rlearly.envs.mujoco_rendering"


class Unencodable(Exception):
    """A value cannot be written as plain data. The text says where it is and what it is."""


class Incomplete(Exception):
    """A saved value needs a part of the env that this env does not have (yet)."""


class _RendererFound(Exception):
    """A value renders images: it is a cache, not state."""


class Encoder:
    """Turns an object into a tree. Randomness and clocks go into `random` and `clocks`, by path.

    References between objects, including cycles, are kept. `chain` lists envs and wrappers that are
    saved separately. Without `simulate`, simulators are saved separately too.
    """

    def __init__(self, chain: Collection[Any] = (), *, simulate: bool = True):
        self.chain = {id(env) for env in chain}
        self.simulate = simulate
        self.random: dict[str, Any] = {}
        self.clocks: dict[str, Any] = {}
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # keeps ids unique
        self._generators: dict[int, str] = {}
        self._simulators: dict[str, Any] = {}  # by the paths of the attributes that hold them

    def encode(self, value: Any, path: str) -> Any:
        """The tree of one value.

        Raises:
            Unencodable: a part is neither data nor known not to be state.
        """
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if id(value) in self._numbers:
            return {KIND: "same", "as": self._numbers[id(value)]}
        if isinstance(value, np.ndarray):
            return self._array(value, path)
        if isinstance(value, np.generic):
            if value.dtype.hasobject or value.dtype.names:
                raise Unencodable(f"{path} is a {value.dtype}")
            return {KIND: "scalar", "value": np.array([value])}
        if isinstance(value, GENERATORS):
            return self._generator(value, path)
        simulator = simulators.kind_of(value)
        if isinstance(value, CONSTANTS) or id(value) in self.chain or simulator == "model":
            return {KIND: "kept"}
        if simulator:
            if not self.simulate:
                return {KIND: "kept"}
            return {KIND: "simulator", "state": simulators.save(simulator, value)}
        if isinstance(value, enum.Enum):
            return {KIND: "enum", "class": _name(kind), "name": value.name}
        if kind is complex:
            return {KIND: "complex", "parts": [value.real, value.imag]}
        if kind in (bytes, bytearray):
            return {KIND: kind.__name__, "data": np.frombuffer(bytes(value), np.uint8)}
        plain_container = kind in (tuple, set, frozenset, list, dict, deque, OrderedDict)
        if plain_container or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            return self._container(value, path)
        if _renders(kind):
            raise _RendererFound
        if not _is_plain(kind):
            raise Unencodable(f"{path} is a {_name(kind)}")
        self._number(value)
        return {KIND: "object", "class": _name(kind), "attributes": self.attributes(value, path)}

    def _number(self, value: Any) -> None:
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)

    def _array(self, value: np.ndarray, path: str) -> Any:
        if type(value) not in (np.ndarray, np.memmap) or value.dtype.names:
            raise Unencodable(f"{path} is a {_name(type(value))} of {value.dtype}")
        self._number(value)
        if not value.dtype.hasobject:
            return self._view(value) or np.array(value, order="K")
        items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value.flat)]
        return {KIND: "objects", "shape": list(value.shape), "items": items}

    def _view(self, value: np.ndarray) -> dict[str, Any] | None:
        """The part of a simulator that an array is a view of; None if it is not a view.

        Some of MetaWorld's tasks keep views of their grippers' positions.
        """
        if value.flags.owndata:
            return None
        for path, simulator in self._simulators.items():
            part = simulators.viewed_part(simulator, value)
            if part:
                return {KIND: "view", "of": path, **part}
        return None

    def _generator(self, value: Any, path: str) -> dict[str, Any]:
        if id(value) not in self._generators:
            self._generators[id(value)] = path
            self._alive.append(value)
            self.random[path] = generator_state(value)
        return {KIND: "random", "at": self._generators[id(value)]}

    def _container(self, value: Any, path: str) -> Any:
        kind = type(value)
        immutable = isinstance(value, tuple | frozenset)  # never shared state
        if not immutable:
            self._number(value)
        if isinstance(value, dict):
            if kind is dict and KIND not in value and all(type(key) is str for key in value):
                return {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
            items = [
                [self.encode(key, f"{path} key {key!r}"), self.encode(item, f"{path}[{key!r}]")]
                for key, item in value.items()
            ]
            return {KIND: "dict" if kind is dict else "ordered", "items": items}
        items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if kind is list:
            return items
        tree: dict[str, Any] = {KIND: "tuple" if isinstance(value, tuple) else kind.__name__}
        if hasattr(kind, "_fields"):
            tree["class"] = _name(kind)
        tree["items"] = items
        if isinstance(value, deque):
            tree["longest"] = value.maxlen
        return tree

    def attributes(self, value: Any, path: str, skip: Collection[str] = ()) -> dict[str, Any]:
        """An object's `__dict__` as a tree, without layout, renderers and `skip`."""
        attributes: dict[str, Any] = {}
        if self.simulate:
            self._simulators |= _simulators_of(value, path)
        for key, item in vars(value).items():
            where = _join(path, key)
            if key in LAYOUT or key in skip:
                attributes[key] = {KIND: "kept"}
            elif isinstance(item, CONSTANTS) and _is_cached_property(value, key):
                continue  # an env built alike may not have computed it yet
            elif key in RANDOM and not isinstance(item, np.random.Generator):
                self.random[where] = {"value": item}
            elif key in CLOCKS and self.simulate:
                self.clocks[where] = self.encode(item, where)
            else:
                try:
                    attributes[key] = self.encode(item, where)
                except _RendererFound:
                    attributes[key] = {KIND: "kept"}
        return attributes


class Decoder:
    """Puts a tree back into the objects of `root`: objects change in place, data is replaced.

    Missing objects are built without running their constructors, from loaded classes that belong to
    the packages of `root`'s own classes. Members of loaded enumerations and named tuples may be of
    any package. With `only_simulator`, randomness and clocks stay as they are.
    """

    def __init__(
        self,
        root: Any,
        random: dict[str, Any],
        clocks: dict[str, Any],
        *,
        only_simulator: bool = False,
    ):
        self.random = random
        self.clocks = clocks
        self.only_simulator = only_simulator
        self._packages = {base.__module__.split(".")[0] for base in type(root).__mro__}
        self._decoded: list[Any] = []  # by the encoder's numbers
        self._patched: set[int] = set()
        self._generators: dict[str, Any] = {}
        self._simulators: dict[str, Any] = {}

    def decode(self, tree: Any, current: Any, path: str) -> Any:
        """The value of a tree; `current` is the value that the env holds there, or MISSING.

        Raises:
            Incomplete: the env lacks something that is not data: it must be reset first.
        """
        if isinstance(tree, np.ndarray):
            return self._number(np.array(tree, order="K"))
        if isinstance(tree, list):
            decoded = self._number([])
            decoded.extend(self._items(tree, current, path))
            return decoded
        if not isinstance(tree, dict):
            return tree
        if KIND not in tree:
            decoded = self._number({})
            for key, item in tree.items():
                decoded[key] = self.decode(item, _get(current, key), f"{path}.{key}")
            return decoded
        return self._decode_kind(tree, current, path)

    def _decode_kind(self, tree: dict[str, Any], current: Any, path: str) -> Any:
        """Invert what `Encoder.encode` wrote for values that are not plain trees."""
        match tree[KIND]:
            case "same":
                return self._decoded[tree["as"]]
            case "kept":
                if current is MISSING:
                    raise Incomplete(f"{path} is not there")
                return current
            case "scalar":
                return tree["value"][0]
            case "complex":
                return complex(*tree["parts"])
            case "bytes":
                return tree["data"].tobytes()
            case "bytearray":
                return bytearray(tree["data"].tobytes())
            case "objects":
                decoded = self._number(np.empty(tree["shape"], dtype=object))
                for i, item in enumerate(tree["items"]):
                    decoded.flat[i] = self.decode(item, MISSING, f"{path}[{i}]")
                return decoded
            case "tuple":
                items = self._items(tree["items"], current, path)
                if "class" not in tree:
                    return tuple(items)
                return tuple.__new__(self._class(tree["class"], tuple, current, path), items)
            case "frozenset":
                return frozenset(self._items(tree["items"], MISSING, path))
            case "set":
                decoded = self._number(set())
                decoded.update(self._items(tree["items"], MISSING, path))
                return decoded
            case "deque":
                decoded = self._number(deque(maxlen=tree["longest"]))
                decoded.extend(self._items(tree["items"], current, path))
                return decoded
            case "dict" | "ordered":
                decoded = self._number({} if tree[KIND] == "dict" else OrderedDict())
                for key_tree, item in tree["items"]:
                    key = self.decode(key_tree, MISSING, path)
                    decoded[key] = self.decode(item, _get(current, key), f"{path}[{key!r}]")
                return decoded
            case "enum":
                kind = self._class(tree["class"], enum.Enum, current, path)
                if tree["name"] not in kind.__members__:
                    raise Incomplete(f"{path} is not a {tree['class']}")
                return kind[tree["name"]]
            case "random":
                return self._generator(tree["at"], current)
            case "simulator":
                if simulators.kind_of(current) is None:
                    raise Incomplete(f"{path} is not a simulator")
                simulators.restore(current, tree["state"])
                return current
            case "view":
                return self._view(tree, path)
            case "object":
                return self._object(tree, current, path)
        raise Incomplete(f"{path} is of an unknown kind {tree[KIND]!r}")

    def _number(self, decoded: Any) -> Any:
        self._decoded.append(decoded)
        return decoded

    def _items(self, trees: list[Any], current: Any, path: str) -> list[Any]:
        if not isinstance(current, list | tuple | deque) or len(current) != len(trees):
            current = [MISSING] * len(trees)
        pairs = zip(trees, list(current), strict=True)
        return [self.decode(tree, now, f"{path}[{i}]") for i, (tree, now) in enumerate(pairs)]

    def _generator(self, at: str, current: Any) -> Any:
        if at not in self._generators:
            if not (self.only_simulator and isinstance(current, GENERATORS)):
                current = with_state(current, self.random[at])
            self._generators[at] = current
        return self._generators[at]

    def _view(self, tree: dict[str, Any], path: str) -> np.ndarray:
        if tree["of"] not in self._simulators:
            raise Incomplete(f"{path} is a view of {tree['of']}, which is missing")
        view = simulators.make_view(self._simulators[tree["of"]], tree)
        if view is None:
            raise Incomplete(f"{path} is a view of {tree['field']}, which has a different size now")
        return self._number(view)

    def _object(self, tree: dict[str, Any], current: Any, path: str) -> Any:
        fits = current is not MISSING and _name(type(current)) == tree["class"]
        if not fits or id(current) in self._patched:
            kind = self._class(tree["class"], object, MISSING, path)
            if not _is_plain(kind) or issubclass(kind, gymnasium.Env):
                raise Incomplete(f"{path} is not a {tree['class']}")
            current = object.__new__(kind)
        self._patched.add(id(current))
        self._number(current)
        self.attributes(tree["attributes"], current, path)
        return current

    def attributes(self, trees: dict[str, Any], owner: Any, path: str) -> None:
        """Restore `owner.__dict__`: what was not saved is deleted, except renderers."""
        held = vars(owner)
        self._simulators |= _simulators_of(owner, path)
        for key in [key for key in held if key not in trees]:
            own = key in RANDOM or (self.only_simulator and key in CLOCKS)
            if not own and _join(path, key) not in self.clocks and not _is_renderer(held[key]):
                del held[key]
        for key, tree in trees.items():
            now = held.get(key, MISSING)
            if isinstance(tree, dict) and tree.get(KIND) == "kept":
                if now is MISSING and key not in LAYOUT:
                    raise Incomplete(f"{path}.{key} is not there")
            elif now is MISSING or not _is_renderer(now):
                held[key] = self.decode(tree, now, _join(path, key))
        if self.only_simulator:
            return
        for saved, keys in ((self.clocks, CLOCKS), (self.random, RANDOM)):
            for key in keys:
                where = _join(path, key)
                if where in saved and key not in trees:
                    value = saved[where]
                    is_random = saved is self.random
                    held[key] = value["value"] if is_random else self.decode(value, MISSING, where)

    def _class(self, name: str, base: type, current: Any, path: str) -> Any:
        """The loaded subclass of `base` with this name."""
        found: Any = type(current)
        if current is MISSING or _name(found) != name:
            module, _, qualified = name.partition(":")
            found = sys.modules.get(module)
            for part in qualified.split("."):
                found = getattr(found, part, None)
            own = module.split(".")[0] in self._packages
            if not isinstance(found, type) or not (own or issubclass(found, enum.Enum | tuple)):
                raise Incomplete(f"{path} is not a {name}")
        if not issubclass(found, base):
            raise Incomplete(f"{path} is not a {name}")
        return found


def generator_state(generator: Any) -> dict[str, Any]:
    """A random generator's state as a tree."""
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"class": "python", "version": version, "words": list(words), "gauss": gauss}

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        return leaf.item() if isinstance(leaf, np.generic) else leaf

    if isinstance(generator, np.random.RandomState):
        return {"class": "legacy", "state": map_leaves(plain, generator.get_state(legacy=False))}
    return {"class": "numpy", "state": map_leaves(plain, generator.bit_generator.state)}


def with_state(generator: Any, state: dict[str, Any]) -> Any:
    """`generator` set to `state`, or a new generator if `state` is of a different kind."""
    if state["class"] == "python":
        generator = generator if isinstance(generator, random.Random) else random.Random()
        generator.setstate((state["version"], tuple(state["words"]), state["gauss"]))
        return generator
    values = state["state"]
    name = values["bit_generator"]
    if name not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
        raise Incomplete(f"there is no generator {name}")
    legacy = state["class"] == "legacy"
    kind: Any = np.random.RandomState if legacy else np.random.Generator
    fits = isinstance(generator, kind) and generator_state(generator)["state"]
    if not fits or fits["bit_generator"] != name:
        generator = kind(getattr(np.random, name)())
    if legacy:
        generator.set_state(values)
    else:
        generator.bit_generator.state = values
    return generator


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _get(current: Any, key: Any) -> Any:
    return current.get(key, MISSING) if isinstance(current, dict) else MISSING


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_cached_property(owner: Any, name: str) -> bool:
    return isinstance(getattr(type(owner), name, None), functools.cached_property)


def _simulators_of(owner: Any, path: str) -> dict[str, Any]:
    """The attributes of an object that are MuJoCo's data, by their paths."""
    return {
        _join(path, key): item
        for key, item in vars(owner).items()
        if simulators.kind_of(item) == "data"
    }


def _renders(kind: type) -> bool:
    package = kind.__module__.split(".")[0]
    if package in ("mujoco", "gymnasium", "dm_control") and kind.__name__ in RENDERING_CLASSES:
        return True
    return package in RENDERING_PACKAGES or kind.__module__ == OWN_RENDERING


def _is_renderer(value: Any) -> bool:
    """True for an object that renders images, also within a container."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_is_renderer(item) for item in value)
    return _renders(type(value))


@functools.cache
def _is_plain(kind: type) -> bool:
    """True if an object of this class has no state outside its `__dict__`."""
    if kind.__new__ is not object.__new__ or not hasattr(kind, "__dict__"):
        return False
    if kind.__dictoffset__ == 0:
        return False
    heap = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement (or by a C extension)
    return all(
        base is object or (base.__flags__ & heap and not base.__dict__.get("__slots__"))
        for base in kind.__mro__
    )
