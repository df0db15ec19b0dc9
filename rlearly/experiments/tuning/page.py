"""A search's page: one HTML file that needs no network, beside its figures and tables."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from rlearly import __version__
from rlearly.config.structured import as_dictconfig
from rlearly.core.errors import ConfigError
from rlearly.experiments.report import statistics
from rlearly.experiments.report.statistics import rounded
from rlearly.experiments.report.tables import Table
from rlearly.experiments.tuning.figures import NAMES, draw_figures
from rlearly.experiments.tuning.held_out import HeldOut
from rlearly.experiments.tuning.request import Request
from rlearly.experiments.tuning.sampling import MIN_TRIALS_FOR_IMPORTANCE, RANDOM_TRIALS
from rlearly.experiments.tuning.summary import outlook, trials_table
from rlearly.experiments.tuning.trials import Trials, load_trials
from rlearly.experiments.tuning.tuner import TuneResult, result_of
from rlearly.system import atomic
from rlearly.system.output import as_unicode

FOLDER = "report"


def write_page(request: Request, folder: Path, command: str) -> Path:
    """Write the page of a search, finished or not, into its directory; returns the page.

    `command`: what made it, as a command for the shell.

    Raises:
        ConfigError: the folder cannot be written.
    """
    trials = load_trials(folder)
    result = result_of(request, folder, trials, finished=False)
    out = folder / FOLDER
    tables = [table for table in _tables(request, folder, trials, result) if table.rows]
    try:
        for name in ("figures", "tables"):
            (out / name).mkdir(parents=True, exist_ok=True)
        for table in tables:
            table.write(out / "tables")
        figures = draw_figures(request, trials, result.held_out, out / "figures")
        environment = Environment(
            loader=ChoiceLoader(
                [
                    PackageLoader("rlearly.experiments.tuning"),
                    PackageLoader("rlearly.experiments.report"),
                ]
            ),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        page = environment.get_template("tuning.html.j2").render(
            request=request,
            result=result,
            state=outlook(request, folder, trials, 1).partition("; about")[0],
            conclusion=conclusion(request, result),
            figures={figure.name: figure for figure in figures},
            tables={table.name: table for table in tables},
            failures=sorted({*trials.failures.values()}),
            command=command,
            version=__version__,
            statistics=statistics,
            objective=NAMES[request.config.objective],
            random_trials=RANDOM_TRIALS,
            few_trials=MIN_TRIALS_FOR_IMPORTANCE,
        )
        atomic.write(out / "index.html", as_unicode(page))
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); free space or fix it, then write the "
            "page with report=TUNE_DIR."
        ) from None
    return out / "index.html"


def conclusion(request: Request, result: TuneResult) -> list[str]:
    """What the search shows so far."""
    if not result.best:
        return ["No trial is complete yet." if not result.trials else "No trial has a score yet."]
    best = result.best
    count = len(request.seeds)
    seeds = f"{count} training seeds" if count > 1 else "one training seed"
    lines = [
        f"{best.name} has the highest {NAMES[request.config.objective]} on {seeds}, "
        f"{rounded(best.value or 0.0)}. This is the best of many draws, so it is too high on "
        "average."
    ]
    if result.held_out:
        lines.append(result.held_out.conclusion())
    elif request.held_out_seeds:
        lines.append("The held-out runs are not done: its gain over the defaults is unknown.")
    else:
        lines.append("There are no held-out seeds: its gain over the defaults may be luck.")
    return lines


def _tables(request: Request, folder: Path, trials: Trials, result: TuneResult) -> list[Table]:
    tables = [_space_table(request, result), trials_table(request, folder, trials)]
    return [*tables, *([_held_out_table(result.held_out)] if result.held_out else [])]


def _space_table(request: Request, result: TuneResult) -> Table:
    view = as_dictconfig(request.run_config)
    rows = []
    for key, found in request.space.items():
        default = OmegaConf.select(view, key)
        shown = "null" if default is None else str(default)
        best = result.best.overrides[len(rows)].partition("=")[2] if result.best else ""
        rows.append([key, str(found), shown.lower() if isinstance(default, bool) else shown, best])
    return Table("space", "The space", ["setting", "range", "default", "best trial"], rows)


def _held_out_table(held_out: HeldOut) -> Table:
    rows = []
    for sample in held_out.samples:
        scores = sample.scores
        rows.append(
            [
                sample.name,
                f"{len(scores)}, {sample.failed} failed" if sample.failed else str(len(scores)),
                sample.iqm.text(),
                rounded(scores.min()),
                rounded(scores.max()),
            ]
        )
    if held_out.difference and held_out.improvement:
        rows.append(["difference", "", held_out.difference.text(), "", ""])
        chance = held_out.improvement.text(2)
        rows.append([f"P({held_out.samples[0].name} above defaults)", "", chance, "", ""])
    columns = ["settings", "runs", "final IQM [95 %]", "worst", "best"]
    return Table("held_out", "Held-out seeds in numbers", columns, rows)
