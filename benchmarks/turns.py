"""Sides of a comparison, each in a process of its own, which take turns.

Whatever else a machine does meanwhile then hits all sides alike: a ratio is of one turn, and the
one that is told is the median of all turns'. A script gives a `prepare(side, case, threads)` that
returns one unit of work as a function, and calls `serve` first thing in `main`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS = "rlearly"
"""The side that the others are compared with."""


@dataclass(frozen=True)
class Row:
    """One side of one case. `ratio`: how many times faster rlearly is in the same turn."""

    case: str
    side: str
    threads: int
    rate: float
    unit: str
    ratio: float | None = None
    note: str = ""


def asked(defaults: Any, about: str | None, words: Sequence[str] | None = None) -> Any:
    """The config that words describe, by default the command's; `--help` prints what there is.

    It then exits.

    Raises:
        ConfigError: a word names no key, or its value has a wrong type or size.
    """
    from rlearly.config.structured import from_overrides

    words = sys.argv[1:] if words is None else words
    if "--help" in words or "-h" in words:
        from rlearly.config.help import KEYS, key_lines

        print(f"{about}\n{KEYS}", *key_lines(type(defaults)), sep="\n")
        raise SystemExit(0)
    return from_overrides(defaults, words)


def serve(prepare: Callable[[str, str, int], Callable[[], Any]]) -> bool:
    """If this process was started as a side: do its work as asked for, until nobody asks."""
    if sys.argv[1:2] != ["--serve"]:
        return False
    work = prepare(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            work()
        print(time.perf_counter() - began, flush=True)
    return True


class Side:
    """A process that does one side's work."""

    def __init__(self, script: str, name: str, case: str, threads: int):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, "--serve", name, case, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._answer()

    def seconds(self, times: int) -> float:
        """Of one unit of work, the mean of so many."""
        assert self.process.stdin
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        return float(self._answer()) / times

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"the side {self.name!r} has ended; see above.")
        return line


def compare(
    script: str,
    case: str,
    sides: Sequence[str],
    *,
    threads: int,
    rounds: int,
    times: int,
    unit: str,
    units_each: float = 1.0,
    ours: Sequence[str] = (OURS,),
) -> list[Row]:
    """The median rate of each side, and the median over turns of its time by `ours`'s.

    `times`: units of work in a turn; `units_each`: how much of `unit` (as in "updates/s") each is.
    With several sides of `ours` there are rows of all others for each, as a case of its own.
    """
    running = [Side(script, name, case, threads) for name in sides]
    for side in running:
        side.seconds(max(2, times // 2))
    turns = [{side.name: side.seconds(times) for side in running} for _ in range(rounds)]
    for side in running:
        side.close()

    def row(own: str, name: str) -> Row:
        label = case if len(ours) == 1 else f"{case}, {own.removeprefix(OURS).strip()}"
        rate = units_each / statistics.median(turn[name] for turn in turns)
        if name == own:
            return Row(label, name, threads, rate, unit)
        ratio = statistics.median(turn[name] / turn[own] for turn in turns)
        return Row(label, name, threads, rate, unit, ratio)

    others = [name for name in sides if name not in ours]
    return [row(own, name) for own in ours for name in (own, *others)]


def given(**settings: object) -> list[str]:
    """`key=value` words for those settings that are not None."""
    return [f"{key}={value}".lower() for key, value in settings.items() if value is not None]


def show(rows: Iterable[Row]) -> str:
    """Rows of a Markdown table whose head is HEAD."""
    return "\n".join(
        f"| {r.case} | {r.threads} | {r.side} | {r.rate:,.4g} {r.unit} | "
        f"{'' if r.ratio is None else f'{r.ratio:.2f}'} | {r.note} |"
        for r in rows
    )


def report(measured: Iterable[list[Row]], path: str | None) -> None:
    """Print a table, each case's rows as soon as they are measured; keep all if there is a path."""
    print(HEAD, flush=True)
    rows: list[Row] = []
    for found in measured:
        print(show(found), flush=True)
        rows += found
    if path:
        keep(path, rows)


HEAD = "| what | threads | side | rate | rlearly is faster by | |\n|---|---:|---|---:|---:|---|"


def keep(path: str, rows: Iterable[Row]) -> None:
    """Write rows, with what they were measured on, as JSON that `history.py` draws."""
    import torch

    from rlearly.system import machine

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    about = {
        "commit": git("rev-parse", "--short", "HEAD"),
        "commit_time": int(git("log", "-1", "--format=%ct") or 0),
        "changed_since": bool(git("status", "--porcelain", "--", "../rlearly")),
        "processor": machine.processor(),
        "cores": machine.usable_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1)
    Path(path).write_text(text + "\n")
