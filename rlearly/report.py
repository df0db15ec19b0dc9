"""`python -m rlearly.report run=RUN_DIR` or `sweep=SWEEP_DIR`: figures, tables and a page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlearly.config.fields import setting
from rlearly.config.overrides import format_override
from rlearly.config.structured import describe_fields, from_overrides
from rlearly.core.errors import ConfigError

USAGE = """Usage: python -m rlearly.report run=RUN_DIR [out=report.png]
       python -m rlearly.report sweep=SWEEP_DIR [out=FOLDER] [compare=A,B.csv]

Keys"""


@dataclass(frozen=True)
class ReportConfig:
    """What to read, and where the report goes."""

    run: str | None = setting(None, "a run directory, finished or not")
    sweep: str | None = setting(None, "a sweep's directory, finished or not")
    out: str | None = setting(
        None,
        "run: the figure (.png, .pdf or .svg), null: report.png in it; sweep: a folder, null: "
        "report in it",
    )
    compare: str | None = setting(
        None, "sweep: other sweeps and CSV files of curves, with commas between them"
    )
    threshold: float | None = setting(
        None,
        "sweep: the return that counts as reached; null: 80 % of the way from the lowest return of "
        "any evaluation on that env (0 for dm_control) to the final IQM of its best arm",
    )
    bootstrap_seed: int = setting(0, "sweep: of the intervals", at_least=0)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words or not words:
        print(USAGE)
        for name, type_name, text, default, _ in describe_fields(ReportConfig):
            shown = "null" if default is None else default
            print(f"  {name:14} {type_name.replace(' | None', '?')}, {shown}: {text}")
        return 0 if words else 2
    try:
        config = from_overrides(ReportConfig(), [_as_one_value(word) for word in words])
        if bool(config.run) == bool(config.sweep):
            received = "both" if config.run else "neither"
            raise ConfigError(
                f"run: expected a run directory, as in run=runs/drm/dog_run/0-<time>, or sweep: a "
                f"sweep's, as in sweep=sweeps/s3rl; received {received}."
            )
        if config.run:
            report_run(config)
        else:
            report_sweep(config, shlex.join(["python", "-m", "rlearly.report", *words]))
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2
    return 0


def _as_one_value(word: str) -> str:
    """With a path's = and commas, and those of `compare=A,B`, kept from being read as grammar."""
    key, _, value = word.partition("=")
    bare = key in ("run", "sweep", "out", "compare") and value and value[0] not in "'\""
    return format_override(key, value) if bare and value != "null" else word


def report_sweep(config: ReportConfig, command: str) -> Path:
    """Write the folder, print its first table, and say where its page is.

    Raises:
        ConfigError: there is no such sweep, or something cannot be read or written.
    """
    from rlearly.experiments.report.sweep_report import load, write

    assert config.sweep
    sweep = Path(config.sweep).absolute()
    compare = [Path(part.strip()) for part in (config.compare or "").split(",") if part.strip()]
    found = load(sweep, compare, config.threshold, config.bootstrap_seed)
    out = Path(config.out).absolute() if config.out else sweep / "report"
    lines = write(found, out, command)
    print("\n".join([*lines, str(out / "index.html")]))
    return out / "index.html"


def report_run(config: ReportConfig) -> Path:
    """Draw the figure, print the summary, and say where the figure is.

    Raises:
        ConfigError: there is no such run, or the figure cannot be written.
    """
    from rlearly.experiments.report.run_report import RunReport, draw

    assert config.run
    for name in ("compare", "threshold"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name}: only a sweep's report takes it; leave it out, or name sweep=."
            )
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
