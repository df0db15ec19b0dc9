"""An agent's networks, optimizers and random streams; where interventions and metrics hook in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlearly.agents.network_factory import NetworkFactory
from rlearly.core.errors import ConfigError, Misfit
from rlearly.core.types import Metrics
from rlearly.kernels import onednn
from rlearly.kernels.numpy_forward import Forward, TorchForward, make_forward
from rlearly.nn.custom import CustomNetwork, custom_networks
from rlearly.nn.layers import RecordedStack, configure_stacks, forward_stack
from rlearly.nn.networks import Initialiser, identity_, initialise_, layers
from rlearly.nn.optim import Adam
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.measures import active_fraction
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import restore

Network = TypeVar("Network", bound=nn.Module)
Initialise = Callable[[str, nn.Module, torch.Generator], None]
"""Draws the weights of a whole network, given its name."""


def each_layer(one: Initialiser) -> Initialise:
    """The same rule for every layer of every network."""
    return lambda name, network, weights: initialise_(network, weights, one)


@dataclass(frozen=True)
class NetworkBuilder:
    """Builds networks: interventions may change the layers, then the weights are drawn."""

    initialiser: Initialise
    weights: torch.Generator
    device: torch.device
    interventions: Sequence[Intervention] = ()
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    factory: NetworkFactory | None = None
    """Makes the stacks that the user's `agent.network` does not leave to the agent."""

    def stack(self, name: str, inputs: int, outputs: int) -> RecordedStack | CustomNetwork | None:
        """A network [B, inputs] -> [B, outputs] by the user's function; None: the default.

        Raises:
            ConfigError: the function failed, or what it made does not fit.
        """
        made = self.factory and self.factory.make(name, (inputs,), outputs, self.weights)
        return made[0] if made else None

    def image_network(
        self, shape: tuple[int, ...]
    ) -> tuple[RecordedStack | CustomNetwork, int] | None:
        """A network for images [B, C, H, W], and how many features it makes; None: the default."""
        return self.factory and self.factory.make("encoder", shape, None, self.weights)

    def modify(self, name: str, network: Network) -> Network:
        """Let the interventions change the layers; the weights are not drawn yet.

        Raises:
            ConfigError: an intervention cannot act on a network of the user's own.
        """
        for intervention in self.interventions:
            if self.factory and intervention.needs_stacks and intervention.applies_to(name):
                self._refuse_custom(intervention, name, network)
            intervention.modify(name, network)
        return network

    def _refuse_custom(self, intervention: Intervention, name: str, network: nn.Module) -> None:
        assert self.factory is not None
        for part in custom_networks(network):
            raise ConfigError(
                f"intervention={intervention.name}: works on the layers of a RecordedStack, and "
                f"the {name} that {self.factory.title} makes is a {type(part.network).__name__}; "
                "return a RecordedStack or None for it, or leave it out of "
                f"{intervention.name}.networks."
            )

    def initialise(self, name: str, network: Network) -> Network:
        """Draw the weights and move the network to its device."""
        if self.compute.compile and custom_networks(network):
            raise ConfigError(
                f"compile=true: the {name} that agent.network makes is a module of your own, which "
                "is not compiled from here: leave compile out, or call its compile() where you "
                "make it."
            )
        self.initialiser(name, network, self.weights)
        for intervention in self.interventions:
            intervention.initialised(name, network)
        forward = onednn.forward_stack if self.compute.kernels else forward_stack
        configure_stacks(network, self.compute.hidden_dtype, forward)
        return network.to(self.device)

    def build(self, name: str, network: Network) -> Network:
        """`modify`, then `initialise`."""
        return self.initialise(name, self.modify(name, network))


