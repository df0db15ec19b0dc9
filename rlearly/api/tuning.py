"""`rlearly.tune`: search for an agent's settings from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlearly.api.settings import overrides_of, seeds_text
from rlearly.core.errors import ConfigError
from rlearly.experiments.tuning.page import write_page
from rlearly.experiments.tuning.request import VERBS, request_of, split
from rlearly.experiments.tuning.tuner import TuneResult
from rlearly.experiments.tuning.tuner import tune as lead
from rlearly.system.process import restored_process


def tune(
    *overrides: str,
    space: Mapping[str, str | None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> TuneResult:
    """Search for the settings of an agent that score highest on an env, in worker processes.

    Repeating the call continues the search. Ctrl-C, or interrupting a notebook's kernel, saves its
    runs.

    Args:
        overrides: as on the command line, `"agent.hidden_dim=64"`.
        space: key of a setting -> its range, as in `{"agent.lr": "log(1e-5,1e-2)"}`; None: it is
            not tuned.
        progress: print what the command prints.
        settings: all keys of `python -m rlearly.tune --help` and of `rlearly.train`. `seeds=3`
            means 0, 1 and 2, and `seeds=[5, 6]` these.

    Returns:
        The trials, the best one, a command that trains with its settings, what the held-out seeds
        show, and the directory, where `report/index.html` is the page.

    Raises:
        ConfigError: a setting is wrong, or the request cannot be met; nothing was started.
        RunFailed: none of the first trials has a score, or files can no longer be written.
    """
    words = [*overrides]
    for key, value in settings.items():
        if key in (*VERBS, "dry_run"):
            raise ConfigError(f"{key}: is for the command, python -m rlearly.tune {key}=...")
        if key in ("seeds", "held_out_seeds"):
            value = seeds_text(value)
        words += overrides_of({key: value})
    words += [f"space.{key}={text or 'null'}" for key, text in (space or {}).items()]
    with restored_process:
        request = request_of(*split(words))
        result = lead(request, print if progress else lambda line: None)
        write_page(request, result.folder, "rlearly.tune(...)")
    return result
