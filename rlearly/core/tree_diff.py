"""Find the first place where two nested states differ, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlearly.core.append_log import AppendLog
from rlearly.core.tree import children


def first_difference(one: Any, two: Any, where: str = "") -> str | None:
    """The path of the first difference with both values, or None if the states are equal.

    Dicts (in any order), lists, tuples, numpy arrays, append logs, tensors on any device and plain
    values are compared by type, shape and bits: NaN equals itself, 0.0 does not equal -0.0.

    Args:
        where: the path that leads to both.
    """
    if isinstance(one, AppendLog) and isinstance(two, AppendLog):
        one, two = _as_dict(one), _as_dict(two)
    mappings = isinstance(one, Mapping) and isinstance(two, Mapping)
    if mappings or (isinstance(one, list | tuple) and type(one) is type(two)):
        return _of_containers(one, two, where)
    for kind in (torch.Tensor, np.ndarray | np.generic):
        if isinstance(one, kind) and isinstance(two, kind):
            return _of_arrays(one, two, where)
    if type(one) is not type(two):
        return f"{where}: {_kind(one)} and {_kind(two)}"
    same = float.hex(one) == float.hex(two) if isinstance(one, float) else one == two
    return None if same else f"{where}: {one!r} and {two!r}"


def _of_containers(one: Any, two: Any, where: str) -> str | None:
    sequences = not isinstance(one, Mapping)
    left, right = children(one) or {}, children(two) or {}
    for key in {**left, **right}:
        inner = f"{where}[{key}]" if sequences else f"{where}/{key}" if where else str(key)
        if key not in left or key not in right:
            if sequences:
                return f"{where}: {len(left)} and {len(right)} entries"
            return f"{inner}: only in the {'first' if key in left else 'second'}"
        if found := first_difference(left[key], right[key], inner):
            return found
    return None


def _as_dict(log: AppendLog) -> dict[str, Any]:
    return {"first": log.first, "end": log.end, **log.rows()}


def _of_arrays(one: Any, two: Any, where: str) -> str | None:
    if (one.dtype, tuple(one.shape)) != (two.dtype, tuple(two.shape)):
        return f"{where}: {_kind(one)} and {_kind(two)}"
    unequal = (_bits(one) != _bits(two)).any(axis=1)
    if not unequal.any():
        return None
    first = int(unequal.argmax())
    values = " and ".join(repr(array.reshape(-1)[first].item()) for array in (one, two))
    return f"{where}[{first}]: {values} ({unequal.sum()} of {unequal.size} numbers differ)"


def _bits(array: Any) -> np.ndarray:
    """The bytes of a tensor or an array, uint8 [elements, bytes per element]."""
    if isinstance(array, torch.Tensor):
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.reshape(array.numel(), array.element_size())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.reshape(array.size, array.itemsize)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}"
