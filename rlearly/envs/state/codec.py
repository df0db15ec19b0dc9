"""Objects to plain trees and back: what an env or wrapper holds, as numbers, text and arrays.

A tree is None, bool, int, float, str, numpy array, list, or dict with text keys. Anything else is
a dict whose "~" names its kind. Objects come back in place or from classes that are loaded already;
reading a tree runs nobody's constructor and imports nothing.
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

from rlearly.envs.state import simulators

KIND = "~"
MISSING: Any = object()
LAYOUT = {"metadata", "_metadata", "observation_space", "action_space", "spec", "_cached_spec"}
LAYOUT |= {"_observation_space", "_action_space"}
LAYOUT |= {"_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs"}
"""Attributes that are the same in every env built alike."""
RANDOM = {"_np_random", "_np_random_seed"}
"""Randomness of every gymnasium env."""
CLOCKS = {"_step_count", "_reset_next_step", "_steps", "step_count", "curr_path_length"}
"""Episode clocks: of dm_control's environments and DMControlEnv, of MiniGrid, of MetaWorld."""
CONSTANTS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    functools.partial,
    np.dtype,
    np.ufunc,
    logging.Logger,
    pathlib.PurePath,
    gymnasium.Space,
    EnvSpec,
)
"""What is not state: it is not saved, and restoring leaves it as it is."""
KINDS = {"same", "scalar", "complex", "bytes", "bytearray", "objects", "tuple", "frozenset", "set"}
KINDS |= {"deque", "dict", "ordered", "kept", "simulator", "enum", "random", "object", "view"}
DRAWING = ("pygame", "glfw", "OpenGL", "cv2", "matplotlib", "PIL", "moviepy")
DRAWING_CLASSES = {"Renderer", "MujocoRenderer", "OffScreenViewer", "WindowViewer", "Camera"}
OWN_DRAWING = "rlearly.envs.mujoco_rendering"


class Unencodable(Exception):
    """A value cannot be written as plain data; the text says where it is and what it is."""


class Incomplete(Exception):
    """A saved value needs something of the env that this one does not have (yet)."""


class _Drawing(Exception):
    """A value draws pictures: it is a cache, not state."""


# --- objects to trees ---


