"""Waiting times: for the help text, and for the first training step of a state task.

`python benchmarks/startup.py` prints a Markdown table. Every turn starts fresh processes, one after
the other: `python -m rlearly.train --help`; a run of `agent=td3 env=HalfCheetah-v5` until its first
step and update are done; the imports that such a run needs (torch and gymnasium); and the same
first step and update with Stable-Baselines3's TD3. `rounds=` and `threads=` set the amount of work;
`json=FILE` saves the medians. The times of the first turn, in which the libraries may still have to
be read from disk, are printed separately.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

IMPORTS, SB3 = "import torch, gymnasium", "Stable-Baselines3"
HELP, FIRST_STEP = "--help", "first step and update, td3:HalfCheetah-v5"
FIRST_LEARN = """
import gymnasium, stable_baselines3
learner = stable_baselines3.TD3("MlpPolicy", gymnasium.make("HalfCheetah-v5"), batch_size=256,
    learning_starts=1, policy_kwargs={"net_arch": [256, 256]}, device="cpu")
learner.learn(2)
"""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    rounds: int = setting(5, "processes of each kind, after the first one", at_least=1)
    threads: int = setting(1, "CPU threads of each process", at_least=1)
    json: str | None = setting(None, "JSON file to write the numbers to")


def seconds_until(arguments: list[str], threads: int, line: str | None = None) -> float:
    """Seconds from the start of `python WORDS` until it prints `line`, or until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [word.replace("FOLDER", folder) for word in arguments]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        assert process.stdout
        taken = None
        for text in process.stdout:
            if line and line in text:
                taken = time.perf_counter() - began
        status = process.wait()
        taken = taken or time.perf_counter() - began
        if status:
            raise SystemExit(f"benchmarks/startup.py: python {' '.join(arguments)} failed.")
        return taken


def training(threads: int) -> float:
    """Time a run of two steps: the first is random, and an update precedes the second."""
    command = ["-m", "rlearly.train", "agent=td3", "env=HalfCheetah-v5", "train_frames=2"]
    command += ["agent.learning_starts_steps=1", "eval_every_frames=0", "run_dir=FOLDER/run"]
    return seconds_until(command, threads, line="done:")


def measure(config: BenchmarkConfig) -> list[turns.Row]:
    kinds = {
        (HELP, turns.OURS): lambda: seconds_until(["-m", "rlearly.train", "--help"], 1),
        (HELP, IMPORTS): lambda: seconds_until(["-c", IMPORTS], config.threads),
        (FIRST_STEP, turns.OURS): lambda: training(config.threads),
        (FIRST_STEP, SB3): lambda: seconds_until(["-c", FIRST_LEARN], config.threads),
    }
    first = {kind: start() for kind, start in kinds.items()}
    taken = [{kind: start() for kind, start in kinds.items()} for _ in range(config.rounds)]
    rows = []
    for case, side in kinds:
        own = [turn[case, side] for turn in taken]
        ratios = [turn[case, side] / turn[case, turns.OURS] for turn in taken]
        rows.append(
            turns.Row(
                case,
                side,
                config.threads,
                statistics.median(own),
                "s",
                None if side == turns.OURS else statistics.median(ratios),
                f"the first time {first[case, side]:.2f} s",
            )
        )
    return rows


def main() -> int:
    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
    except ConfigError as error:
        print(f"benchmarks/startup.py: {error}", file=sys.stderr)
        return 2
    rows = measure(config)
    print(f"{turns.HEAD}\n{turns.show(rows)}")
    if config.json:
        turns.keep(config.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
