"""What an agent is made of, what is read from it, and what is done to it between updates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlearly.core.types import Metrics
from rlearly.kernels import onednn
from rlearly.kernels.numpy_forward import Forward, TorchForward, make_forward
from rlearly.nn.layers import configure_stacks, forward_stack
from rlearly.nn.networks import Initialiser, identity_, initialise_, layers
from rlearly.nn.optim import Adam
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.measures import active_fraction
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import restore

Network = TypeVar("Network", bound=nn.Module)
Initialise = Callable[[str, nn.Module, torch.Generator], None]
"""Gives a whole network, known by its name, fresh weights."""


def each_layer(one: Initialiser) -> Initialise:
    """Every network's layers by the same rule."""
    return lambda name, network, weights: initialise_(network, weights, one)


@dataclass(frozen=True)
class NetworkBuilder:
    """How an agent's networks come to be: layers as the interventions want them, then weights."""

    initialiser: Initialise
    weights: torch.Generator
    device: torch.device
    interventions: Sequence[Intervention] = ()
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    def modify(self, name: str, network: Network) -> Network:
        """The network with the layers that the interventions want; its weights are not drawn."""
        for intervention in self.interventions:
            intervention.modify(name, network)
        return network

    def initialise(self, name: str, network: Network) -> Network:
        """The network with weights, on its device."""
        self.initialiser(name, network, self.weights)
        for intervention in self.interventions:
            intervention.initialised(name, network)
        forward = onednn.forward_stack if self.compute.kernels else forward_stack
        configure_stacks(network, self.compute.hidden_dtype, forward)
        return network.to(self.device)

    def build(self, name: str, network: Network) -> Network:
        """Both."""
        return self.initialise(name, self.modify(name, network))


