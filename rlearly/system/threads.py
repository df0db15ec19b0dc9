"""One thread for computations so small that several threads would only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

from rlearly.system.process import Restored


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Make torch use this many threads inside this context."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch, and numpy's matrix products, use one thread inside this context."""
    with torch_threads(1), _one_blas_thread:
        yield


@cache
def _blas_libraries() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")  # searching takes milliseconds


# shared by all threads, as numpy's number of threads is
_one_blas_thread = Restored(lambda: _blas_libraries().limit(limits=1).restore_original_limits)
