"""Run every benchmark that saves ratios, and draw their history.

`python benchmarks/all.py` writes one JSON file per benchmark and commit into `folder=`, then draws
all files in that folder (history.py). `only=[act,loop]` selects benchmarks; `dry_run=true` prints
the commands. Run nothing else meanwhile: it takes most of an hour. Scripts that fail are listed at
the end.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import history
import turns

from rlearly.config.fields import setting
from rlearly.config.overrides import format_command
from rlearly.core.errors import ConfigError

HERE = Path(__file__).parent
RUNS = {
    "update-visual": ["update.py", "agents=[drm,drqv2]", "threads=2"],
    "update-state": ["update.py", "agents=[td3,sac]"],
    "update-discrete": ["update.py", "agents=[drq_eps,drq_eps_state]"],
    "act": ["act.py"],
    "loop": ["loop.py"],
    "loop-bf16": ["loop.py", "agents=[td3,sac,drm]", "precision=bf16"],
    "replay": ["replay.py"],
    "env": ["env.py"],
    "memory": ["memory.py"],
    "checkpoint": ["checkpoint.py", "runs=[td3:Hopper-v5]"],
    "startup": ["startup.py"],
}
"""Name of a file of numbers -> a script and its arguments."""


@dataclass(frozen=True)
class AllConfig:
    """Settings of the benchmark."""

    folder: str = setting(str(history.FOLDER), "folder of the JSON files and the picture")
    only: list[str] = field(default_factory=lambda: list(RUNS))
    dry_run: bool = setting(False, "print the commands and exit")


def commit() -> str:
    arguments = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(arguments, capture_output=True, encoding="utf-8", cwd=HERE).stdout.strip()


def main() -> int:
    try:
        config = turns.parse_config(AllConfig(), __doc__)
        for name in config.only:
            if name not in RUNS:
                raise ConfigError(f"only: expected some of {', '.join(RUNS)}, received {name!r}.")
    except ConfigError as error:
        print(f"benchmarks/all.py: {error}", file=sys.stderr)
        return 2
    folder, now = Path(config.folder).absolute(), commit()
    failed = []
    for name in config.only:
        script, *arguments = RUNS[name]
        arguments = [f"benchmarks/{script}", *arguments, f"json={folder / f'{name}-{now}.json'}"]
        print(f"$ {format_command(['python', *arguments])}", flush=True)
        if config.dry_run:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        status = subprocess.run([sys.executable, *arguments], cwd=HERE.parent).returncode
        print(f"({time.monotonic() - began:.0f} s)\n", flush=True)
        if status:
            failed.append(name)
    if config.dry_run:
        return 0
    if failed:
        print(f"benchmarks/all.py: failed: {', '.join(failed)}", file=sys.stderr)
    return history.main([f"folder={folder}"]) or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
