"""TODO."""

from __future__ import annotations

from typing import Any


class ConfigError(Exception):
    """A request that cannot be met; its text is the whole sentence for the person who made it."""


class RunFailed(Exception):
    """Training cannot go on. The checkpoints are of states before it."""

    def __init__(self, what: str, *, diverged: bool = False, **facts: Any):
        """`diverged`: it is learning that failed, not the env."""
        super().__init__(what)
        self.diverged = diverged
        self.facts = facts
