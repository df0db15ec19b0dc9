"""The two errors that rlearly reports to its user as one sentence, without a traceback."""

from __future__ import annotations

from typing import Any


class ConfigError(Exception):
    """A request that cannot be met.

    The text is a whole sentence for the person who made the request: what was expected, what was
    received, and what to do about it.
    """


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
