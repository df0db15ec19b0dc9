"""Where an env lives: in the thread that asks, or in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol


class EnvExecutor(Protocol):
    """Does what it is asked to, one thing after the other, in the order of asking."""

    def submit(self, function: Callable[..., Any], *words: Any, **more: Any) -> Callable[[], Any]:
        """Ask for `function(*words, **more)`. The result, called, is its answer or its error."""
        ...

    def run(self, function: Callable[..., Any], *words: Any, **more: Any) -> Any:
        """Its answer, waited for."""
        ...

    def close(self) -> None:
        """Nothing more is asked for; waits for what was."""
        ...


class InlineExecutor:
    """In the thread that asks, when the answer is called for and not before."""

    def submit(self, function: Callable[..., Any], *words: Any, **more: Any) -> Callable[[], Any]:
        return partial(function, *words, **more)

    def run(self, function: Callable[..., Any], *words: Any, **more: Any) -> Any:
        return function(*words, **more)

    def close(self) -> None:
        pass


class ThreadExecutor:
    """In a thread of its own, at once.

    A GL context belongs to the thread that made it: what draws must be made, drawn by and closed
    in one place.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="env")

    def submit(self, function: Callable[..., Any], *words: Any, **more: Any) -> Callable[[], Any]:
        return self._pool.submit(function, *words, **more).result

    def run(self, function: Callable[..., Any], *words: Any, **more: Any) -> Any:
        return self.submit(function, *words, **more)()

    def close(self) -> None:
        self._pool.shutdown()
