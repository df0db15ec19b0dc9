"""The hooks through which an intervention changes an agent's networks, from outside the agent.

An intervention acts on online networks and keeps their targets consistent. One of your own is a
subclass of `Intervention` in a module of yours. To add one here, write:

- its class, an `Intervention`, in a module of this folder;
- its settings, a dataclass in `rlearly.config.interventions`, and a field of `RunConfig` for them;
- its line in `rlearly.plasticity.interventions.registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlearly.core.types import Metrics
from rlearly.nn.optim import Adam
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import restore


class ModulesView(Protocol):
    """What an intervention sees of an agent: `rlearly.agents.modules.AgentModules`.

    networks: all by name; online: those without targets; targets: target -> online network;
    readers: the linear layers that read the outputs of a network whose outputs are hidden units.
    dormancy: the actor's dormant ratio in the last update, where the agent measures it each time.
    """

    networks: dict[str, nn.Module]
    online: dict[str, nn.Module]
    targets: dict[str, str]
    readers: dict[str, Sequence[nn.Linear]]
    optimizers: dict[str, Adam]
    monitor: PlasticityMonitor
    dormancy: Tensor | None
    augments: bool

    def freeze_targets(self) -> None: ...

    def online_and_targets(self, name: str) -> list[nn.Module]: ...

    def fresh_copy(self, name: str, weights: torch.Generator) -> nn.Module: ...

    def optimizer_moments(self, parameter: Tensor) -> Iterable[Tensor]: ...

    def reset_optimizer_state(self, parameters: Iterable[Tensor]) -> None: ...


@dataclass(frozen=True)
class NoSettings:
    """The settings of an intervention that has none."""


class Intervention:
    """The hooks of an intervention; each does nothing by default.

    Args:
        config: its settings, from `rlearly.config.interventions`.
        weights: the random stream for fresh weights, for interventions that draw some.
    """

    name = ""
    """Its name in a config, which is also the name of its group of settings."""

    needs_stacks = False
    """Whether it works on the layers of a RecordedStack, and so not on other modules, which a
    user's `agent.network` may make."""

    config_class: type = NoSettings
    """The settings of an intervention of the user's own: a frozen dataclass with defaults."""

    config: Any

    stream: torch.Generator | None = None
    """Its random stream, if that is saved with the agent's and not in its own state."""

    def __init__(self, config: Any, *, weights: torch.Generator | None = None):
        self.config = config
        if weights is not None:
            self.weights = weights

    def applies_to(self, network: str) -> bool:
        """Whether `config.networks` selects this network; None, or no such setting, selects all."""
        networks = getattr(self.config, "networks", None)
        return networks is None or network in networks

    def selected(self) -> list[str]:
        """The names of the online networks that it applies to."""
        return [name for name in self.modules.online if self.applies_to(name)]

    def modify(self, name: str, network: nn.Module) -> None:
        """Change a network's layers before its weights are drawn."""

    def initialised(self, name: str, network: nn.Module) -> None:
        """Called once a network's weights have been drawn."""

    def attach(self, modules: ModulesView) -> None:
        """Called once the agent has all its networks and optimizers."""
        self.modules = modules

    def weights_changed(self) -> None:
        """Called after an intervention, not a gradient step, has changed weights."""

    def took_over(self, saved: Mapping[str, Any] | None) -> None:
        """Called once a new run's networks have got the weights of another run.

        `saved`: the state of this intervention there; None if that run did not have it.
        """

    def before_update(self, step: int) -> Metrics:
        """Act before an update, at most once per agent step."""
        return {}

    def needs_activations(self, step: int) -> bool:
        """Whether `after_update` needs the hidden activations of this update."""
        return False

    def after_update(self, step: int, activations: Mapping[str, list[Tensor]]) -> Metrics:
        """Act after an update; `activations`: of each online network, layer by layer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class PeriodicIntervention(Intervention):
    """Acts once in each interval of `config.every_steps` agent steps except the first.

    The first interval is the one in which learning begins: nothing has been learned yet. The
    official `step % interval == 0` fires once per update at such a step: twice at a replay ratio
    of 2, and at ratios below 1 perhaps never.
    """

    def __init__(self, config: Any, *, weights: torch.Generator):
        super().__init__(config)
        self.weights = weights
        self.intervals_done: int | None = None

    def is_due(self, step: int) -> bool:
        if self.intervals_done is None:
            self.mark_done(step)
        assert self.intervals_done is not None
        return step // self.config.every_steps > self.intervals_done

    def mark_done(self, step: int) -> None:
        self.intervals_done = step // self.config.every_steps

    def state_dict(self) -> dict[str, Any]:
        return {"intervals_done": self.intervals_done, "weights": self.weights.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.intervals_done = state["intervals_done"]
        restore(self.weights, state["weights"])


def parameter_ids(optimizer: Adam) -> set[int]:
    """The ids of the parameters that an optimizer updates."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
