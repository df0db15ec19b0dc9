"""Turn signals into a request to stop at the next step."""

from __future__ import annotations

import os
import signal
from typing import Any


class StopRequests:
    """True once Ctrl-C or a scheduler's signal asked the run to save and stop.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        text = f"\n{self.received}: saving at the next step and stopping ...\n"
        os.write(1, text.encode())  # print may not be called from a signal handler

    def __call__(self) -> bool:
        return self.received is not None
