"""What a trained model of another library is to us: a policy and its critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A trained policy and its critic.

    act: observation -> the action that the policy takes without exploring, as `env.step` wants it.
    value: observation -> the critic's estimate of the policy's return from there; NaN without a
    critic. notes: what a user should know about how it was read, one sentence each.
    """

    library: str
    algorithm: str
    act: Callable[[Any], Any]
    value: Callable[[Any], float]
    has_critic: bool = True
    notes: tuple[str, ...] = ()