class Encoder:
    """Turns what `root` holds into a tree; randomness and clocks go into dicts of their own.

    References between objects, cycles included, are kept. `chain` are the envs and wrappers that
    are saved by others. Without `simulate`, simulators belong to others too.

    Raises (encode):
        Unencodable: something is neither data nor known not to be state.
    """

    def __init__(self, chain: Collection[Any] = (), *, simulate: bool = True):
        self.chain = {id(env) for env in chain}
        self.simulate = simulate
        self.random: dict[str, Any] = {}
        self.clocks: dict[str, Any] = {}
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._generators: dict[int, str] = {}
        self._simulators: dict[str, Any] = {}  # by the paths of the attributes that hold them

    def encode(self, value: Any, path: str) -> Any:
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
        if isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
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
        if kind in (complex, bytes, bytearray, tuple, set, frozenset, list, dict, deque):
            return self._container(value, path)
        if kind is OrderedDict or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            return self._container(value, path)
        if _draws(kind):
            raise _Drawing
        if not _is_plain(kind):
            raise Unencodable(f"{path} is a {_name(kind)}")
        return self._object(value, path)

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
        """Where an array shows a part of a simulator, and changes with it (some of MetaWorld's
        tasks keep their grippers' positions so)."""
        if value.flags.owndata:
            return None
        for path, simulator in self._simulators.items():
            part = simulators.part_shown(simulator, value)
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
        if kind is complex:
            return {KIND: "complex", "parts": [value.real, value.imag]}
        if kind in (bytes, bytearray):
            return {KIND: kind.__name__, "data": np.frombuffer(bytes(value), np.uint8)}
        if isinstance(value, dict):
            self._number(value)
            if kind is dict and KIND not in value and all(type(key) is str for key in value):
                return {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
            items = [
                [self.encode(key, f"{path} key {key!r}"), self.encode(item, f"{path}[{key!r}]")]
                for key, item in value.items()
            ]
            return {KIND: "dict" if kind is dict else "ordered", "items": items}
        if isinstance(value, tuple | frozenset):  # immutable: never shared state
            head = {KIND: "frozenset" if kind is frozenset else "tuple"}
            if hasattr(kind, "_fields"):
                head["class"] = _name(kind)
        else:
            self._number(value)
            head = {KIND: kind.__name__}
        items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if kind is list:
            return items
        if isinstance(value, deque):
            return {**head, "items": items, "longest": value.maxlen}
        return {**head, "items": items}

    def _object(self, value: Any, path: str) -> dict[str, Any]:
        self._number(value)
        attributes = self.attributes(value, path)
        return {KIND: "object", "class": _name(type(value)), "attributes": attributes}

    def attributes(self, value: Any, path: str, skip: Collection[str] = ()) -> dict[str, Any]:
        """What an object's `__dict__` holds, less layout, pictures, and `skip`."""
        attributes: dict[str, Any] = {}
        if self.simulate:
            self._simulators |= _simulators_of(value, path)
        for key, item in vars(value).items():
            where = f"{path}.{key}" if path else key
            if key in LAYOUT or key in skip:
                attributes[key] = {KIND: "kept"}
            elif isinstance(item, CONSTANTS) and _computes_itself(value, key):
                continue
            elif key in RANDOM and not isinstance(item, np.random.Generator):
                self.random[where] = {"value": item}
            elif key in CLOCKS and self.simulate:
                self.clocks[where] = self.encode(item, where)
            else:
                try:
                    attributes[key] = self.encode(item, where)
                except _Drawing:
                    attributes[key] = {KIND: "kept"}
        return attributes


def _computes_itself(owner: Any, name: str) -> bool:
    """True for a cached property: it need not be there yet in an env built alike."""
    return isinstance(getattr(type(owner), name, None), functools.cached_property)


def _simulators_of(owner: Any, path: str) -> dict[str, Any]:
    """The attributes of an object that are MuJoCo's data, by their paths."""
    return {
        f"{path}.{key}" if path else key: item
        for key, item in vars(owner).items()
        if simulators.kind_of(item) == "data"
    }


def generator_state(generator: Any) -> dict[str, Any]:
    """A random generator's state as a tree."""
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"class": "python", "version": version, "words": list(words), "gauss": gauss}
    if isinstance(generator, np.random.RandomState):
        return {"class": "legacy", "state": _plain(generator.get_state(legacy=False))}
    return {"class": "numpy", "state": _plain(generator.bit_generator.state)}


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return tree.copy()
    return tree.item() if isinstance(tree, np.generic) else tree


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _draws(kind: type) -> bool:
    top = kind.__module__.split(".")[0]
    mujocos = top in ("mujoco", "gymnasium", "dm_control") and kind.__name__ in DRAWING_CLASSES
    return top in DRAWING or mujocos or kind.__module__ == OWN_DRAWING


@functools.cache
def _is_plain(kind: type) -> bool:
    """True if an object of this class is its `__dict__` and nothing else."""
    if kind.__new__ is not object.__new__ or not hasattr(kind, "__dict__"):
        return False
    if kind.__dictoffset__ == 0:
        return False
    heap = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement (or by a C extension)
    return all(
        base is object or (base.__flags__ & heap and not base.__dict__.get("__slots__"))
        for base in kind.__mro__
    )


# --- trees to objects ---


