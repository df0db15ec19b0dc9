"""Turn signals into a request to stop at the next step."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from rlearly.system.signals import handled

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class StopRequests:
    """True once Ctrl-C or a scheduler's signal asked the run to save and stop.

    A context: signals are handled inside it, and as before outside it. Outside the main thread
    Python allows no handlers; see `possible`.

    Until there is something to save (`saves`), Ctrl-C does what it did before: usually it raises
    KeyboardInterrupt. So does a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.saves = False
        self._before: dict[int, Any] | None = None
        self._context = contextlib.ExitStack()

    @property
    def possible(self) -> bool:
        """Whether signals are handled: whether this is the main thread."""
        return self._before is not None

    def __enter__(self) -> StopRequests:
        self._before = self._context.enter_context(handled(STOP_SIGNALS, self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and (self.received or not self.saves):
            earlier = (self._before or {}).get(number)
            if callable(earlier):
                earlier(number, frame)
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        text = f"\n{self.received}: saving at the next step and stopping ...\n"
        with contextlib.suppress(OSError):  # who reads it may have been stopped too
            os.write(1, text.encode())  # print may not be called from a signal handler

    def stop(self, why: str) -> None:
        """Ask the run to save and stop, as a signal does."""
        self.received = self.received or why

    def __call__(self) -> bool:
        return self.received is not None
