"""A sweep's report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from rlearly import __version__
from rlearly.experiments.plan import Run
from rlearly.experiments.report.figures import Figure
from rlearly.experiments.report.results import BROKEN_SHARE, SweepResults, Table
from rlearly.experiments.report.statistics import CURVE_RESAMPLES, RESAMPLES
from rlearly.experiments.status import Status

SECTIONS = {
    "Env by env": ["curves", "success", "final", "efficiency"],
    "All envs together": ["pooled", "profiles", "improvement"],
    "Inside the networks": ["metrics"],
    "What it cost": ["cost"],
}
"""Which figures and tables stand where: what is not normalised comes first."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --faint: #61666b; --line: #d9dcdf;
  --back: #fff; --band: #f5f6f7; --link: #0a58a8; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --faint: #9ba1a7; --line: #3a3e43;
  --back: #17191b; --band: #202326; --link: #7db8f0; --warn: #3a3219; } }
body { color: var(--ink); background: var(--back); max-width: 68rem; margin: 0 auto;
  padding: 2rem 1.2rem 4rem; font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
a { color: var(--link); }
.faint, figcaption, .note { color: var(--faint); font-size: .9rem; }
.note, figcaption { max-width: 52rem; }
.state { background: var(--warn); padding: .7rem 1rem; border-radius: .4rem; }
.state p, .state ul { margin: .2rem 0; }
.findings li { margin: .4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td:nth-child(-n+2) { white-space: normal; }
thead th { border-bottom: 2px solid var(--faint); }
tr.first td, tr.first th { border-top: 2px solid var(--line); }
figure { margin: 1.2rem 0 2rem; }
svg { width: 100%; height: auto; display: block; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
code { background: var(--band); padding: .1rem .35rem; border-radius: .25rem; font-size: .88em;
  overflow-wrap: anywhere; }
"""


def page(
    found: SweepResults,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    state: Sequence[str],
    command: str,
    out: Path,
) -> str:
    """The page, whose links are seen from `out`."""
    title = escape(found.title)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><header>",
        f"<h1>{title}</h1>",
        f'<p class="faint">Arms: {len(found.arms)}, envs: {len(found.envs)}, '
        f"curves: {len(found.curves)}. rlearly {escape(__version__)}</p></header>",
        '<main><section class="state" aria-label="State of the sweep">',
        f"<p><strong>{escape(state[0])}</strong></p>",
        _list(state[1:]),
        "</section>",
        "<section><h2>What came out</h2>",
        _list([found.sentence(env) for env in found.envs], "findings"),
        '<p class="note">Intervals that overlap are called no clear difference: at this number of '
        "seeds, chance alone may have made it.</p>"
        if len(found.arms) > 1
        else "",
        "</section>",
        *(_section(head, names, tables, figures) for head, names in SECTIONS.items()),
        "<section><h2>Every run</h2>",
        _runs(found, out),
        f"</section><section><h2>How it was computed</h2>{_method(found)}",
        f"<p>Made by <code>{escape(command)}</code> with rlearly {escape(__version__)}.</p>",
        "</section></main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _section(
    head: str, names: Sequence[str], tables: Sequence[Table], figures: Sequence[Figure]
) -> str:
    """The figures and tables of these names, as far as they are there."""
    parts = [_figure(one) for name in names for one in figures if one.name == name]
    parts += [_table(one) for name in names for one in tables if one.name == name]
    return f"<section><h2>{head}</h2>{''.join(parts)}</section>" if parts else ""


def _list(lines: Sequence[str], kind: str = "") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul{f' class={kind!r}' if kind else ''}>{items}</ul>" if lines else ""


def _figure(figure: Figure) -> str:
    links = " ".join(
        f'<a href="figures/{figure.name}.{kind}">{kind.upper()}</a>' for kind in ("png", "pdf")
    )
    return (
        f'<h3 id="{figure.name}-title">{escape(figure.title)}</h3><figure>{figure.svg}'
        f'<figcaption id="{figure.name}-caption">{escape(figure.caption)} {links}</figcaption>'
        "</figure>"
    )


def _table(table: Table) -> str:
    links = " ".join(
        f'<a href="tables/{table.name}.{kind}">{name}</a>'
        for kind, name in (("csv", "CSV"), ("tex", "LaTeX"))
    )
    rows = [[escape(cell) for cell in row] for row in table.rows]
    return (
        f"<h3>{escape(table.title)}</h3>{_rows(table.columns, rows)}"
        f'<p class="note">{escape(table.note)} {links}</p>'
    )


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; a line where the first cell changes, which then
    names what follows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    repeats = len({row[0] for row in rows}) < len(rows)
    lines, before = [], None
    for row in rows:
        new = row[0] != before
        shown = [row[0] if new else "", *row[1:]]
        kind = ' class="first"' if new and repeats else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>")
        before = row[0]
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div>"
    )


def _runs(found: SweepResults, out: Path) -> str:
    """Each run with its state, its numbers and where its files are."""
    curves = {curve.folder: curve for curve in found.curves if curve.folder}
    flagged = {
        id(curve) for env in found.envs for arm in found.arms for curve in found.broken(env, arm)
    }
    rows = []
    for folder, run, status in found.folders:
        curve = curves.get(folder)
        final = f"{curve.final:.4g}" if curve and curve.finished else ""
        last = f"{curve.returns[-1]:.4g}" if curve else "none"
        state = status.state + (", broken" if id(curve) in flagged else "")
        frames = f"{status.frames:,}"
        cells = [run.env, run.arm, str(run.seed), state, frames, last, final]
        rows.append([*map(escape, cells), _links(folder, out)])
    columns = ["env", "arm", "seed", "state", "frames", "last evaluation", "final", "files"]
    if not rows:
        return "<p>No run directories are known.</p>"
    return _rows(columns, sorted(rows, key=lambda row: row[0]))


def _links(folder: Path, out: Path) -> str:
    """To a run's directory, its config and its newest video, as far as they are there."""
    videos = sorted((folder / "videos").glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    files = [("directory", folder), ("config", folder / "config.yaml")]
    files += [("video", videos[-1])] if videos else []
    return " ".join(
        f'<a href="{escape(quote(os.path.relpath(file, out)))}">{name}</a>'
        for name, file in files
        if file.exists()
    )


def _method(found: SweepResults) -> str:
    lines = [
        "IQM, the interquartile mean: of n sorted scores, n // 4 are cut at each end and the rest "
        "are averaged. Over several envs, all runs of all of them are one such list.",
        f"Intervals: 95 % percentile bootstrap of {RESAMPLES:,} samples ({CURVE_RESAMPLES:,} for "
        "curves and profiles), which draw seeds with replacement within each env, independently of "
        f"the other envs; bootstrap_seed={found.seed}. Arms are drawn independently too.",
        "They say how far the result hangs on which seeds were drawn; with under five seeds they "
        "are too narrow. A profile is a share of runs, and the chance of improvement the "
        "Mann-Whitney statistic, as in arXiv 2108.13264.",
        f"{found.scaling()} Tables of single envs are not normalised.",
        f"Broken is a finished run in the lowest {BROKEN_SHARE:.0%} of the way from the lowest "
        "return seen on its env to the best arm's IQM. Broken runs are counted in everything.",
        f"The threshold of the sample efficiency is {found.threshold_rule()}.",
        "Numbers of finished runs: final, while learning, broken, efficiency, profiles, "
        "improvement. Unfinished runs are only in the curves and the run times.",
    ]
    return _list(lines)


def state_of(runs: Sequence[tuple[Run, Status]], most: int = 12) -> list[str]:
    """What of a sweep is there, and by name what is not."""
    done = [run for run, status in runs if status.state == "done"]
    if len(done) == len(runs):
        return [f"All {len(runs)} runs have finished."]
    lines = [
        f"{len(done)} of {len(runs)} runs have finished; what follows is of a sweep in progress."
    ]
    for state in dict.fromkeys(status.state for _, status in runs):
        names = [run.title + _progress(s) for run, s in runs if s.state == state]
        if state != "done":
            more = f" and {len(names) - most} more" if len(names) > most else ""
            lines.append(f"{len(names)} {state}: {'; '.join(names[:most])}{more}")
    return lines


def _progress(status: Status) -> str:
    said = [f"{status.frames:,} frames"] if status.frames else []
    said += [f"its last line: {status.log_lines[-1]}"] if status.log_lines else []
    return f" ({'; '.join(said)})" if said else ""
