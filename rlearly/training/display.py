"""The display of a run: a live status in a terminal, otherwise a line now and then."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlearly.core.types import Progress

LIVE_SECONDS = 0.25
LINE_SECONDS = (1.0, 5.0, 10.0, 15.0, 30.0, 60.0)
"""Seconds between lines outside a terminal; the last one repeats."""

RATE_WINDOW = 40
SEPARATOR = " | "


class PipeConsole(Console):
    """A console that writes nothing more once the reader of its output has ended.

    In a notebook it prints text, as everywhere else.

    `on_broken_pipe` is called then, and may raise; by default BrokenPipeError is raised.
    """

    def __init__(self, on_reader_gone: Callable[[], None] | None = None, **kwargs: Any):
        super().__init__(force_jupyter=False, **kwargs)
        self.on_reader_gone = on_reader_gone

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if self.on_reader_gone is None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.on_reader_gone()


class Display:
    """Shows frames, speed, time left, returns and the dormant ratio of a run."""

    def __init__(self, train_frames: int, console: Console | None = None):
        self.train_frames = train_frames
        self.console = console or PipeConsole(highlight=False, soft_wrap=True)
        self.next_at = time.monotonic() + (0.0 if self.console.is_terminal else LINE_SECONDS[0])
        self.lines = 0
        self.samples: deque[tuple[float, int, int]] = deque(maxlen=RATE_WINDOW)
        self.live: Live | None = None
        self.last: tuple[Progress, int, Mapping[str, Any]] | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            if self.last:
                self._draw(self.live, *self.last)
            self.live.stop()

    def on_progress(self, at: Progress, updates: int, latest: Mapping[str, Any]) -> None:
        self.last = (at, updates, latest)
        now = time.monotonic()
        if now < self.next_at:
            return
        if "evaluating" in latest:
            self.samples.clear()  # speeds are of training alone
        else:
            if updates and self.samples and not self.samples[-1][2]:
                self.samples.clear()  # steps before the first update are faster than later ones
            self.samples.append((now, at.frames, updates))
        if self.live:
            self.next_at = now + LIVE_SECONDS
            self._draw(self.live, at, updates, latest)
        else:
            self.next_at = now + LINE_SECONDS[min(self.lines, len(LINE_SECONDS) - 1)]
            self.lines += 1
            speed, learning = self.parts(at, updates, latest)
            self.console.print(SEPARATOR.join(speed + learning), markup=False)

    def _draw(self, live: Live, at: Progress, updates: int, latest: Mapping[str, Any]) -> None:
        """Speed on one line and learning on the next, so that both fit into 80 columns."""
        lines = self.parts(at, updates, latest)
        live.update(Text("\n".join(map(SEPARATOR.join, lines))), refresh=True)

    def message(self, text: str) -> None:
        self.console.print(Text(text))

    def parts(
        self, at: Progress, updates: int, latest: Mapping[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Two lists of texts: progress, speed and time left; and returns and other metrics."""
        share = min(1.0, at.frames / self.train_frames)
        speed = [f"{at.frames:,} / {self.train_frames:,} frames ({share:.1%})"]
        if len(self.samples) > 1:
            (t0, f0, u0), (t1, f1, u1) = self.samples[0], self.samples[-1]
            seconds = max(t1 - t0, 1e-9)
            frames_per_second = (f1 - f0) / seconds
            speed.append(f"{frames_per_second:.1f} frames/s")
            speed.append(f"{(u1 - u0) / seconds:.2f} updates/s")
            if frames_per_second > 0 and u0:
                left = (self.train_frames - at.frames) / frames_per_second
                speed.append(f"{duration(left)} left")
        labels = {
            "train/episode_return": "return {:.1f}",
            "eval/episode_return": "eval {:.1f}",
            "eval/success_rate": "success {:.0%}",
            "plasticity/dormant_ratio": "dormant {:.1%}",
        }
        learning = [label.format(float(latest[k])) for k, label in labels.items() if k in latest]
        if "evaluating" in latest:
            learning.append(f"evaluating episode {latest['evaluating']}")
        elif not updates:
            learning.append("no updates yet")
        return speed, learning


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
