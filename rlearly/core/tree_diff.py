"""Where two nested states differ, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlearly.core.append_log import AppendLog


def first_difference(one: Any, two: Any, where: str = "") -> str | None:
    """The path of the first thing that differs and both its values, or None if nothing does.

    Dicts (in any order), lists, tuples, numpy arrays, tapes, tensors on any device and plain values
    are compared by type, shape and bits: NaN equals itself, 0.0 does not equal -0.0.
    """
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return _of_mappings(one, two, where)
    if isinstance(one, AppendLog) and isinstance(two, AppendLog):
        return _of_mappings(_laid_out(one), _laid_out(two), where)
    if isinstance(one, list | tuple) and type(one) is type(two):
        return _of_sequences(one, two, where)
    for kind in (torch.Tensor, np.ndarray | np.generic):
        if isinstance(one, kind) and isinstance(two, kind):
            return _of_arrays(one, two, where)
    if type(one) is not type(two):
        return f"{where}: {_kind(one)} and {_kind(two)}"
    same = one.hex() == two.hex() if isinstance(one, float) else one == two
    return None if same else f"{where}: {one!r} and {two!r}"


def _of_mappings(one: Mapping[Any, Any], two: Mapping[Any, Any], where: str) -> str | None:
    for key in [*one, *(key for key in two if key not in one)]:
        inner = f"{where}/{key}" if where else str(key)
        if key not in one or key not in two:
            return f"{inner}: only in the {'first' if key in one else 'second'}"
        found = first_difference(one[key], two[key], inner)
        if found:
            return found
    return None


def _laid_out(tape: AppendLog) -> dict[str, Any]:
    return {"first": tape.first, "end": tape.end, **tape.rows()}


def _of_sequences(one: Any, two: Any, where: str) -> str | None:
    for number, (left, right) in enumerate(zip(one, two, strict=False)):
        found = first_difference(left, right, f"{where}[{number}]")
        if found:
            return found
    return None if len(one) == len(two) else f"{where}: {len(one)} and {len(two)} entries"


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
    """The bytes of a tensor or an array, uint8 [numbers, bytes each]."""
    if isinstance(array, torch.Tensor):
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.reshape(array.numel(), array.element_size())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.reshape(array.size, array.itemsize)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}"
