"""`rlearly.sweep`: many runs from Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlearly.api.launch import SweepConfig, checked_plan, show, split, start
from rlearly.api.report import Report, report
from rlearly.api.run import Run
from rlearly.api.settings import overrides_of, seeds_text
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import jobs_of
from rlearly.experiments.plan import Plan
from rlearly.experiments.status import Status, statuses
from rlearly.system.process import restored_process

ONE_VALUE = ("intervention",)
"""Keys of runs whose value is itself a list."""


def sweep(*overrides: str, progress: bool = True, **settings: Any) -> Sweep:
    """Run every combination of the listed values with every seed, in worker processes.

    Repeating the call continues the sweep. Ctrl-C, or interrupting a notebook's kernel, saves its
    runs.

    Args:
        overrides: as on the command line, `"agent=td3,sac"`.
        progress: print what the command prints.
        settings: all keys of `python -m rlearly.sweep --help` and of `rlearly.train`. A list makes
            a grid: `agent=["td3", "sac"]`. `seeds=3` means 0, 1 and 2, and `seeds=[5, 6]` these.

    Raises:
        ConfigError: a setting is wrong, or the request cannot be met; nothing was started.
    """
    say = show if progress else lambda line: None
    with restored_process:
        config, words = split([*overrides, *_words(settings)])
        plan, folder = checked_plan(config, words, say)
        start(config, plan, folder, say)
    return Sweep(folder)


def _words(settings: dict[str, Any]) -> Iterator[str]:
    own = {field.name for field in fields(SweepConfig)}
    for key, value in settings.items():
        if key in ("status", "cancel", "sync", "watch", "dry_run"):
            raise ConfigError(f"{key}: is for the command, python -m rlearly.sweep {key}=...")
        grid = isinstance(value, list | tuple) and key not in ONE_VALUE
        if key == "seeds":
            yield from overrides_of({key: seeds_text(value)})
        elif grid and key not in own:
            parts = [next(iter(overrides_of({key: item}))).partition("=") for item in value]
            yield f"{parts[0][0]}={','.join(text for _, _, text in parts)}"
        else:
            yield from overrides_of({key: value})


class Sweep:
    """A sweep's directory; its runs may still be in progress."""

    def __init__(self, path: str | Path):
        """
        Raises:
            ConfigError: it is no sweep's directory.
        """
        self.path = Path(path)
        Plan.load(self.path)

    @property
    def runs(self) -> list[Run]:
        """The runs that have started, in the plan's order."""
        folders = [self.path / run.name for run in Plan.load(self.path).runs]
        return [Run(folder) for folder in folders if (folder / "config.yaml").is_file()]

    def status(self) -> list[Status]:
        """The state of every job: `.state` is done, running, saved, failed, waiting, ..."""
        return statuses(self.path, jobs_of(Plan.load(self.path)))

    @property
    def finished(self) -> bool:
        """Whether every run was trained to its end."""
        return all(status.state == "done" for status in self.status())

    def report(self, **settings: Any) -> Report:
        """As `rlearly.report(sweep=..., **settings)`."""
        return report(sweep=self.path, **settings)

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r})"
