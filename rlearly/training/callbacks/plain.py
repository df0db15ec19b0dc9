"""States of a user's objects as plain values, which a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, str)


def plain_copy(value: Any, where: str) -> Any:
    """A copy of nested dicts, lists and tuples of plain values, arrays and tensors.

    numpy's numbers become Python's.

    Raises:
        TypeError: something else is in it; the message says what, and where.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.generic) and isinstance(value.item(), PLAIN):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return value.copy()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return {key: plain_copy(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = tuple if isinstance(value, tuple) else list
        return kind(plain_copy(part, f"{where}[{at}]") for at, part in enumerate(value))
    raise TypeError(
        f"{where} is of type {type(value).__name__}: expected numbers, text, None, numpy arrays, "
        "tensors, and lists, tuples and dicts of them"
    )