class AgentModules:
    """An agent's networks, optimizers and random streams, saved and restored as one.

    targets: target network -> the online network that it follows. readers: network whose outputs
    are hidden units -> the linear layers that read them. Only online networks are measured and
    changed by interventions; their targets are kept consistent.

    An agent calls `begin_update` and `end_update`, and passes `activations(name)` to its networks
    to record their hidden units. Interventions run and metrics are computed inside these calls. On
    policy, interventions that act before an update act at the end of the previous one instead: the
    networks that learn from a rollout must be those that took its actions.
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
        streams = {i.name: i.stream for i in builder.interventions if i.stream is not None}
        self.generators = {**generators, **streams}
        self.targets = dict(targets or {})
        self.readers = dict(readers or {})
        self.on_policy = on_policy
        self.initialiser = builder.initialiser
        self.compute = builder.compute
        self.monitor = monitor or PlasticityMonitor()
        self.interventions = list(builder.interventions)
        self.dormancy: Tensor | None = None
        """The actor's dormant ratio, if the agent measures it at every update."""
        self.augments = True
        """Whether to augment observations, if the agent can."""

        self.online = {n: net for n, net in self.networks.items() if n not in self.targets}
        self.freeze_targets()
        self._refuse_without_relus()
        self.monitor.start_from(self.online)
        self._step = 0
        self._metrics: dict[str, Tensor | float] = {}
        self._recorded: dict[str, list[Tensor]] | None = None
        self._critic: list[Tensor] | None = None
        for intervention in self.interventions:
            intervention.attach(self)
        for network in self.networks.values():
            builder.compute.prepare(network)

    def _refuse_without_relus(self) -> None:
        own = custom_networks(self.online["critic"]) if self.monitor.critic_each_update else []
        if not all(part.has_relu_only for part in own):
            raise ConfigError(
                "replay_ratio=adaptive: decides by the fraction of active ReLU units in the "
                "critic, and the one that agent.network makes has none, or others too: use nn.ReLU "
                "layers, or another replay_ratio."
            )

    def freeze_targets(self) -> None:
        """Exclude the target networks from gradients."""
        for target in self.targets:
            self.networks[target].requires_grad_(False)

    # --- an update ---

    def begin_update(self, step: int, *, whole: bool = True) -> None:
        """Start an update; `whole`: it runs every network, so that all can record activations."""
        self._step = step
        self._metrics = {} if self.on_policy else self._act_before(step)
        needed = self.monitor.is_due(step) or any(
            i.needs_activations(step) for i in self.interventions
        )
        self._recorded = {name: [] for name in self.online} if needed and whole else None
        self._critic = [] if self.monitor.critic_each_update else None

    def activations(self, name: str) -> list[Tensor] | None:
        """The list in which a network records its activations; None: it need not record them."""
        if self._recorded is not None:
            return self._recorded.get(name)
        return self._critic if name == "critic" else None

    def end_update(self) -> Metrics:
        """Finish an update; returns the metrics of plasticity and interventions."""
        metrics = self._metrics
        if self._critic is not None:
            recorded = self._critic if self._recorded is None else self._recorded["critic"]
            metrics["plasticity/fau_critic"] = active_fraction(recorded)
        if self._recorded is not None:
            if self.monitor.is_due(self._step):
                metrics |= self._read()
            for intervention in self.interventions:
                if intervention.needs_activations(self._step):
                    metrics |= intervention.after_update(self._step, self._recorded)
        if any(name.startswith("event/") for name in metrics):
            self._weights_changed()
        if self.on_policy:
            metrics |= self._act_before(self._step)
        self._recorded = self._critic = None
        return metrics

    def _read(self) -> dict[str, Tensor | float]:
        """The monitor's metrics, without those that every update reports."""
        assert self._recorded is not None
        read = dict(self.monitor.read(self.online, self._recorded, step=self._step))
        if self.dormancy is None and "plasticity/dormant_ratio_actor" in read:
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
        """A network as a fast function of numpy arrays, for acting on states."""
        return make_forward(network) if self.compute.kernels else TorchForward(network)

    # --- what interventions need ---

    def online_and_targets(self, name: str) -> list[nn.Module]:
        """A network and its target networks."""
        names = [name, *(t for t, online in self.targets.items() if online == name)]
        return [self.networks[n] for n in names]

    def fresh_copy(self, name: str, weights: torch.Generator) -> nn.Module:
        """A copy of a network or target network on the CPU, with new weights."""
        network = copy.deepcopy(self.networks[name]).cpu()
        for layer in layers(network):
            identity_(layer)
        self.initialiser(self.targets.get(name, name), network, weights)
        for part in custom_networks(network):
            part.draw_(weights)
        return network

    def optimizer_moments(self, parameter: Tensor) -> Iterable[Tensor]:
        """The optimizer state of a parameter with the parameter's shape (Adam's two moments)."""
        for optimizer in self.optimizers.values():
            state = optimizer.state.get(parameter, {})
            yield from (v for v in state.values() if v.shape == parameter.shape and v.ndim)

    def reset_optimizer_state(self, parameters: Iterable[Tensor]) -> None:
        """Restart the optimizers for these parameters."""
        for parameter in parameters:
            for optimizer in self.optimizers.values():
                optimizer.state.pop(parameter, None)

    # --- beginning with parts of another run ---

    def take_over(
        self, state: Mapping[str, Any], parts: Collection[str], *, optional: Collection[str] = ()
    ) -> None:
        """Begin with the networks or optimizers of a `state_dict`; see `BeginsFromAnother`.

        Interventions and the monitor take the weights for the initial ones of this run.

        Args:
            optional: names of optimizers that one of the two may lack.

        Raises:
            Misfit: a network or an optimizer does not fit.
        """
        if "networks" in parts:
            self._take_over_networks(state)
        if "optimizers" in parts:
            self._take_over_moments(state["optimizers"], optional)

    def _take_over_networks(self, state: Mapping[str, Any]) -> None:
        saved = state["networks"]
        refuse_other_names("networks", saved, self.networks)
        for name, network in self.networks.items():
            own = network.state_dict()
            refuse_other_names(f"parameters of {name}", saved[name], own)
            refuse_other_shapes(name, saved[name], own)
        for name, network in self.networks.items():
            network.load_state_dict(saved[name])
        self.freeze_targets()
        if self.dormancy is not None and state["dormancy"] is not None:
            self.dormancy = state["dormancy"].to(self.dormancy.device)
        self.monitor.start_from(self.online, taken_over=True)
        for intervention in self.interventions:
            intervention.took_over(state["interventions"].get(intervention.name))

    def _take_over_moments(self, saved: Mapping[str, Any], optional: Collection[str]) -> None:
        both = {name for name in self.optimizers if name in saved or name not in optional}
        there = {name for name in saved if name in self.optimizers or name not in optional}
        refuse_other_names("optimizers", there, both)
        for name in both:
            parameters = self.optimizers[name].param_groups[0]["params"]
            moments = {at: one["exp_avg"] for at, one in saved[name]["state"].items()}
            refuse_other_shapes(f"optimizer {name}", moments, dict(enumerate(parameters)))
        for name in both:
            self.optimizers[name].load_moments(saved[name])

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


MOST_DIFFERENCES = 4
"""Differences that a message lists."""


def refuse_other_names(what: str, there: Collection[str], here: Collection[str]) -> None:
    """Raises Misfit if the names of two agents' parts are not the same."""
    if set(there) == set(here):
        return
    sides = {"there": set(there) - set(here), "here": set(here) - set(there)}
    only = "; ".join(
        f"only {side}: {_some(sorted(names))}" for side, names in sides.items() if names
    )
    raise Misfit(f"the {what} have other names ({only})")


def refuse_other_shapes(what: str, there: Mapping[Any, Any], here: Mapping[Any, Any]) -> None:
    """Raises Misfit if tensors of the same name have other shapes; others are not compared."""
    differ = [
        f"{what}.{name} is {list(tensor.shape)} there and "
        + (f"{list(here[name].shape)} here" if name in here else "not here")
        for name, tensor in there.items()
        if isinstance(tensor, Tensor) and (name not in here or here[name].shape != tensor.shape)
    ]
    if differ:
        raise Misfit(_some(differ))


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_DIFFERENCES
    return ", ".join(names[:MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
