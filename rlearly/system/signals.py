"""Handle signals inside a context."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Handler = Callable[[int, Any], None]


@contextmanager
def handled(names: Sequence[str], handler: Handler) -> Iterator[dict[int, Any] | None]:
    """Handle signals inside this context, then restore the earlier handlers.

    Signals that this system lacks are left out, and SIGHUP where it is ignored, as under nohup.

    Yields number -> earlier handler, or None outside the main thread, where Python allows no
    handlers: then nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    before: dict[int, Any] = {}
    try:
        for name in names:
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue
            before[number] = signal.signal(number, handler)
        yield before
    finally:
        for number, earlier in before.items():
            # None: it was not set from Python, so that it cannot be set again
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
