"""Write trees of arrays and plain data as bytes, without pickle: reading them runs no code."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np

from rlearly.core.tree import map_leaves
from rlearly.envs.state.codec import KIND

MAGIC = b"rlearly state 1\n"
CHECKSUM_BYTES = 32
ALIGNED_BYTES = 16
"""Every array starts at a multiple of this: simulators are handed views of the bytes."""


class DamagedState(Exception):
    """The bytes of a saved state are not what was written."""


def to_bytes(tree: dict[str, Any]) -> bytes:
    """A magic line, a JSON header, the arrays, and a SHA-256 checksum of all that."""
    arrays: list[np.ndarray] = []

    def put_aside(value: Any) -> dict[str, Any]:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} is not plain data")
        arrays.append(value)
        return {KIND: "array", "at": len(arrays) - 1}

    skeleton = json.dumps(tree, separators=(",", ":"), default=put_aside)
    layout, offset = [], 0
    for array in arrays:
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        layout.append([array.dtype.str, list(array.shape), "F" if fortran else "C", offset])
        offset += array.nbytes + _padding(array.nbytes)
    arrays_header = json.dumps(layout, separators=(",", ":"))
    header = f'{{"tree":{skeleton},"arrays":{arrays_header}}}'.encode()
    header += b" " * _padding(len(MAGIC) + 8 + len(header))
    parts = [MAGIC, struct.pack("<Q", len(header)), header]
    for array, (_, _, order, _) in zip(arrays, layout, strict=True):
        parts += [array.tobytes(order=order), bytes(_padding(array.nbytes))]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The tree that `to_bytes` wrote. Its arrays are read-only views of the bytes.

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
            "use another copy of it."
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

        def is_array(node: Any) -> bool:
            return isinstance(node, dict) and node.get(KIND) == "array"

        return map_leaves(
            lambda leaf: arrays[leaf["at"]] if is_array(leaf) else leaf,
            header["tree"],
            is_leaf=is_array,
        )
    except (ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
        raise DamagedState(f"The saved state is malformed ({error}).") from None


def _padding(length: int) -> int:
    return -length % ALIGNED_BYTES
