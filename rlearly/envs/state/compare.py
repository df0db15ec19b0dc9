"""Compare observations, rewards and infos to the bit, and say where they differ first."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlearly.envs.state.objects import attributes_of, is_plain


def same(one: Any, two: Any) -> bool:
    """Equal to the bit, including types, shapes, NaNs and signs of zero."""
    return first_difference(one, two) is None


def first_difference(one: Any, two: Any, where: str = "") -> str | None:
    """Where two values first differ and how, as in "[2]: 0.5 and 0.25"; None if nowhere.

    Objects that cannot be compared (such as renderers) count as equal to others of their class.
    """
    if one is two:
        return None
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        if list(one) != list(two):
            return f"{where}: the keys {list(one)} and {list(two)}"
        return _first((f"{where}[{key!r}]", one[key], two[key]) for key in one)
    if type(one) is not type(two):
        return f"{where}: {_short(one)} and {_short(two)}"
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return f"{where}: lengths {len(one)} and {len(two)}"
        return _first(
            (f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, two, strict=True))
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(one, torch.Tensor):
        one, two = one.detach().cpu().numpy(), two.detach().cpu().numpy()  # pyright: ignore
    if isinstance(one, np.ndarray | np.generic):
        return _arrays(np.asarray(one), np.asarray(two), where)
    if isinstance(one, float):
        equal = struct.pack("<d", one) == struct.pack("<d", two)
    elif is_plain(type(one)):
        return first_difference(dict(attributes_of(one)), dict(attributes_of(two)), where)
    else:
        try:
            equal = bool(one == two) or type(one).__eq__ is object.__eq__
        except Exception:  # a class of the user's, which compares as it likes
            equal = True
    return None if equal else f"{where}: {_short(one)} and {_short(two)}"


def _first(parts: Any) -> str | None:
    return next(filter(None, (first_difference(a, b, where) for where, a, b in parts)), None)


def _arrays(one: np.ndarray, two: np.ndarray, where: str) -> str | None:
    if one.dtype != two.dtype or one.shape != two.shape:
        kinds = (f"{a.dtype} {list(a.shape)}" for a in (one, two))
        return f"{where}: {' and '.join(kinds)}"
    if one.dtype.hasobject:
        return first_difference(list(one.flat), list(two.flat), where)
    if one.tobytes() == two.tobytes():
        return None
    width = one.dtype.itemsize
    bits = [
        np.ascontiguousarray(a).reshape(-1).view(np.uint8).reshape(-1, width) for a in (one, two)
    ]
    index = np.unravel_index(int((bits[0] != bits[1]).any(1).argmax()), one.shape or (1,))
    place = f"[{', '.join(map(str, index))}]" if one.shape else ""
    at = tuple(index) if one.shape else ()
    return f"{where}{place}: {one[at]!s} and {two[at]!s}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
