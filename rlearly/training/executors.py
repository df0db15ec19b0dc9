"""Executors: run an env's calls inline, or in a thread of the env's own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol


class EnvExecutor(Protocol):
    """Runs calls one after another, in the order in which they were submitted."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Schedule `function(*args)`; calling the result waits, then returns or raises."""
        ...

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)` and wait for its result."""
        ...

    def close(self) -> None:
        """Wait for the submitted calls, and accept no more."""
        ...


class InlineExecutor:
    """Runs a call in the calling thread, when its result is requested."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return partial(function, *args)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def close(self) -> None:
        pass


class ThreadExecutor:
    """Runs calls in one thread of its own, at once.

    A GL context belongs to the thread that made it: an env that renders must be made, stepped and
    closed by the same executor.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="env")

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return self._pool.submit(function, *args).result

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self._pool.shutdown()
