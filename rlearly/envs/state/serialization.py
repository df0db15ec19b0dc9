"""Trees of arrays and plain data as bytes, without pickle: reading them runs no code."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np

from rlearly.envs.state.codec import KIND

MAGIC = b"rlearly state 1\n"
CHECKSUM_BYTES = 32
ALIGNED_BYTES = 16
"""Every array begins at a multiple of it: simulators are handed views of the bytes."""


class DamagedState(Exception):
    """The bytes of a saved state are not what was written."""


def to_bytes(tree: dict[str, Any]) -> bytes:
    """A magic line, a JSON header, the arrays, a SHA-256 sum of all before it."""
    arrays: list[np.ndarray] = []
    skeleton = _without_arrays(tree, arrays)
    layout, offset = [], 0
    for array in arrays:
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        layout.append([array.dtype.str, list(array.shape), "F" if fortran else "C", offset])
        offset += array.nbytes + _padding(array.nbytes)
    header = json.dumps({"tree": skeleton, "arrays": layout}, separators=(",", ":")).encode()
    header += b" " * _padding(len(MAGIC) + 8 + len(header))
    parts = [MAGIC, struct.pack("<Q", len(header)), header]
    for array, (_, _, order, _) in zip(arrays, layout, strict=True):
        parts += [array.tobytes(order=order), bytes(_padding(array.nbytes))]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The tree that `to_bytes` wrote.

    Raises:
        DamagedState: anything is missing or changed.
    """
    data = bytes(data)
    if data[: len(MAGIC)] != MAGIC:
        raise DamagedState(
            f"This is not a saved state: expected it to begin with {MAGIC!r}, received "
            f"{data[: len(MAGIC)]!r}."
        )
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        raise DamagedState(
            f"The saved state is damaged: the checksum of its {len(data)} bytes is wrong; "
            "take another copy of it."
        )
    try:
        start = len(MAGIC) + 8
        (length,) = struct.unpack("<Q", body[len(MAGIC) : start])
        header = json.loads(body[start : start + length])
        arrays = []
        for dtype, shape, order, offset in header["arrays"]:
            kind = np.dtype(dtype)
            count = math.prod(shape)
            flat = np.frombuffer(body, kind, count, start + length + offset) if count else []
            arrays.append(np.asarray(flat, kind).reshape(shape, order=order))
        return _with_arrays(header["tree"], arrays)
    except (ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
        raise DamagedState(f"The saved state is malformed ({error}).") from None


def _padding(length: int) -> int:
    return -length % ALIGNED_BYTES


def _without_arrays(tree: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(tree, np.ndarray):
        arrays.append(tree)
        return {KIND: "array", "at": len(arrays) - 1}
    if isinstance(tree, dict):
        return {key: _without_arrays(value, arrays) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_arrays(value, arrays) for value in tree]
    return tree


def _with_arrays(tree: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(tree, dict):
        if tree.get(KIND) == "array":
            return arrays[tree["at"]]
        return {key: _with_arrays(value, arrays) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_arrays(value, arrays) for value in tree]
    return tree
