"""`python -m rlearly.report run=RUN_DIR`, `RUN_DIR ...` or `sweep=SWEEP_DIR`: read results."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.report")

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlearly.config.fields import setting
from rlearly.config.overrides import parse_text, split_values
from rlearly.config.structured import from_overrides
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import BAD_REQUEST, DONE, STATUS_HELP
from rlearly.system.command import as_command, call_instead

call_instead(__name__, "rlearly.api.report:report")
USAGE = """
python -m rlearly.report run=RUN_DIR [out=report.png]
python -m rlearly.report RUN_DIR ... [out=curve.png] [title=TEXT]
python -m rlearly.report sweep=SWEEP_DIR [out=FOLDER] [compare=A,B.csv] [normalise=atari]
"""
ONLY = {"title": "runs", "compare": "sweep", "threshold": "sweep", "normalise": "sweep"}
"""Keys that apply to only one kind of report."""


@dataclass(frozen=True)
class ReportConfig:
    """What to read, and where the report goes."""

    run: str | None = setting(None, "a run directory, finished or not")
    runs: list[str] | None = setting(
        None, "run directories, as [A,B] or as arguments without a key: one curve each"
    )
    sweep: str | None = setting(None, "a sweep's directory, finished or not")
    out: str | None = setting(
        None,
        "run: the figure (.png, .pdf or .svg), null: report.png in it; runs: the figure, with a "
        "CSV file next to it, null: curve.png; sweep: a folder, null: report in it",
    )
    title: str | None = setting(None, "runs: the figure's title")
    ancestors: bool | None = setting(
        None,
        "run, runs: true also draws the runs that a run began from (start_from), with all frames "
        "counted on one axis; null: no",
    )
    compare: str | None = setting(
        None, "sweep: other sweeps and CSV files of curves, separated by commas"
    )
    threshold: float | None = setting(
        None,
        "sweep: the return that counts as reached; null: 80 % of the way from the lowest return of "
        "any evaluation on that env (0 for dm_control) to the final IQM of its best arm",
    )
    normalise: str | None = setting(
        None,
        "sweep: what scores over several envs are normalised by: atari (0: random play, 1: a "
        "human; the final score is the last evaluation), or the range of returns; null: atari if "
        "all envs are atari/NAME, otherwise range",
        choices=("atari", "range"),
    )
    bootstrap_seed: int = setting(0, "sweep: seed of the intervals", at_least=0)


@as_command
def main(args: list[str]) -> int:
    """Write the report that the arguments name; returns the exit status."""
    if "--help" in args or "-h" in args or not args:
        from rlearly.config.help import command_help

        print(command_help(USAGE, ReportConfig), STATUS_HELP, sep="\n")
        return DONE if args else BAD_REQUEST
    lines = report(parse(args))
    print("\n".join(lines))
    return DONE


def parse(arguments: Sequence[str]) -> ReportConfig:
    """The config of a command line. Arguments without a key are run directories.

    Raises:
        ConfigError: a key or value is wrong, or not exactly one of run, runs and sweep is given.
    """
    paths = [a for a in arguments if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    overrides = [a for a in arguments if a not in paths]
    config: ReportConfig = from_overrides(ReportConfig(), overrides)
    config = replace(config, runs=[*(config.runs or []), *paths])
    for name in ("out", "title"):
        if getattr(config, name) == "":
            raise ConfigError(f"{name}: expected text, received nothing.")
    given = [name for name in ("run", "runs", "sweep") if getattr(config, name)]
    if len(given) != 1:
        raise ConfigError(
            "Expected run= (a run directory, as in run=runs/drm/dog_run/0-<time>), several run "
            "directories (as in runs/drm/dog_run/*), or sweep= (a sweep's directory, as in "
            f"sweep=sweeps/s3rl); received {' and '.join(given) or 'none of them'}."
        )
    if config.sweep and config.ancestors:
        raise ConfigError("ancestors: only run= and run directories take it; leave it out.")
    for name, kind in ONLY.items():
        if getattr(config, name) is not None and kind not in given:
            raise ConfigError(f"{name}: only {kind}= takes it; leave it out, or name {kind}=.")
    return config


def report(config: ReportConfig) -> list[str]:
    """Write the report that a config asks for; returns the lines that a terminal shows."""
    from rlearly.api.report import report as written

    runs = [config.run] if config.run else config.runs or []
    sweep_only = {
        "compare": compared_paths(config.compare or ""),
        "threshold": config.threshold,
        "normalise": config.normalise,
        "bootstrap_seed": config.bootstrap_seed,
    }
    where = {"sweep": config.sweep, **sweep_only} if config.sweep else {}
    return written(
        *runs,
        out=config.out,
        title=config.title,
        ancestors=bool(config.ancestors),
        whole=bool(config.run),
        **where,
    ).lines


def compared_paths(text: str) -> list[Path]:
    """The paths in `compare`: one that exists, or several separated by commas."""
    if text and Path(text).exists():
        return [Path(text)]
    return [Path(parse_text(part)) for part in split_values(text) if part]
