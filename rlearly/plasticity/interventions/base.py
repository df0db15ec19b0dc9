"""What one can do to an agent's networks, from outside, before and between updates.

Each class is one intervention, complete. An agent takes a list of them; `chosen` makes the list
that a config names. They act on the networks that learn; a target is kept consistent with the
network it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlearly.core.types import Metrics
from rlearly.nn.optim import Adam
from rlearly.system.seeding import restore


class ModulesView(Protocol):
    """What an intervention sees of an agent: `rlearly.agents.modules.Body`."""

    networks: dict[str, nn.Module]
    online: dict[str, nn.Module]
    targets: dict[str, str]
    readers: dict[str, Sequence[nn.Linear]]
    optimizers: dict[str, Adam]
    dormancy: Tensor | None
    augments: bool

    def freeze_targets(self) -> None: ...

    def online_and_targets(self, name: str) -> list[nn.Module]: ...

    def fresh_copy(self, name: str, weights: torch.Generator) -> nn.Module: ...

    def optimizer_moments(self, parameter: Tensor) -> Iterable[Tensor]: ...

    def reset_optimizer_state(self, parameters: Iterable[Tensor]) -> None: ...


class Intervention:
    """The points at which an intervention may do something; at each, by default, nothing.

    `networks`: names of those it is for; None: all.
    """

    name = "none"

    def __init__(self, networks: Sequence[str] | None = None):
        self.networks = networks

    def applies_to(self, network: str) -> bool:
        return self.networks is None or network in self.networks

    def modify(self, name: str, network: nn.Module) -> None:
        """Change a network's layers before its weights are drawn."""

    def initialised(self, name: str, network: nn.Module) -> None:
        """A network has its weights."""

    def attach(self, modules: ModulesView) -> None:
        """The agent is complete."""
        self.modules = modules

    def weights_changed(self) -> None:
        """Weights were changed by an intervention, not by a gradient."""

    def before_update(self, step: int) -> Metrics:
        """Act before an update, at most once an agent step."""
        return {}

    def needs_activations(self, step: int) -> bool:
        """Whether the hidden units of this update are to be noted for `after_update`."""
        return False

    def after_update(self, step: int, units: Mapping[str, list[Tensor]]) -> Metrics:
        """Act after an update, by the hidden units that each network noted in it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def _named(self) -> list[str]:
        """The body's networks that this is for, targets left out."""
        return [name for name in self.modules.online if self.applies_to(name)]


class Timer:
    """Once in each interval of agent steps but the first, whatever the number of updates in it.

    The interval in which learning begins is the first: nothing was learnt yet. The official
    `step % interval == 0` fires once per update at such a step: twice at a replay ratio of 2, and
    at ratios under 1 perhaps never.
    """

    def __init__(self, every_steps: int):
        self.every_steps = every_steps
        self.intervals_done: int | None = None

    def is_due(self, step: int) -> bool:
        if self.intervals_done is None:
            self.done(step)
        assert self.intervals_done is not None
        return step // self.every_steps > self.intervals_done

    def done(self, step: int) -> None:
        self.intervals_done = step // self.every_steps


class PeriodicIntervention(Intervention):
    """What is done once an interval, with fresh weights from a stream of its own."""

    def __init__(
        self, every_steps: int, *, networks: Sequence[str] | None, weights: torch.Generator
    ):
        super().__init__(networks)
        self.timer = Timer(every_steps)
        self.weights = weights

    def state_dict(self) -> dict[str, Any]:
        return {
            "intervals_done": self.timer.intervals_done,
            "weights": self.weights.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.timer.intervals_done = state["intervals_done"]
        restore(self.weights, state["weights"])


def _owned(optimizer: Adam) -> set[int]:
    """The ids of the parameters that an optimizer moves."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
