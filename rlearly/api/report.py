"""`rlearly.report`: read the results of runs and sweeps from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.overrides import format_override, python_command
from rlearly.core.errors import ConfigError
from rlearly.system.command import importing

if TYPE_CHECKING:
    from rlearly.api.figure import InlineFigure


@dataclass(frozen=True)
class Report:
    """What a report says, and where its figure or page is.

    lines: as the command prints them.
    path: the figure of runs, or the page of a sweep.
    figure: the figure of runs; None for a sweep, whose figures are beside its page.
    """

    lines: list[str]
    path: Path
    figure: InlineFigure | None = None

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and the figure of runs."""
        import base64
        import html

        text = f"<pre>{html.escape(str(self))}</pre>"
        if self.figure is None:
            return text
        image = base64.b64encode(self.figure._repr_png_()).decode()
        return f"<img src='data:image/png;base64,{image}'>{text}"


def report(
    *runs: Any,
    sweep: Any = None,
    out: str | Path | None = None,
    title: str | None = None,
    ancestors: bool = False,
    whole: bool | None = None,
    compare: Sequence[str | Path] = (),
    threshold: float | None = None,
    normalise: str | None = None,
    bootstrap_seed: int = 0,
) -> Report:
    """Report one run, compare several, or report a sweep; see `python -m rlearly.report --help`.

    Args:
        runs: run directories, or what `rlearly.train` and `rlearly.load` return.
        sweep: a sweep's directory, instead of runs.
        out: where the figure, or the sweep's folder, is written.
        title: of the figure of several runs.
        ancestors: also draw the runs that a run began from (`start_from`), as one curve.
        whole: True: draw everything that a single run logged. False: draw the evaluation returns
            of each run, and write a CSV file beside the figure. None: True for a single run.
        compare: with a sweep: other sweeps and CSV files of curves.
        threshold, normalise, bootstrap_seed: with a sweep, as on the command line.

    Raises:
        ConfigError: a path is not a run or a sweep, or the output cannot be written.
    """
    with importing():
        from rlearly.api.figure import InlineFigure
        from rlearly.experiments.report import run_report, sweep_report

    flat = [one for run in runs for one in (run if isinstance(run, list | tuple) else [run])]
    folders = [Path(getattr(run, "path", run)) for run in flat]
    if bool(folders) == (sweep is not None):
        raise ConfigError(
            "report: expected run directories, or sweep=; received "
            + ("both." if folders else "neither.")
        )
    target = None if out is None else Path(out)
    if sweep is not None:
        folder = Path(getattr(sweep, "path", sweep)).absolute()
        paths = [Path(getattr(one, "path", one)) for one in compare]
        results = sweep_report.load(folder, paths, threshold, bootstrap_seed, normalise)
        place = (target or folder / "report").absolute()
        given = {"out": out, "threshold": threshold, "normalise": normalise}
        words = [format_override(k, v) for k, v in given.items() if v is not None]
        words += [format_override("compare", ",".join(map(str, paths)))] * bool(paths)
        words += [f"bootstrap_seed={bootstrap_seed}"] * bool(bootstrap_seed)
        command = python_command("rlearly.report", format_override("sweep", folder), *words)
        return Report(sweep_report.write(results, place, command), place / "index.html")
    if len(folders) == 1 and whole is not False:
        place = target or folders[0] / "report.png"
        lines, figure = run_report.write_run_report(folders[0], place, ancestors=ancestors)
    else:
        place = target or Path("curve.png")
        names = [str(folder) for folder in folders]
        title = title or "evaluation returns"
        lines, figure = run_report.write_runs_report(names, place, title, ancestors=ancestors)
    return Report(lines, place, InlineFigure(figure))
