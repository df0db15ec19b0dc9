"""`python -m rlearly.tune agent=td3 env=Hopper-v5 trials=50 seeds=3`: search for good settings."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.tune")

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rlearly.agents import agent_spec
from rlearly.config.help import key_lines
from rlearly.config.overrides import python_command
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import BAD_REQUEST, DONE, FAILED, SAVED, STATUS_HELP
from rlearly.experiments.job import commands, jobs_of
from rlearly.experiments.launchers.lock import owner_of
from rlearly.experiments.plan import Plan
from rlearly.experiments.status import statuses
from rlearly.experiments.tuning.page import conclusion, write_page
from rlearly.experiments.tuning.request import Request, TuneConfig, request_of, saved_request, split
from rlearly.experiments.tuning.sampling import propose
from rlearly.experiments.tuning.space import GRAMMAR
from rlearly.experiments.tuning.summary import outlook, trials_table
from rlearly.experiments.tuning.trials import load_trials
from rlearly.experiments.tuning.tuner import TuneResult, continued_trials, result_of, tune
from rlearly.system.command import as_command, call_instead

call_instead(__name__, "rlearly.api.tuning:tune")
USAGE = f"""Usage: python -m rlearly.tune agent=AGENT env=ENV trials=N seeds=N [key=value ...]
       python -m rlearly.tune status=TUNE_DIR
       python -m rlearly.tune report=TUNE_DIR
       --help agent=AGENT   also lists the space of that agent

space.KEY=RANGE tunes any setting KEY of a run, or removes one that is tuned by default:
{GRAMMAR}.
Keys that are not listed here are those of `rlearly.train` and apply to all runs. Repeat a command
to continue its search. Quote ranges for the shell, as in "space.agent.lr=log(1e-5,1e-2)".
"""


@as_command
def main(arguments: list[str]) -> int:
    """Search, or show a search; returns the exit status."""
    if "--help" in arguments or "-h" in arguments or not arguments:
        print(help_text(arguments))
        return DONE if arguments else BAD_REQUEST
    config, overrides, ranges = split(arguments)
    for verb in (status, report):
        folder = getattr(config, verb.__name__)
        if folder is not None:
            if overrides or ranges:
                other = [*overrides, *(f"space.{key}" for key in ranges)][0]
                raise ConfigError(
                    f"{verb.__name__}: cannot be combined with {other!r}; leave it out."
                )
            return verb(Path(folder).absolute(), arguments)
    request = request_of(config, overrides, ranges)
    if config.dry_run:
        return dry_run(request)
    result = tune(request, lambda line: print(line, flush=True))
    command = python_command("rlearly.tune", *arguments)
    print("", *summary(request, result, write_page(request, result.folder, command)), sep="\n")
    if not result.finished:
        print("stopped; repeat the command to continue.")
        return SAVED
    return DONE if result.best else FAILED


def help_text(arguments: Sequence[str]) -> str:
    """The help of the command, with the settings of an agent that are tuned by default."""
    lines = [USAGE, "Keys (type, default)", *key_lines(TuneConfig, "")]
    for agent in [word.partition("=")[2] for word in arguments if word.startswith("agent=")]:
        lines += ["", f"Space of {agent}"]
        for field in dataclasses.fields(agent_spec(agent).config_class):
            if "search" in field.metadata:
                lines.append(f"  space.agent.{field.name:29} {field.metadata['search']}")
    return "\n".join([*lines, STATUS_HELP])


def summary(request: Request, result: TuneResult, page: Path) -> list[str]:
    """The lines that a search ends with."""
    lines = conclusion(request, result)
    if result.command:
        lines += ["train with the settings of the best trial:", f"    {result.command}"]
    return [*lines, str(page)]


def dry_run(request: Request) -> int:
    """Print the space, the rungs and the commands of the next trial."""
    folder = request.folder
    trials = continued_trials(request, folder)
    width = max(map(len, request.space))
    print("space:")
    for key, found in request.space.items():
        print(f"  {key:{width}}  {found}")
    rungs = ", ".join(f"{rung:,}" for rung in request.rungs) or "none, so no trial is ended early"
    print(f"rungs in frames: {rungs}")
    trial = propose(request.space, trials.trials, request.config.seed, request.defaults)
    runs = request.runs_of(trial)
    plan = request.plan(runs)
    plan.check()
    print(f"{trial.name}{' (the defaults)' if trial.defaults else ''}:")
    for run in runs:
        for command in commands(plan, folder, run.name):
            print(f"  {python_command(*command)}")
    runs_in_all = max(0, request.config.trials - len(trials)) * len(runs)
    held_out = 2 * len(request.held_out_seeds)
    print(f"up to {runs_in_all} runs of trials and {held_out} on held-out seeds, in {folder}.")
    return DONE


def status(folder: Path, arguments: Sequence[str]) -> int:
    """Show the trials of a search; exit status 1 if none that ended has a score."""
    trials = load_trials(folder)
    request = saved_request(trials)
    print(trials_table(request, folder, trials).text())
    queue = statuses(folder, jobs_of(Plan.load(folder)))
    running = [one for one in queue if one.state == "running"]
    for one in running:
        print(f"running: {one.job.title}, {one.frames:,} of {one.train_frames or 0:,} frames")
    print(outlook(request, folder, trials, len(running) or 1))
    if not owner_of(folder):
        print("no process is running this search; repeat its command to continue it.")
    return FAILED if trials.only_failures() else DONE


def report(folder: Path, arguments: Sequence[str]) -> int:
    """Write the page of a search again."""
    trials = load_trials(folder)
    request = saved_request(trials)
    page = write_page(request, folder, python_command("rlearly.tune", *arguments))
    print(*summary(request, result_of(request, folder, trials, finished=False), page), sep="\n")
    return DONE