class Decoder:
    """Puts a tree back into `root`: objects are changed in place, data is replaced.

    Missing objects are built without running their constructors, from classes that are loaded
    already and belong to the packages of `root`'s own classes; so are members of any enumeration
    and named tuples. With `only_simulator`, randomness
    and clocks stay as they are.

    Raises (decode):
        Incomplete: the env lacks something that is not data: it must be reset first.
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
        self._made: list[Any] = []
        self._patched: set[int] = set()
        self._generators: dict[str, Any] = {}
        self._simulators: dict[str, Any] = {}

    def decode(self, tree: Any, current: Any, path: str) -> Any:
        if isinstance(tree, np.ndarray):
            self._made.append(np.array(tree, order="K"))
            return self._made[-1]
        if isinstance(tree, list):
            made: list[Any] = []
            self._made.append(made)
            made.extend(self._items(tree, current, path))
            return made
        if not isinstance(tree, dict):
            return tree
        if KIND not in tree:
            plain: dict[str, Any] = {}
            self._made.append(plain)
            for key, item in tree.items():
                now = current.get(key, MISSING) if isinstance(current, dict) else MISSING
                plain[key] = self.decode(item, now, f"{path}.{key}")
            return plain
        if tree[KIND] not in KINDS:
            raise Incomplete(f"{path} is of an unknown kind {tree[KIND]!r}")
        return getattr(self, f"_{tree[KIND]}")(tree, current, path)

    def _items(self, trees: list[Any], current: Any, path: str) -> list[Any]:
        if not isinstance(current, list | tuple | deque) or len(current) != len(trees):
            current = [MISSING] * len(trees)
        pairs = zip(trees, list(current), strict=True)
        return [self.decode(tree, now, f"{path}[{i}]") for i, (tree, now) in enumerate(pairs)]

    def _same(self, tree: Any, current: Any, path: str) -> Any:
        return self._made[tree["as"]]

    def _scalar(self, tree: Any, current: Any, path: str) -> Any:
        return tree["value"][0]

    def _complex(self, tree: Any, current: Any, path: str) -> complex:
        return complex(*tree["parts"])

    def _bytes(self, tree: Any, current: Any, path: str) -> bytes:
        return tree["data"].tobytes()

    def _bytearray(self, tree: Any, current: Any, path: str) -> bytearray:
        return bytearray(tree["data"].tobytes())

    def _objects(self, tree: Any, current: Any, path: str) -> np.ndarray:
        made = np.empty(tree["shape"], dtype=object)
        self._made.append(made)
        for i, item in enumerate(tree["items"]):
            made.flat[i] = self.decode(item, MISSING, f"{path}[{i}]")
        return made

    def _tuple(self, tree: Any, current: Any, path: str) -> tuple[Any, ...]:
        items = self._items(tree["items"], current, path)
        if "class" not in tree:
            return tuple(items)
        kind = self._class(tree["class"], current, path)
        if not issubclass(kind, tuple):
            raise Incomplete(f"{path} is not a {tree['class']}")
        return tuple.__new__(kind, items)

    def _frozenset(self, tree: Any, current: Any, path: str) -> frozenset[Any]:
        return frozenset(self._items(tree["items"], MISSING, path))

    def _set(self, tree: Any, current: Any, path: str) -> set[Any]:
        made: set[Any] = set()
        self._made.append(made)
        made.update(self._items(tree["items"], MISSING, path))
        return made

    def _deque(self, tree: Any, current: Any, path: str) -> deque[Any]:
        made: deque[Any] = deque(maxlen=tree["longest"])
        self._made.append(made)
        made.extend(self._items(tree["items"], current, path))
        return made

    def _dict(self, tree: Any, current: Any, path: str, kind: type = dict) -> dict[Any, Any]:
        made = kind()
        self._made.append(made)
        for key_tree, item in tree["items"]:
            key = self.decode(key_tree, MISSING, path)
            now = current.get(key, MISSING) if isinstance(current, dict) else MISSING
            made[key] = self.decode(item, now, f"{path}[{key!r}]")
        return made

    def _ordered(self, tree: Any, current: Any, path: str) -> dict[Any, Any]:
        return self._dict(tree, current, path, OrderedDict)

    def _kept(self, tree: Any, current: Any, path: str) -> Any:
        if current is MISSING:
            raise Incomplete(f"{path} is not there")
        return current

    def _view(self, tree: Any, current: Any, path: str) -> np.ndarray:
        if tree["of"] not in self._simulators:
            raise Incomplete(f"{path} shows a part of {tree['of']}, which is not there")
        shown = simulators.show(self._simulators[tree["of"]], tree)
        if shown is None:
            raise Incomplete(f"{path} shows {tree['field']}, which is not as it was")
        self._made.append(shown)
        return shown

    def _simulator(self, tree: Any, current: Any, path: str) -> Any:
        if simulators.kind_of(current) is None:
            raise Incomplete(f"{path} is not a simulator")
        simulators.restore(current, tree["state"])
        return current

    def _enum(self, tree: Any, current: Any, path: str) -> Any:
        kind = self._class(tree["class"], current, path)
        if not issubclass(kind, enum.Enum) or tree["name"] not in kind.__members__:
            raise Incomplete(f"{path} is not a {tree['class']}")
        return kind[tree["name"]]

    def _random(self, tree: Any, current: Any, path: str) -> Any:
        at = tree["at"]
        if at not in self._generators:
            known = isinstance(current, np.random.Generator | np.random.RandomState | random.Random)
            if not (self.only_simulator and known):
                current = with_state(current, self.random[at])
            self._generators[at] = current
        return self._generators[at]

    def _object(self, tree: Any, current: Any, path: str) -> Any:
        fits = current is not MISSING and _name(type(current)) == tree["class"]
        if not fits or id(current) in self._patched:
            kind = self._class(tree["class"], MISSING, path)
            if not _is_plain(kind) or issubclass(kind, gymnasium.Env):
                raise Incomplete(f"{path} is not a {tree['class']}")
            current = object.__new__(kind)
        self._patched.add(id(current))
        self._made.append(current)
        self.attributes(tree["attributes"], current, path)
        return current

    def attributes(
        self, trees: dict[str, Any], owner: Any, path: str, leave: Collection[str] = ()
    ) -> None:
        """Make `owner.__dict__` hold what was saved, and nothing else but `leave` and pictures."""
        held = vars(owner)
        self._simulators |= _simulators_of(owner, path)
        for key in [key for key in held if key not in trees]:
            where = f"{path}.{key}" if path else key
            own = key in leave or key in RANDOM or (self.only_simulator and key in CLOCKS)
            if not own and where not in self.clocks and not _is_cache(held[key]):
                del held[key]
        for key, tree in trees.items():
            now = held.get(key, MISSING)
            if isinstance(tree, dict) and tree.get(KIND) == "kept":
                if now is MISSING and key not in LAYOUT:
                    raise Incomplete(f"{path}.{key} is not there")
            elif now is MISSING or not _is_cache(now):
                held[key] = self.decode(tree, now, f"{path}.{key}" if path else key)
        for saved, into in ((self.clocks, CLOCKS), (self.random, RANDOM)):
            for key in () if self.only_simulator else into:
                where = f"{path}.{key}" if path else key
                if where not in saved or key in trees:
                    continue
                value = saved[where]
                is_random = saved is self.random
                held[key] = value["value"] if is_random else self.decode(value, MISSING, where)

    def _class(self, name: str, current: Any, path: str) -> Any:
        if current is not MISSING and _name(type(current)) == name:
            return type(current)
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in qualified.split("."):
            found = getattr(found, part, None)
        own = module.split(".")[0] in self._packages
        if not isinstance(found, type) or not (own or issubclass(found, enum.Enum | tuple)):
            raise Incomplete(f"{path} is not a {name}")
        return found


def _is_cache(value: Any) -> bool:
    """True for what draws pictures, also within a container."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_is_cache(item) for item in value)
    return _draws(type(value))


def with_state(generator: Any, state: dict[str, Any]) -> Any:
    """`generator` continuing from `state`, or a new one where it is of another kind."""
    if state["class"] == "python":
        made = generator if isinstance(generator, random.Random) else random.Random()
        made.setstate((state["version"], tuple(state["words"]), state["gauss"]))
        return made
    values = state["state"]
    name = values["bit_generator"]
    if name not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
        raise Incomplete(f"there is no generator {name}")
    made = generator
    if state["class"] == "legacy":
        fits = isinstance(made, np.random.RandomState)
        if not fits or made.get_state(legacy=False)["bit_generator"] != name:
            made = np.random.RandomState(getattr(np.random, name)())
        made.set_state(values)
        return made
    if not isinstance(made, np.random.Generator) or type(made.bit_generator).__name__ != name:
        made = np.random.Generator(getattr(np.random, name)())
    made.bit_generator.state = values
    return made
