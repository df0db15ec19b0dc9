"""The world of an env: what its episodes change, told apart from its settings by looking.

A snapshot's world goes into a student's env, while the student's settings and randomness stay. The
parts that a reset or a step changes are found by comparing trees of saved states (`World.look`).
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.state.codec import ABSENT, KEPT, KIND
from rlearly.envs.state.compare import same
from rlearly.envs.state.objects import Path, text_of
from rlearly.envs.state.simulators import pack, unpack


class _Whole(enum.Enum):  # members are the same objects after copying and pickling
    WHOLE = "whole"


WHOLE = _Whole.WHOLE
"""In `Parts`: everything below this point."""
Parts = Any
"""A set of paths as nested dicts, by step, with `WHOLE` at their ends."""


class World:
    """The parts of an env's state that its episodes change.

    Attributes:
        reference: the first tree that was looked at.
        changed: the paths of the parts in which another tree differed from it.
    """

    def __init__(self, reference: Any, changed: Iterable[Path] = ()):
        self.reference = reference
        self.changed: set[Path] = set(changed)
        attributes = reference.get("attributes", {}) if isinstance(reference, dict) else {}
        self._texts = {key: tree_text(item) for key, item in attributes.items()}

    def look(self, tree: Any) -> None:
        """Add the parts in which this state differs from the reference."""
        if _kind(self.reference) != "object" or _kind(tree) != "object":
            self.changed |= self.siblings(differences(self.reference, tree))
            return
        own, other = self.reference["attributes"], tree["attributes"]
        for key in own | other:
            path = (f".{key}",)
            if key not in own or key not in other:
                self.changed.add(path)
            elif key not in self._texts or self._texts[key] != tree_text(other[key]):
                self.changed |= self.siblings(differences(own[key], other[key], path))

    def siblings(self, paths: Iterable[Path]) -> set[Path]:
        """The paths, and those of the same part of the other objects in a list.

        Which of several like objects an episode changes may depend on the episode.
        """
        found: set[Path] = set()
        for path in paths:
            found |= {path, *_siblings(self.reference, path)}
        return found


def _siblings(tree: Any, path: Path) -> Iterator[Path]:
    parts = _parts(tree) or {}
    if not path:
        yield ()
        return
    kinds = {_class_of(part) for part in parts.values()}
    alike = path[0].startswith("[") and len(kinds) == 1 and None not in kinds
    for step in parts if alike else [path[0]]:
        for rest in _siblings(parts.get(step), path[1:]):
            yield (step, *rest)


def _class_of(tree: Any) -> str | None:
    return tree.get("class") if isinstance(tree, dict) and tree.get(KIND) == "object" else None


def tree_text(tree: Any) -> str:
    """Text that is equal for equal trees only; much faster to compare than the trees."""
    return json.dumps(tree, default=_array_text)


def _array_text(array: np.ndarray) -> list[Any]:
    digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
    return [array.dtype.str, array.shape, digest]


def differences(one: Any, two: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of the smallest parts in which two trees differ; randomness is left out.

    A list, dict or tuple of plain values is one part, and so is one that changes its length or
    keys. Objects are looked into, and so are containers of objects.
    """
    if one is two:
        return
    parts, others = _parts(one), _parts(two)
    if parts is None or others is None or _kind(one) != _kind(two):
        if not _same(one, two):
            yield path
        return
    appears = "attributes" in one if isinstance(one, dict) else False
    if list(parts) != list(others) and not appears:
        yield path
        return
    if isinstance(one, dict) and _header(one) != _header(two):
        yield path
        return
    if not _structured(one, parts) or not _structured(two, others):
        if not _same(one, two):
            yield path
        return
    for step in [*parts, *(step for step in others if step not in parts)]:
        if step not in parts or step not in others:
            yield (*path, step)
        else:
            yield from differences(parts[step], others[step], (*path, step))


def _kind(tree: Any) -> Any:
    return tree.get(KIND, "plain") if isinstance(tree, dict) else type(tree)


