"""One thread for computations so small that several threads would only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch, and numpy's matrix products, use one thread inside this context."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with _blas_libraries().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _blas_libraries() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")  # searching takes milliseconds