class AgentModules:
    """An agent's networks, optimizers and random streams, saved and restored as one.

    `targets`: for each network that slowly follows another one, that other one's name. `readers`:
    for each network whose outputs are hidden units, the linear layers that read them. Neither
    targets nor what no gradient reaches are measured or changed for themselves: a target follows.

    An agent says when an update begins and ends, and has its networks note their hidden units in
    `units(name)` as it computes. Everything else happens here: interventions before and after, and
    the gauge's metrics. On policy what would be done before an update is done at the end of the
    one before it: a rollout must be learnt from by the networks that took its actions.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        builder: NetworkBuilder,
        *,
        optimizers: Mapping[str, Adam],
        generators: Mapping[str, torch.Generator],
        targets: Mapping[str, str] | None = None,
        readers: Mapping[str, Sequence[nn.Linear]] | None = None,
        monitor: PlasticityMonitor | None = None,
        on_policy: bool = False,
    ):
        self.networks = dict(networks)
        self.optimizers = dict(optimizers)
        self.generators = dict(generators)
        self.targets = dict(targets or {})
        self.readers = dict(readers or {})
        self.on_policy = on_policy
        self.initialiser = builder.initialiser
        self.compute = builder.compute
        self.monitor = monitor or PlasticityMonitor()
        self.interventions = list(builder.interventions)
        self.dormancy: Tensor | None = None
        """The actor's, of the last update, where the agent measures it at every one."""
        self.augments = True
        """Whether an agent that can augment its observations does."""

        self.online = {n: net for n, net in self.networks.items() if n not in self.targets}
        self.freeze_targets()
        self.monitor.start_from(self.online)
        self._step = 0
        self._metrics: dict[str, Tensor | float] = {}
        self._noted: dict[str, list[Tensor]] | None = None
        self._critic: list[Tensor] | None = None
        for intervention in self.interventions:
            intervention.attach(self)
        for network in self.networks.values():
            builder.compute.prepare(network)

    def freeze_targets(self) -> None:
        """No gradient is computed for targets."""
        for target in self.targets:
            self.networks[target].requires_grad_(False)

    # --- an update ---

    def begin_update(self, step: int, *, whole: bool = True) -> None:
        """An update begins; `whole` if every network will note its hidden units in it."""
        self._step = step
        self._metrics = {} if self.on_policy else self._act_before(step)
        wanted = self.monitor.is_due(step) or any(
            i.needs_activations(step) for i in self.interventions
        )
        self._noted = {name: [] for name in self.online} if wanted and whole else None
        self._critic = [] if self.monitor.critic_each_update else None

    def activations(self, name: str) -> list[Tensor] | None:
        """Where a network notes its hidden units in this update; None: nowhere."""
        if self._noted is not None:
            return self._noted.get(name)
        return self._critic if name == "critic" else None

    def end_update(self) -> Metrics:
        """An update is over; its metrics of plasticity, and of what was done."""
        metrics = self._metrics
        if self._critic is not None:
            noted = self._critic if self._noted is None else self._noted["critic"]
            metrics["plasticity/fau_critic"] = active_fraction(noted)
        if self._noted is not None:
            if self.monitor.is_due(self._step):
                metrics |= self._read()
            for intervention in self.interventions:
                if intervention.needs_activations(self._step):
                    metrics |= intervention.after_update(self._step, self._noted)
        if any(name.startswith("event/") for name in metrics):
            self._weights_changed()
        if self.on_policy:
            metrics |= self._act_before(self._step)
        self._noted = self._critic = None
        return metrics

    def _read(self) -> dict[str, Tensor | float]:
        """The gauge's metrics, as of now; what every update tells is left out."""
        assert self._noted is not None
        read = dict(self.monitor.read(self.online, self._noted, step=self._step))
        if self.dormancy is None:
            read["plasticity/dormant_ratio"] = read["plasticity/dormant_ratio_actor"]
        if self.monitor.critic_each_update:
            read.pop("plasticity/fau_critic", None)
        return {f"now/{name}": value for name, value in read.items()}

    def _act_before(self, step: int) -> dict[str, Tensor | float]:
        metrics: dict[str, Tensor | float] = {}
        for intervention in self.interventions:
            metrics |= intervention.before_update(step)
        if metrics:
            self._weights_changed()
        return metrics

    def _weights_changed(self) -> None:
        for intervention in self.interventions:
            intervention.weights_changed()

    def numpy_forward(self, network: nn.Module) -> Forward:
        """A network as a function of numpy arrays, for acting on states."""
        return make_forward(network) if self.compute.kernels else TorchForward(network)

    # --- what interventions need ---

    def online_and_targets(self, name: str) -> list[nn.Module]:
        """A network and the targets that follow it."""
        names = [name, *(t for t, leader in self.targets.items() if leader == name)]
        return [self.networks[n] for n in names]

    def fresh_copy(self, name: str, weights: torch.Generator) -> nn.Module:
        """A copy of a network, or of a target, on the CPU with new weights."""
        network = copy.deepcopy(self.networks[name]).cpu()
        for layer in layers(network):
            identity_(layer)
        self.initialiser(self.targets.get(name, name), network, weights)
        return network

    def optimizer_moments(self, parameter: Tensor) -> Iterable[Tensor]:
        """What its optimizer remembers of a parameter, entry by entry (Adam's two moments)."""
        for optimizer in self.optimizers.values():
            state = optimizer.state.get(parameter, {})
            yield from (v for v in state.values() if v.shape == parameter.shape and v.ndim)

    def reset_optimizer_state(self, parameters: Iterable[Tensor]) -> None:
        """Let the optimizers begin anew with these parameters."""
        for parameter in parameters:
            for optimizer in self.optimizers.values():
                optimizer.state.pop(parameter, None)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": {name: n.state_dict() for name, n in self.networks.items()},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "interventions": {i.name: i.state_dict() for i in self.interventions},
            "monitor": self.monitor.state_dict(),
            "dormancy": self.dormancy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        self.freeze_targets()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, generator in self.generators.items():
            restore(generator, state["generators"][name])
        for intervention in self.interventions:
            intervention.load_state_dict(state["interventions"][intervention.name])
        self.monitor.load_state_dict(state["monitor"])
        if self.dormancy is not None:
            self.dormancy = state["dormancy"].to(self.dormancy.device)
