"""Compare sides that each run in a process of their own and take turns.

Taking turns means that other load on the machine affects all sides alike: each ratio is from one
turn, and the reported one is the median over turns. A script defines a function `prepare(side,
case, threads)` that returns one unit of work as a function, and calls `serve` first in `main`.
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
    """One side of one case. `ratio`: how many times as fast rlearly is, in the same turns."""

    case: str
    side: str
    threads: int
    rate: float
    unit: str
    ratio: float | None = None
    note: str = ""


def parse_config(defaults: Any, about: str | None, overrides: Sequence[str] | None = None) -> Any:
    """The config of the command line, or of `overrides`. `--help` prints all keys and exits.

    Raises:
        ConfigError: an override names no key, or its value has the wrong type or is out of bounds.
    """
    from rlearly.config.structured import from_overrides

    overrides = sys.argv[1:] if overrides is None else overrides
    if "--help" in overrides or "-h" in overrides:
        from rlearly.config.help import KEYS, key_lines

        print(f"{about}\n{KEYS}", *key_lines(type(defaults)), sep="\n")
        raise SystemExit(0)
    return from_overrides(defaults, overrides)


def serve(prepare: Callable[[str, str, int], Callable[[], Any]]) -> bool:
    """If this process was started as a side, do its work on request until stdin closes."""
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
    """A process that does the work of one side."""

    def __init__(self, script: str, name: str, case: str, threads: int):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, "--serve", name, case, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._answer()

    def seconds(self, times: int) -> float:
        """Seconds per unit of work, averaged over `times` of them."""
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
            raise SystemExit(f"the side {self.name!r} has ended; see the error above.")
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
    """The median rate of each side, and its median time relative to rlearly's in the same turn.

    `times`: units of work per turn; `units_each`: how much of `unit` (e.g. "updates/s") each is.
    If `ours` has several sides, each is a case of its own and compared with all others.
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
    """`key=value` overrides for the settings that are not None."""
    return [f"{key}={value}".lower() for key, value in settings.items() if value is not None]


def show(rows: Iterable[Row]) -> str:
    """Rows of a Markdown table with the head HEAD."""
    return "\n".join(
        f"| {r.case} | {r.threads} | {r.side} | {r.rate:,.4g} {r.unit} | "
        f"{'' if r.ratio is None else f'{r.ratio:.2f}'} | {r.note} |"
        for r in rows
    )


def report(measured: Iterable[list[Row]], path: str | None) -> None:
    """Print a table, row by row as cases are measured, and write it to `path` if given."""
    print(HEAD, flush=True)
    rows: list[Row] = []
    for found in measured:
        print(show(found), flush=True)
        rows += found
    if path:
        keep(path, rows)


HEAD = "| what | threads | side | rate | rlearly is faster by | |\n|---|---:|---|---:|---:|---|"


def keep(path: str, rows: Iterable[Row]) -> None:
    """Write rows, and the machine and commit they were measured on, as JSON for `history.py`."""
    import torch

    from rlearly.system import machine

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], capture_output=True, encoding="utf-8", cwd=Path(__file__).parent
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
    Path(path).write_text(text + "\n", encoding="utf-8")
