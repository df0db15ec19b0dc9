"""`python -m rlearly.report run=RUN_DIR`: one run as a figure and a few lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlearly.config import ConfigError, describe, from_words, setting


@dataclass(frozen=True)
class ReportConfig:
    """What to read, and where the figure goes."""

    run: str | None = setting(None, "a run directory, finished or not")
    out: str | None = setting(None, "the figure (.png, .pdf or .svg); null: report.png in the run")


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words or not words:
        print("Usage: python -m rlearly.report run=RUN_DIR [out=report.png]\n\nKeys")
        for name, type_name, text, default, _ in describe(ReportConfig):
            shown = "null" if default is None else default
            print(f"  {name:6} {type_name.replace(' | None', '?')}, {shown}: {text}")
        return 0 if words else 2
    try:
        report(from_words(ReportConfig(), words))
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2
    return 0


def report(config: ReportConfig) -> Path:
    """Draw the figure, print the summary, and say where the figure is.

    Raises:
        ConfigError: there is no such run, or the figure cannot be written.
    """
    from rlearly.experiments.run_report import RunReport, draw

    if not config.run:
        raise ConfigError("run: expected a run directory, as in run=runs/drm/dog_run/0-<time>.")
    run = Path(config.run)
    found = RunReport.load(run)
    out = Path(config.out) if config.out else run / "report.png"
    try:
        draw(found, out)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"out: {out} cannot be written ({error}); name a .png, .pdf or .svg in a folder that "
            "is there."
        ) from None
    print("\n".join([*found.summary(), str(out)]))
    return out


if __name__ == "__main__":
    sys.exit(main())
