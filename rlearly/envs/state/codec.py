"""Convert an env's or wrapper's objects to trees of plain data, and back.

A tree is None, bool, int, float, str, numpy array, list, or dict with text keys. Anything else is a
dict with a "~" entry that names its kind. Restoring changes objects and containers in place, and
replaces arrays, which users may hold as observations; arrays that show each other's memory, or a
simulator's, do so again afterwards. Classes must be loaded already: decoding runs no constructor
and imports nothing.
"""

from __future__ import annotations

import array
import ctypes
import enum
import mmap
import pathlib
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlearly.envs.state import simulators
from rlearly.envs.state.generators import (
    UnknownGenerator,
    generator_state,
    is_generator,
    with_state,
)
from rlearly.envs.state.objects import (
    CONSTANTS,
    CONTAINERS,
    LAYOUT,
    MISSING,
    RANDOM,
    Path,
    attributes_of,
    class_name,
    delete_attribute,
    is_frozen,
    is_function,
    is_plain,
    is_renderer,
    kept_by_function,
    loaded_class,
    renders,
    root_of,
    set_attribute,
    set_kept_by_function,
    step_into,
    text_of,
    trusted,
)

KIND = "~"
KEPT: dict[str, Any] = {KIND: "kept"}
"""In place of a value that stays as the env has it."""
ABSENT: dict[str, Any] = {KIND: "absent"}
"""In place of an attribute that the saved env did not have."""
SCALARS = {bool, int, float, str, type(None)}
OPEN_MEMORY = (bytearray, array.array, mmap.mmap, ctypes.Array, ctypes.Structure)
"""Kinds of memory that others may change, and that cannot be linked to again."""


class Unencodable(Exception):
    """A value cannot be written as plain data. The text says where it is and what it is."""


class Incomplete(Exception):
    """A saved value needs a part of the env that this env does not have (yet)."""


class _RendererFound(Exception):
    """A value renders images: it is a cache, not state."""


