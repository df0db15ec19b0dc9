"""One thread for sums so small that several would only wait for each other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, and numpy's products, compute in one thread in here."""
    torch_before, blas = torch.get_num_threads(), _numpys_threads()
    blas_before = blas[0]() if blas else 1
    try:
        torch.set_num_threads(1)
        if blas:
            blas[1](1)
        yield
    finally:
        torch.set_num_threads(torch_before)
        if blas:
            blas[1](blas_before)


@cache
def _numpys_threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Reads and sets the threads of the OpenBLAS that numpy's wheels bring; None: of another."""
    package = Path(np.__file__).parent
    for path in (*package.glob("../numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")):
        library = ctypes.CDLL(str(path))
        try:
            read, write = (
                library[f"scipy_openblas_{verb}_num_threads64_"] for verb in ("get", "set")
            )
        except AttributeError:  # one that is built otherwise
            return None
        write.argtypes, write.restype = [ctypes.c_int], None
        return read, write
    return None
