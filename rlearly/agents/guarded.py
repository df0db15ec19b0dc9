"""A guard around a user's own agent: an exception or an unusable result becomes one sentence that
names the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from rlearly.core.errors import OURS, ConfigError, UserCodeFailed, raised
from rlearly.core.types import Agent, Metrics

METHODS = ("act", "value", "update", "state_dict", "load_state_dict")

Result = TypeVar("Result")


class GuardedAgent:
    """An agent of the user's own; a call that fails is reported with the agent's name.

    Raises:
        ConfigError: it lacks a method of `Agent`.
        UserCodeFailed: a call raised, or returned something that a run cannot use.
    """

    def __init__(self, agent: Agent, name: str):
        missing = [method for method in METHODS if not callable(getattr(agent, method, None))]
        if missing:
            raise ConfigError(
                f"agent={name}: make(...) returned an object of the class {type(agent).__name__} "
                f"without {' and '.join(missing)}; expected an agent with {', '.join(METHODS)}."
            )
        self.agent = agent
        self.name = name

    def act(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        action = self._call("act(obs)", lambda: self.agent.act(obs, step=step, explore=explore))
        rows = len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)
        fits = isinstance(action, np.ndarray) and action.shape[:1] == (rows,)
        if not fits or action.ndim != (2 if action.dtype.kind == "f" else 1):
            raise UserCodeFailed(
                f"agent={self.name}: act(obs) returned {_described(action)}",
                remedy=f"expected a numpy array of {rows} actions, one for each observation: "
                f"float32 [{rows}, A], or int64 [{rows}] if actions are discrete",
            )
        return action

    def value(self, obs: Any) -> np.ndarray:
        return self._call("value(obs)", lambda: self.agent.value(obs))

    def sample(self, obs: Any) -> np.ndarray:
        """Exploring actions of an on-policy agent."""
        agent: Any = self.agent
        return self._call("sample(obs)", lambda: agent.sample(obs))

    def update(self, batch: Any, *, step: int) -> Metrics:
        metrics = self._call("update(batch)", lambda: self.agent.update(batch, step=step))
        if not isinstance(metrics, Mapping):
            raise UserCodeFailed(
                f"agent={self.name}: update(batch) returned {_described(metrics)}",
                remedy='expected a dict of metrics, as in {"loss/critic": loss.detach()}',
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return self._call("state_dict()", self.agent.state_dict)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict(state)", lambda: self.agent.load_state_dict(state))

    def _call(self, call: str, function: Callable[[], Result]) -> Result:
        try:
            return function()
        except (*OURS, MemoryError, torch.OutOfMemoryError):
            raise
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            raise UserCodeFailed(f"agent={self.name}: {call} {raised(error)}") from error


def unguarded(agent: Any) -> Any:
    """The agent itself, if there is a guard around it."""
    return agent.agent if isinstance(agent, GuardedAgent) else agent


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    return f"an object of the class {type(value).__name__}"