class Encoder:
    """Turns objects into trees. The states of random generators go into `random`, by path.

    References between objects, including cycles, are kept.

    Args:
        chain: envs and wrappers, which are saved separately.
        shared: values that a module keeps for all envs (`shared_values`): saved by their name.
        opaque: what cannot be encoded becomes an "opaque" entry instead of an error.
    """

    def __init__(
        self,
        chain: Collection[Any] = (),
        *,
        shared: Mapping[int, tuple[Any, str, Path]] | None = None,
        opaque: bool = False,
    ):
        self.chain = {id(env) for env in chain}
        self.shared = shared or {}
        self.opaque = opaque
        self.random: dict[str, Any] = {}
        self._paths: dict[int, Path] = {}
        self._alive: list[Any] = []  # keeps ids unique
        self.generators: dict[str, Any] = {}  # the objects whose states are in `random`
        self._generators: dict[int, str] = {}
        self._simulators: dict[Path, Any] = {}

    def encode(self, value: Any, path: Path = ()) -> Any:
        """The tree of one value.

        Raises:
            Unencodable: a part is neither data nor known not to be state.
        """
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        try:
            return self._encode_object(value, kind, path)
        except Unencodable:
            if not self.opaque:
                raise
            return {KIND: "opaque", "class": class_name(kind)}

    def _encode_object(self, value: Any, kind: type, path: Path) -> Any:
        key = id(value)
        if key in self._paths:
            return {KIND: "same", "of": list(self._paths[key])}
        if key in self.shared:
            _, module, where = self.shared[key]
            return {KIND: "shared", "module": module, "of": list(where)}
        if kind in CONTAINERS:
            return self._container(value, path)
        if isinstance(value, np.ndarray):
            return self._array(value, path)
        if isinstance(value, np.generic):
            if value.dtype.hasobject or value.dtype.names:
                raise Unencodable(f"{text_of(path)} is a {value.dtype}")
            return {KIND: "scalar", "value": np.array([value])}
        if is_generator(value):
            return self._generator(value, path)
        simulator = simulators.kind_of(value)
        if isinstance(value, CONSTANTS) or key in self.chain or simulator == "model":
            return KEPT
        if simulator:
            return self._simulator(value, simulator, path)
        if isinstance(value, np.ufunc):
            return {KIND: "ufunc", "name": value.__name__}
        part: Any = value
        if isinstance(value, np.dtype) and not part.hasobject and not part.names:
            return {KIND: "dtype", "text": part.str}
        if isinstance(value, gymnasium.Space):
            return {KIND: "space", "text": repr(value)}
        if is_function(value):
            return self._function(value, path)
        if isinstance(value, enum.Enum):
            return {KIND: "enum", "class": class_name(kind), "name": value.name}
        bounds = ("start", "stop", "step")
        if kind is slice and {type(getattr(value, name)) for name in bounds} - SCALARS:
            raise Unencodable(f"{text_of(path)} is a slice of other things than numbers")
        if kind in (complex, range, slice, bytes, bytearray) or isinstance(value, pathlib.PurePath):
            return _small(value)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._container(value, path)
        if _is_tensor(value):
            return self._tensor(value, path)
        if renders(kind):
            raise _RendererFound
        if not is_plain(kind):
            raise Unencodable(f"{text_of(path)} is a {class_name(kind)}")
        self._number(value, path)
        attributes = self.attributes(value, path)
        return {KIND: "object", "class": class_name(kind), "attributes": attributes}

    def _number(self, value: Any, path: Path) -> None:
        self._paths[id(value)] = path
        self._alive.append(value)

    def _simulator(self, value: Any, kind: str, path: Path) -> Any:
        self._number(value, path)
        return {KIND: "simulator", "state": simulators.save(kind, value)}

    def _array(self, value: np.ndarray, path: Path) -> Any:
        if type(value) not in (np.ndarray, np.memmap) or value.dtype.names:
            raise Unencodable(f"{text_of(path)} is a {class_name(type(value))} of {value.dtype}")
        if value.dtype.hasobject:
            self._number(value, path)
            items = [self.encode(item, (*path, f"[{i}]")) for i, item in enumerate(value.flat)]
            return {KIND: "objects", "shape": list(value.shape), "items": items}
        if value.base is None or type(value) is np.memmap:
            self._number(value, path)
            return np.array(value, order="K")
        return self._view(value, path)

    def _view(self, value: np.ndarray, path: Path) -> Any:
        """An array that shows memory of another: a part of it if that is known, or else a copy."""
        root = root_of(value)
        tree: dict[str, Any] = {KIND: "view", "writeable": bool(value.flags.writeable)}
        if root.base is not None:
            self._number(value, path)
            for where, simulator in self._simulators.items():
                field = simulators.viewed_field(simulator, value)
                if field is not None:
                    part = _place_in(value, getattr(simulators.data_of(simulator), field))
                    return tree | part | {"of": list(where), "field": field}
            owner: Any = root.base
            while isinstance(owner, memoryview):
                owner = owner.obj
            if isinstance(owner, OPEN_MEMORY) or type(owner).__name__ == "PyCapsule":
                raise Unencodable(f"{text_of(path)} shows memory of a {type(owner).__name__}")
            if _is_tensor(owner) and sys.getrefcount(owner) > 3:
                raise Unencodable(f"{text_of(path)} shows memory of a tensor")
            return np.array(value, order="K")
        holders = sys.getrefcount(root) - 3  # besides this view, the variable and the argument
        known = id(root) in self._paths or id(root) in self.shared
        if not value.size or not (known or holders):
            self._number(value, path)
            return np.array(value, order="K")
        tree |= _place_in(value, root)
        tree["base"] = self.encode(root, (*path, "<base>"))
        self._number(value, path)
        return tree

    def _tensor(self, value: Any, path: Path) -> Any:
        torch = sys.modules["torch"]
        shares = value._base is not None or not value.untyped_storage().resizable()
        if value.device.type != "cpu" or value.layout != torch.strided or value.grad_fn is not None:
            raise Unencodable(f"{text_of(path)} is a tensor on a device, sparse or with a graph")
        if shares or not value.is_contiguous():
            raise Unencodable(f"{text_of(path)} is a tensor that shows memory of another")
        self._number(value, path)
        data = value.detach().clone().reshape(-1).view(torch.uint8).numpy()
        parameter = isinstance(value, torch.nn.Parameter)
        return {
            KIND: "tensor",
            "data": data,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "gradient": value.requires_grad,
            "parameter": parameter,
        }

    def _generator(self, value: Any, path: Path) -> dict[str, Any]:
        if id(value) not in self._generators:
            where = "".join(path).lstrip(".")
            self._generators[id(value)] = where
            self.generators[where] = value
            self.random[where] = generator_state(value)
        return {KIND: "random", "at": self._generators[id(value)]}

    def _function(self, value: Any, path: Path) -> Any:
        self._number(value, path)
        try:
            keeps = {
                name: ABSENT if item is MISSING else self.encode(item, (*path, f"<{name}>"))
                for name, item in kept_by_function(value).items()
            }
        except Unencodable:
            if not trusted(getattr(value, "__func__", value)):
                raise
            return KEPT  # what a library's own function keeps does not change
        return {KIND: "function", "name": _function_name(value), "keeps": keeps}

    def _container(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if not isinstance(value, tuple | frozenset):  # those are never shared state
            self._number(value, path)
        if isinstance(value, dict):
            if kind is dict and KIND not in value and all(type(key) is str for key in value):
                return {
                    key: self.encode(item, (*path, f"[{key!r}]")) for key, item in value.items()
                }
            items = [
                [self.encode(key, (*path, " key ")), self.encode(item, (*path, f"[{key!r}]"))]
                for key, item in value.items()
            ]
            return {KIND: "dict" if kind is dict else "ordered", "items": items}
        if SCALARS.issuperset(map(type, value)):
            items = list(value)
        else:
            items = [self.encode(item, (*path, f"[{i}]")) for i, item in enumerate(value)]
        if kind is list:
            return items
        tree: dict[str, Any] = {KIND: "tuple" if isinstance(value, tuple) else kind.__name__}
        if hasattr(kind, "_fields"):
            tree["class"] = class_name(kind)
        tree["items"] = items
        if isinstance(value, deque):
            tree["longest"] = value.maxlen
        return tree

    def attributes(self, value: Any, path: Path, skip: Collection[str] = ()) -> dict[str, Any]:
        """An object's attributes as a tree, without layout, renderers and `skip`."""
        attributes: dict[str, Any] = {}
        held = attributes_of(value)
        self._simulators |= _simulators_of(held, path)
        for key, item in held.items():
            if key in skip or (key in LAYOUT and isinstance(value, gymnasium.Env)):
                attributes[key] = KEPT
            elif key in RANDOM and not is_generator(item):
                self.random["".join((*path, "." + key)).lstrip(".")] = {"value": item}
            elif isinstance(item, gymnasium.Space) and _is_cached_property(value, key):
                continue  # an env built alike may not have computed it yet
            else:
                try:
                    attributes[key] = self.encode(item, (*path, f".{key}"))
                except _RendererFound:
                    attributes[key] = KEPT
        return attributes


class Decoder:
    """Puts trees back into the objects that they describe.

    Missing objects are built without running their constructors, from loaded classes that belong to
    the packages of the env's own classes. Members of loaded enumerations and named tuples may be of
    any package.

    Args:
        roots: the unwrapped env, then its wrappers, outermost first.
        random: states of generators, by path.
        keep_random: leave generators as they are.
        in_place: ids of arrays that others hold, and that are therefore written in place.
    """

    def __init__(
        self,
        roots: list[Any],
        random: Mapping[str, Any],
        *,
        keep_random: bool = False,
        in_place: Collection[int] = (),
    ):
        self.roots = roots
        self.random = random
        self.keep_random = keep_random
        self.in_place = in_place
        kinds = [base for root in roots for base in type(root).__mro__]
        self._packages = {kind.__module__.split(".")[0] for kind in kinds}
        self._decoded: dict[Path, Any] = {}
        self._used: set[int] = set()
        self._alive: list[Any] = []
        self._generators: dict[str, Any] = {}

    def decode(self, tree: Any, current: Any, path: Path = ()) -> Any:
        """The value of a tree; `current` is the value that the env holds there, or MISSING.

        Raises:
            Incomplete: the env lacks something that is not data: it must be reset first.
        """
        if isinstance(tree, np.ndarray):
            return self._array(tree, current, path)
        if isinstance(tree, list):
            return self._fill_list(self._container(list, current, path), tree, current, path)
        if not isinstance(tree, dict):
            return tree
        if KIND not in tree:
            decoded = self._container(dict, current, path)
            before = dict(current) if isinstance(current, dict) else {}
            decoded.clear()
            for key, item in tree.items():
                now = before.get(key, MISSING)
                decoded[key] = self.decode(item, now, (*path, f"[{key!r}]"))
            return decoded
        return self._decode_kind(tree, current, path)

    def _decode_kind(self, tree: dict[str, Any], current: Any, path: Path) -> Any:
        """Invert what `Encoder.encode` wrote for values that are not plain trees."""
        match tree[KIND]:
            case "same":
                return self._at(tuple(tree["of"]), path)
            case "shared":
                return self._shared(tree, path)
            case "kept" | "opaque":
                if current is MISSING:
                    raise Incomplete(f"{text_of(path)} is not there")
                self._decoded[path] = current
                return current
            case "scalar":
                return tree["value"][0]
            case "complex" | "range" | "slice" | "bytes" | "bytearray" | "path":
                return _decode_small(tree)
            case "ufunc":
                return getattr(np, tree["name"])
            case "dtype":
                return np.dtype(tree["text"])
            case "space":
                if repr(current) != tree["text"]:
                    raise Incomplete(f"{text_of(path)} is not {tree['text']}")
                return current
            case "objects":
                decoded = self._remember(np.empty(tree["shape"], dtype=object), path)
                for i, item in enumerate(tree["items"]):
                    now = step_into(current, f"[{i}]") if _same_shape(current, decoded) else MISSING
                    decoded.flat[i] = self.decode(item, now, (*path, f"[{i}]"))
                return decoded
            case "tuple":
                items = self._items(tree["items"], current, path)
                if "class" not in tree:
                    return tuple(items)
                return tuple.__new__(self._class(tree["class"], tuple, current, path), items)
            case "frozenset":
                return frozenset(self._items(tree["items"], MISSING, path))
            case "set":
                decoded = self._container(set, current, path)
                items = self._items(tree["items"], MISSING, path)
                decoded.clear()
                decoded.update(items)
                return decoded
            case "deque":
                fits = isinstance(current, deque) and current.maxlen == tree["longest"]
                decoded = self._container(deque, current if fits else MISSING, path)
                if not fits:
                    decoded = self._remember(deque(maxlen=tree["longest"]), path)
                return self._fill_list(decoded, tree["items"], current, path)
            case "dict" | "ordered":
                kind: Any = dict if tree[KIND] == "dict" else OrderedDict
                before = dict(current) if isinstance(current, dict) else {}
                decoded = self._container(kind, current, path)
                decoded.clear()
                for key_tree, item in tree["items"]:
                    key = self.decode(key_tree, MISSING, (*path, " key "))
                    now = before.get(key, MISSING)
                    decoded[key] = self.decode(item, now, (*path, f"[{key!r}]"))
                return decoded
            case "enum":
                kind = self._class(tree["class"], enum.Enum, current, path)
                if tree["name"] not in kind.__members__:
                    raise Incomplete(f"{text_of(path)} is not a {tree['class']}")
                return kind[tree["name"]]
            case "random":
                return self._generator(tree["at"], current)
            case "simulator":
                if simulators.kind_of(current) is None:
                    raise Incomplete(f"{text_of(path)} is not a simulator")
                simulators.restore(current, tree["state"])
                return self._remember(current, path)
            case "view":
                return self._view(tree, current, path)
            case "tensor":
                return self._tensor(tree, current, path)
            case "function":
                return self._function(tree, current, path)
            case "object":
                return self._object(tree, current, path)
        raise Incomplete(f"{text_of(path)} is of an unknown kind {tree[KIND]!r}")

    def _remember(self, decoded: Any, path: Path) -> Any:
        self._decoded[path] = decoded
        self._alive.append(decoded)
        return decoded

    def _at(self, where: Path, path: Path) -> Any:
        """The object that another path leads to."""
        if where in self._decoded:
            return self._decoded[where]
        found, rest = self.roots[0], where
        if where and where[0].startswith("#"):
            found, rest = self.roots[int(where[0][1:])], where[1:]
        for step in rest:
            found = step_into(found, step)
        if found is MISSING:
            raise Incomplete(f"{text_of(path)} is {text_of(where)}, which is not there")
        return found

    def _shared(self, tree: dict[str, Any], path: Path) -> Any:
        found: Any = sys.modules.get(tree["module"], MISSING)
        for step in tree["of"]:
            if step[0] == "." and isinstance(found, type):
                found = vars(found).get(step[1:], MISSING)
            else:
                found = step_into(found, step)
        if found is MISSING:
            where = f"{tree['module']}{''.join(tree['of'])}"
            raise Incomplete(f"{text_of(path)} is {where}, which is not there")
        return found

    def _container(self, kind: type, current: Any, path: Path) -> Any:
        """`current`, to be filled anew, or an empty container if it does not fit."""
        fits = type(current) is kind and id(current) not in self._used
        if fits:
            self._used.add(id(current))
        return self._remember(current if fits else kind(), path)

    def _fill_list(self, decoded: Any, trees: list[Any], current: Any, path: Path) -> Any:
        items = self._items(trees, current, path)
        decoded.clear()
        decoded.extend(items)
        return decoded

    def _items(self, trees: list[Any], current: Any, path: Path) -> list[Any]:
        if not isinstance(current, list | tuple | deque) or len(current) != len(trees):
            current = [MISSING] * len(trees)
        pairs = zip(trees, list(current), strict=True)
        return [self.decode(tree, now, (*path, f"[{i}]")) for i, (tree, now) in enumerate(pairs)]

    def _array(self, tree: np.ndarray, current: Any, path: Path) -> np.ndarray:
        if isinstance(current, np.ndarray) and current.dtype == tree.dtype:
            held = id(current) in self.in_place or id(root_of(current)) in self.in_place
            if _same_shape(current, tree) and (held or path[-1:] == ("<base>",)):
                current[...] = tree
                return self._remember(current, path)
        return self._remember(np.array(tree, order="K"), path)

    def _view(self, tree: dict[str, Any], current: Any, path: Path) -> np.ndarray:
        if "field" in tree:
            base = simulators.data_of(self._at(tuple(tree["of"]), path))
            base = getattr(base, tree["field"], None)
        else:
            now = root_of(current) if isinstance(current, np.ndarray) else MISSING
            base = self.decode(tree["base"], now, (*path, "<base>"))
        if not isinstance(base, np.ndarray):
            raise Incomplete(f"{text_of(path)} shows an array that is not there")
        flat = (base if base.flags.c_contiguous else base.T).reshape(-1).view(np.uint8)
        try:
            view = np.ndarray(tree["shape"], tree["dtype"], flat, tree["start"], tree["strides"])
        except (TypeError, ValueError):
            raise Incomplete(
                f"{text_of(path)} shows a part of an array that has a different size now"
            ) from None
        view.flags.writeable = tree["writeable"]
        if isinstance(current, np.ndarray) and _interface(current) == _interface(view):
            view = current
        return self._remember(view, path)

    def _tensor(self, tree: dict[str, Any], current: Any, path: Path) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            raise Incomplete(f"{text_of(path)} is a tensor, and torch is not loaded")
        data = torch.from_numpy(np.array(tree["data"])).view(getattr(torch, tree["dtype"]))
        data = data.reshape(tree["shape"])
        fits = _is_tensor(current) and current.shape == data.shape and current.dtype == data.dtype
        if fits and (tree["parameter"] or id(current) in self.in_place):
            current.data.copy_(data)
            return self._remember(current, path)
        if tree["parameter"]:
            return self._remember(torch.nn.Parameter(data, tree["gradient"]), path)
        return self._remember(data.requires_grad_(tree["gradient"]), path)

    def _generator(self, at: str, current: Any) -> Any:
        if at not in self._generators:
            if not (self.keep_random and is_generator(current)):
                try:
                    current = with_state(current, self.random[at])
                except UnknownGenerator as error:
                    raise Incomplete(str(error)) from None
            self._generators[at] = current
        return self._generators[at]

    def _function(self, tree: dict[str, Any], current: Any, path: Path) -> Any:
        name, keeps = tree["name"], tree["keeps"]
        if not is_function(current) or _function_name(current) != name:
            current = self._find_function(name, keeps, path)
        self._remember(current, path)
        held = kept_by_function(current)
        for key, item in keeps.items():
            now = held.get(key, MISSING)
            if isinstance(item, dict) and item.get(KIND) == "absent":
                continue
            if key not in held:
                raise Incomplete(f"{text_of(path)} keeps no {key}")
            decoded = self.decode(item, now, (*path, f"<{key}>"))
            if decoded is now or set_kept_by_function(current, key, decoded):
                continue
            if isinstance(current, types.MethodType) and key == "self":
                current = self._remember(types.MethodType(current.__func__, decoded), path)
            elif not _equal_scalars(decoded, now):
                raise Incomplete(f"{text_of(path)} keeps a {key} that cannot be changed")
        return current

    def _find_function(self, name: str, keeps: dict[str, Any], path: Path) -> Any:
        """A class, a method of an object that is part of the state, or a module's function."""
        if "self" in keeps:
            owner = self.decode(keeps["self"], MISSING, (*path, "<self>"))
            method = getattr(owner, name.rpartition(".")[2], None)
            if method is not None and _function_name(method) == name:
                return method
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in qualified.split("@")[0].split("."):
            found = getattr(found, part, None)
        own = module.split(".")[0] in self._packages
        if not own or not is_function(found) or _function_name(found) != name:
            raise Incomplete(f"{text_of(path)} is not {name}")
        return found

    def _object(self, tree: dict[str, Any], current: Any, path: Path) -> Any:
        fits = current is not MISSING and class_name(type(current)) == tree["class"]
        if not fits or id(current) in self._used or is_frozen(type(current)):
            kind = self._class(tree["class"], object, current if fits else MISSING, path)
            if not is_plain(kind) or issubclass(kind, gymnasium.Env):
                raise Incomplete(f"{text_of(path)} is not a {tree['class']}")
            old, current = current, object.__new__(kind)
            if fits and is_frozen(kind):  # its kept attributes are those of the one it replaces
                for key, value in attributes_of(old).items():
                    set_attribute(current, key, value)
        self._used.add(id(current))
        self._remember(current, path)
        self.attributes(tree["attributes"], current, path, partial=bool(tree.get("partial")))
        return current

    def attributes(
        self, trees: dict[str, Any], owner: Any, path: Path, *, partial: bool = False
    ) -> None:
        """Restore an object's attributes: what was not saved is deleted, except renderers.

        Args:
            partial: leave attributes that are not in `trees` alone.
        """
        held = attributes_of(owner)
        for key in [] if partial else [key for key in held if key not in trees]:
            if key not in RANDOM and not is_renderer(held[key]):
                delete_attribute(owner, key)
        for key, tree in trees.items():
            now = held.get(key, MISSING)
            kind = tree.get(KIND) if isinstance(tree, dict) else None
            if kind == "absent":
                if now is not MISSING:
                    delete_attribute(owner, key)
            elif kind == "kept":
                if now is MISSING and key not in LAYOUT:
                    raise Incomplete(f"{text_of((*path, '.' + key))} is not there")
                self._decoded[*path, f".{key}"] = now
            elif now is MISSING or not is_renderer(now):
                decoded = self.decode(tree, now, (*path, f".{key}"))
                if decoded is not now or now is MISSING:
                    set_attribute(owner, key, decoded)
        if self.keep_random:
            return
        for key in RANDOM:
            saved = self.random.get("".join((*path, "." + key)).lstrip("."))
            if saved is not None and key not in trees and "value" in saved:
                set_attribute(owner, key, saved["value"])

    def _class(self, name: str, base: type, current: Any, path: Path) -> Any:
        """The loaded subclass of `base` with this name."""
        found: Any = type(current)
        if current is MISSING or class_name(found) != name:
            found = loaded_class(name)
            own = name.split(":")[0].split(".")[0] in self._packages
            if found is None or not (own or issubclass(found, enum.Enum | tuple)):
                raise Incomplete(f"{text_of(path)} is not a {name}")
        if not issubclass(found, base):
            raise Incomplete(f"{text_of(path)} is not a {name}")
        return found


def encoded(value: Any) -> Any:
    """Any value as a tree; parts that are no data are named by their class."""
    return Encoder(opaque=True).encode(value)


def _small(value: Any) -> dict[str, Any]:
    """The tree of a complex, range, slice, bytes, bytearray or path."""
    if isinstance(value, complex):
        return {KIND: "complex", "parts": [value.real, value.imag]}
    if isinstance(value, range):
        return {KIND: "range", "parts": [value.start, value.stop, value.step]}
    if isinstance(value, slice):
        return {KIND: "slice", "parts": [value.start, value.stop, value.step]}
    if isinstance(value, pathlib.PurePath):
        return {KIND: "path", "text": str(value)}
    return {KIND: type(value).__name__, "data": np.frombuffer(bytes(value), np.uint8).copy()}


def _decode_small(tree: dict[str, Any]) -> Any:
    match tree[KIND]:
        case "complex":
            return complex(*tree["parts"])
        case "range":
            return range(*tree["parts"])
        case "slice":
            return slice(*tree["parts"])
        case "path":
            return pathlib.Path(tree["text"])
        case "bytes":
            return tree["data"].tobytes()
    return bytearray(tree["data"].tobytes())


def _place_in(view: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Where a view lies in the memory of an array, in bytes."""
    start = _address(view) - _address(base)
    return {
        "start": start,
        "strides": list(view.strides),
        "shape": list(view.shape),
        "dtype": view.dtype.str,
    }


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _interface(array: np.ndarray) -> tuple[Any, ...]:
    return _address(array), array.shape, array.strides, array.dtype, array.flags.writeable


def _same_shape(current: Any, other: np.ndarray) -> bool:
    return isinstance(current, np.ndarray) and current.shape == other.shape


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _equal_scalars(one: Any, two: Any) -> bool:
    simple = (bool, int, float, str, bytes, type(None))
    return type(one) is type(two) and isinstance(one, simple) and one == two


def _function_name(value: Any) -> str:
    """module:qualified name of a function; with its line if it is not found by its name."""
    function = getattr(value, "__func__", getattr(value, "func", value))
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    at = f"@{code.co_firstlineno}" if code is not None and "<" in name else ""
    return f"{getattr(function, '__module__', None)}:{name}{at}"


def _is_cached_property(owner: Any, name: str) -> bool:
    kind = getattr(type(owner), name, None)
    return type(kind).__name__ == "cached_property"


def _simulators_of(held: Mapping[str, Any], path: Path) -> dict[Path, Any]:
    """The attributes of an object that are MuJoCo's, by their paths."""
    return {
        (*path, f".{key}"): item
        for key, item in held.items()
        if simulators.kind_of(item) in ("data", "model", "physics")
    }
