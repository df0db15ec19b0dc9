"""The errors that rlearly reports to its user as one sentence, without a traceback."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
LONGEST_REASON = 300
"""Characters of an exception's text that a sentence repeats."""


class ConfigError(Exception):
    """A request that cannot be met.

    The text is a whole sentence for the person who made the request: what was expected, what was
    received, and what to do about it.
    """


class Misfit(Exception):
    """Something saved does not fit the object that is to take it over; the text says what differs,
    first as it was saved, as in "actor.weight is [64, 2] there and [32, 2] here"."""


class RunFailed(Exception):
    """Training cannot continue; the last checkpoint is from before the failure.

    Args:
        what: one sentence on what went wrong.
        diverged: whether learning failed, rather than the env.
        facts: further entries of failure.json.
    """

    def __init__(self, what: str, *, diverged: bool = False, **facts: Any):
        super().__init__(what)
        self.diverged = diverged
        self.facts = facts


class UserCodeFailed(RunFailed):
    """An env, policy or other code of the user's raised something, or returned something unusable.

    An exception that it raised is the `__cause__`.

    Args:
        what: whose call did what, as in "env=my:Reach-v0: step(action) returned 4 values".
        remedy: what was expected, and what to do.
        facts: further entries of failure.json.
    """

    def __init__(self, what: str, *, remedy: str = "", **facts: Any):
        super().__init__(what, **facts)
        self.where = ""
        """What the call was part of, as in "a training step", once that is known."""
        self.remedy = remedy

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        return f"{super().__str__()}{where}{f'; {self.remedy}' if self.remedy else ''}"


OURS = (ConfigError, RunFailed, KeyboardInterrupt, GeneratorExit)
"""Exceptions that guards around the user's code pass on: their message is complete, or they are no
failure."""


def raised(error: BaseException) -> str:
    """What was raised and where, as in "raised ValueError: no goal at my_env.py:31"."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its text cannot be read)"
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]}..."
    name = type(error).__name__
    place = place_of(error)
    return f"raised {f'{name}: {text}'.strip(': ')}{f' at {place}' if place else ''}"


def place_of(error: BaseException) -> str | None:
    """`file:line` of the innermost call in the user's own files; else in an installed package.

    None if all calls were rlearly's, gymnasium's or the standard library's, or if the error's own
    text names the place.
    """
    if isinstance(error, SyntaxError):
        return None
    installed, chained, seen = None, error, set()
    while chained is not None and id(chained) not in seen:
        for frame, line in reversed([*traceback.walk_tb(chained.__traceback__)]):
            path = Path(frame.f_code.co_filename)
            if str(path).startswith("<frozen") or path.is_relative_to(PACKAGE):
                continue
            if not {"site-packages", "dist-packages"} & set(path.parts):
                if not path.is_relative_to(STANDARD_LIBRARY):
                    here = Path.cwd()
                    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
            elif "gymnasium" not in path.parts:
                installed = installed or f"{path}:{line}"
        seen.add(id(chained))
        chained = chained.__cause__ or chained.__context__
    return installed