def _header(tree: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for two trees to be compared part by part."""
    names = ("class", "name", "longest", "shape")
    if tree.get(KIND) in ("object", "function", "tuple", "deque", "objects"):
        return {name: tree[name] for name in names if name in tree}
    return {}


def _parts(tree: Any) -> dict[str, Any] | None:
    """The parts of a tree by the step of a `Path` that leads to each; None for a leaf."""
    if isinstance(tree, list):
        return {f"[{i}]": item for i, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return None
    match tree.get(KIND):
        case None:
            return {f"[{key!r}]": item for key, item in tree.items()}
        case "object":
            return {f".{key}": item for key, item in tree["attributes"].items()}
        case "function":
            return {f"<{key}>": item for key, item in tree["keeps"].items()}
        case "tuple" | "deque" | "objects":
            return {f"[{i}]": item for i, item in enumerate(tree["items"])}
        case "dict" | "ordered":
            if all(_is_scalar(key) for key, _ in tree["items"]):
                return {f"[{key!r}]": item for key, item in tree["items"]}
            return None
        case "simulator":
            return dict(_simulator_parts(tree["state"]))
        case "view":
            return {"<base>": tree["base"]} if "base" in tree else None
    return None


def _simulator_parts(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "ale" in state:
        yield ".state", state["ale"]
        return
    if "state" in state:
        yield ".state", [state["state"], *state["derived"].values()]
    for name, value in unpack(state["model"]).items() if "model" in state else ():
        yield f".model.{name}", value
    for name, value in state.get("options", {}).items():
        yield f".options.{name}", value


def _groups(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The model's fields and options in a simulator's state, by name."""
    if "model" not in state:
        return {}
    return {"model": unpack(state["model"]), "options": state["options"]}


def _structured(tree: Any, parts: dict[str, Any]) -> bool:
    """Whether the parts of a tree are looked at one by one."""
    if isinstance(tree, dict) and tree.get(KIND) in ("object", "function", "simulator", None):
        return True
    if isinstance(tree, dict) and tree.get(KIND) == "view":
        return False
    return bool(parts) and all(_parts(part) is not None for part in parts.values())


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _same(one: Any, two: Any) -> bool:
    """Whether two trees are equal, to the bit, apart from the places of generators."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.get(KIND) == "random" and two.get(KIND) == "random":
            return True
        return list(one) == list(two) and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return same(one, two)


def parts_of(paths: Iterable[Path]) -> Parts:
    """A set of paths as `Parts`."""
    tree: Parts = {}
    for path in sorted(paths, key=len):
        node = tree
        for i, step in enumerate(path):
            if node.get(step) is WHOLE:
                break
            node = node.setdefault(step, WHOLE if i == len(path) - 1 else {})
    return WHOLE if () in paths else tree


def prune(tree: Any, parts: Parts, everywhere: Parts = None) -> Any:
    """A tree with only these parts; `KEPT` in place of all others.

    References into these parts stay in it, so that names of one object, and arrays that show one
    memory, still do so after restoring.

    Args:
        everywhere: the parts of all trees that are restored together; None: of this one alone.
    """
    return _prune(tree, parts, parts if everywhere is None else everywhere)


def _prune(tree: Any, parts: Parts, root: Parts) -> Any:
    if parts is WHOLE:
        return tree
    if isinstance(tree, dict) and tree.get(KIND) == "same":
        return tree if _replaced(tree["of"], root) else KEPT
    if not parts and not _refers_to(tree, root):
        return KEPT
    children = _parts(tree)
    if children is None:
        return KEPT
    pruned = {step: _prune(child, parts.get(step, {}), root) for step, child in children.items()}
    absent = [step for step, node in parts.items() if node is WHOLE and step not in children]
    if not absent and all(child is KEPT for child in pruned.values()):
        return KEPT
    if isinstance(tree, dict) and tree.get(KIND) == "view":
        return tree | {"base": pruned["<base>"]}
    return _with_parts(tree, pruned, absent)


def _refers_to(tree: Any, parts: Parts) -> bool:
    """Whether a tree holds references to what is replaced."""
    if isinstance(tree, list):
        return any(isinstance(item, list | dict) and _refers_to(item, parts) for item in tree)
    if not isinstance(tree, dict):
        return False
    if tree.get(KIND) == "same":
        return _replaced(tree["of"], parts)
    items = tree.values()
    return any(isinstance(item, list | dict) and _refers_to(item, parts) for item in items)


def _replaced(path: Iterable[str], parts: Parts) -> bool:
    """Whether what is at a path is one of the parts, or within one."""
    for step in path:
        if parts is WHOLE or step not in parts:
            break
        parts = parts[step]
    return parts is WHOLE


def _with_parts(tree: Any, pruned: dict[str, Any], absent: list[str]) -> Any:
    """A tree with other parts, those that are kept left out where nothing needs them."""
    if isinstance(tree, list):
        return list(pruned.values())
    match tree.get(KIND):
        case None:
            return dict(zip(tree, pruned.values(), strict=True))
        case "object":
            attributes = {s[1:]: child for s, child in pruned.items() if child is not KEPT}
            attributes |= {step[1:]: ABSENT for step in absent}
            return tree | {"attributes": attributes, "partial": True}
        case "function":
            return tree | {"keeps": {s[1:-1]: child for s, child in pruned.items()}}
        case "dict" | "ordered":
            keys = [key for key, _ in tree["items"]]
            items = [[key, child] for key, child in zip(keys, pruned.values(), strict=True)]
            return tree | {"items": items}
        case "simulator":
            state = {"build": tree["state"]["build"]} if "build" in tree["state"] else {}
            if ".state" in pruned and pruned[".state"] is not KEPT:
                state = {k: v for k, v in tree["state"].items() if k not in ("model", "options")}
            groups = _groups(tree["state"])
            for group, values in groups.items():
                taken = {n: v for n, v in values.items() if pruned[f".{group}.{n}"] is not KEPT}
                state[group] = pack(taken) if group == "model" else taken
            return tree | {"state": state}
    return tree | {"items": list(pruned.values())}


def overlay(reference: Any, pruned: Any) -> Any:
    """`pruned` with the parts of `reference` in place of those that were kept."""
    if isinstance(pruned, dict) and pruned.get(KIND) == "kept":
        return reference
    children, others = _parts(reference), _parts(pruned)
    if isinstance(pruned, dict) and pruned.get(KIND) == "simulator":
        own, taken = _groups(reference["state"]), _groups(pruned["state"])
        groups = {group: own[group] | taken[group] for group in own}
        if "model" in groups:
            groups["model"] = pack(groups["model"])
        return pruned | {"state": {**reference["state"], **pruned["state"], **groups}}
    if children is None or others is None or _kind(reference) != _kind(pruned):
        return pruned
    partial = isinstance(pruned, dict) and pruned.get("partial")
    if partial:
        merged = dict(reference["attributes"])
        for key, item in pruned["attributes"].items():
            if isinstance(item, dict) and item.get(KIND) == "absent":
                merged.pop(key, None)
            else:
                merged[key] = overlay(merged[key], item) if key in merged else item
        whole = {key: value for key, value in pruned.items() if key != "partial"}
        return whole | {"attributes": merged}
    if list(children) != list(others):
        return pruned
    merged = {step: overlay(children[step], item) for step, item in others.items()}
    if isinstance(pruned, dict) and pruned.get(KIND) == "view":
        return pruned | {"base": merged["<base>"]}
    return _with_parts(pruned, merged, [])


def named(names: Iterable[str], paths: Iterable[Path], option: str) -> set[Path]:
    """The paths at or below the attributes with these names, as in "task.goal".

    Raises:
        ConfigError: a name fits no path.
    """
    paths = list(paths)
    found: set[Path] = set()
    for name in names:
        fitting = {path for path in paths if _is_at(text_of(path), name)}
        if not fitting:
            known = ", ".join(sorted({text_of(path) for path in paths})) or "none"
            raise ConfigError(f"{option}: expected names among {known}; received {name!r}.")
        found |= fitting
    return found


def _is_at(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}[", f"{name}<"))


def leaf_paths(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, tree) of every part that `differences` would compare as one."""
    parts = _parts(tree)
    if parts is None or not _structured(tree, parts):
        yield path, tree
        return
    for step, part in parts.items():
        yield from leaf_paths(part, (*path, step))
