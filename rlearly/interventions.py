"""What one can do to an agent's networks, from outside, before and between updates.

Each class is one intervention, complete. An agent takes a list of them; `chosen` makes the list
that a config names. They act on the networks that learn; a target is kept consistent with the
network it follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlearly.config import INTERVENTIONS, ConfigError, RunConfig
from rlearly.networks import layers
from rlearly.optim import Adam
from rlearly.plasticity import dormant_ratio, unit_scores
from rlearly.seeding import Seeds, restore
from rlearly.types import Metrics
from rlearly.units import (
    Hidden,
    SpectralLinear,
    bound_hidden,
    double_hidden,
    heads,
    hidden_layers,
    injected_heads,
    make_injectable,
    normalise_hidden,
    spectral_layers,
)

if TYPE_CHECKING:
    from rlearly.body import Body


class Intervention:
    """The points at which an intervention may do something; at each, by default, nothing.

    `networks`: names of those it is for; None: all.
    """

    name = "none"

    def __init__(self, networks: Sequence[str] | None = None):
        self.networks = networks

    def is_for(self, network: str) -> bool:
        return self.networks is None or network in self.networks

    def shape(self, name: str, network: nn.Module) -> None:
        """Change a network's layers before its weights are drawn."""

    def grown(self, name: str, network: nn.Module) -> None:
        """A network has its weights."""

    def attach(self, body: Body) -> None:
        """The agent is complete."""
        self.body = body

    def settle(self) -> None:
        """Weights were changed by an intervention, not by a gradient."""

    def before_update(self, step: int) -> Metrics:
        """Act before an update, at most once an agent step."""
        return {}

    def wants(self, step: int) -> bool:
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
        return [name for name in self.body.leaders if self.is_for(name)]


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


class Repeated(Intervention):
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


# --- other layers ---


class LayerNorm(Intervention):
    """A LayerNorm before every activation."""

    name = "layer_norm"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            normalise_hidden(network)


class CReLU(Intervention):
    """relu(x) beside relu(-x) in the place of relu(x)."""

    name = "crelu"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            double_hidden(network)


class SpectralNorm(Intervention):
    """Linear layers that make hidden units have spectral norm 1 (arXiv 2105.05246).

    The norms are followed at each step of the optimizer that a network learns by, its target's
    too, and estimated anew where another intervention has changed weights.
    """

    name = "spectral_norm"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            bound_hidden(network)

    def attach(self, body: Body) -> None:
        super().attach(body)
        self.settle()
        for optimizer in body.optimizers.values():
            owned = _owned(optimizer)
            follows = [
                layer
                for name, leader in body.leaders.items()
                if owned & {id(p) for p in leader.parameters()}
                for network in body.with_targets(name)
                for layer in spectral_layers(network)
            ]
            optimizer.register_step_post_hook(partial(_iterate, follows))

    def settle(self) -> None:
        for network in self.body.networks.values():
            for layer in spectral_layers(network):
                layer.begin_anew()


def _owned(optimizer: Adam) -> set[int]:
    """The ids of the parameters that an optimizer moves."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _iterate(follows: Sequence[SpectralLinear], *step: Any) -> None:
    for layer in follows:
        layer.iterate()


class Injection(Intervention):
    """At one step, heads go on learning with fresh weights, their outputs unchanged.

    arXiv 2305.15555, section 3, on every head of the networks it is for. Until then, and but for
    them, the run is what it would be without.
    """

    name = "injection"

    def __init__(
        self, at_step: int, *, networks: Sequence[str] | None = None, weights: torch.Generator
    ):
        super().__init__(networks)
        self.at_step = at_step
        self.weights = weights
        self.is_done = False

    def grown(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            make_injectable(network)

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.at_step:
            return {}
        self.is_done = True
        for name in self._named():
            fresh = [head.base for head in injected_heads(self.body.fresh(name, self.weights))]
            for network in self.body.with_targets(name):
                for head, new in zip(injected_heads(network), fresh, strict=True):
                    head.inject(new)
        self.body.detach_targets()
        return {"event/injection": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done, "weights": self.weights.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.is_done = state["is_done"]
        restore(self.weights, state["weights"])


# --- other gradients ---


class Pull(Intervention):
    """A pull on every weight, of `strength` times its distance from where it is pulled to.

    It is added to the gradient just before the optimizer uses it, which is what a term in the loss
    would do; only PPO's bound of the gradient's length is not for the pull. Weight decay pulls to
    0, L2-init (arXiv 2308.11958) to the initial weights.
    """

    def __init__(
        self, name: str, strength: float, *, to_start: bool, networks: Sequence[str] | None = None
    ):
        super().__init__(networks)
        self.name = name
        self.strength = strength
        self.to_start = to_start
        self.start: dict[str, list[Tensor]] = {}

    def attach(self, body: Body) -> None:
        super().attach(body)
        if self.to_start:
            self.start = {
                name: [p.detach().clone() for p in body.networks[name].parameters()]
                for name in self._named()
            }
        for optimizer in body.optimizers.values():
            owned = _owned(optimizer)
            pulled = []
            for name in self._named():
                parameters = list(body.networks[name].parameters())
                origins = self.start.get(name, [None] * len(parameters))
                pairs = zip(parameters, origins, strict=True)
                pulled += [pair for pair in pairs if id(pair[0]) in owned]
            optimizer.register_step_pre_hook(partial(self._add, pulled))

    @torch.no_grad()
    def _add(self, pulled: Sequence[tuple[nn.Parameter, Tensor | None]], *step: Any) -> None:
        for parameter, origin in pulled:
            if parameter.grad is not None:
                away = parameter if origin is None else parameter - origin
                parameter.grad.add_(away, alpha=self.strength)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, origins in self.start.items():
            for origin, saved in zip(origins, state["start"][name], strict=True):
                origin.copy_(saved)


class FreezeEncoder(Intervention):
    """From one step on the encoder learns no more."""

    name = "freeze_encoder"

    def __init__(self, at_step: int):
        super().__init__(["encoder"])
        self.at_step = at_step
        self.is_done = False

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.at_step:
            return {}
        self._freeze()
        return {"event/freeze_encoder": 1.0}

    def _freeze(self) -> None:
        self.is_done = True
        self.body.networks["encoder"].requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["is_done"]:
            self._freeze()


class SwitchAugmentation(Intervention):
    """Images are augmented from one step on, or until then."""

    name = "augmentation"

    def __init__(self, at_step: int, *, on: bool):
        super().__init__()
        self.at_step = at_step
        self.on = on

    def attach(self, body: Body) -> None:
        super().attach(body)
        body.augments = self.on == (self.at_step == 0)

    def before_update(self, step: int) -> Metrics:
        before = self.body.augments
        self.body.augments = self.on == (step >= self.at_step)
        return {"event/augmentation": float(self.on)} if self.body.augments != before else {}

    def state_dict(self) -> dict[str, Any]:
        return {"augments": self.body.augments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.body.augments = state["augments"]


# --- other weights, between updates ---


class ShrinkAndPerturb(Repeated):
    """theta <- alpha * theta + (1 - alpha) * phi, with phi freshly initialised, once an interval.

    With `alpha` None it is clip(1 - 2 * dormancy, alpha_min, alpha_max) of the actor's dormant
    ratio (DrM, arXiv 2310.19668, section 4.2), so a network that responds is barely touched and a
    dormant one is mostly renewed. Where the agent measures that ratio at every update, the last
    one counts and the interval's first update begins with this; elsewhere it ends with this, and
    its own hidden units at `threshold` count.

    scope "linear" (the official code's): weights and biases of the Linear layers of every network
    but the encoder. scope "all" (the paper's words): every layer, the encoder's and the
    normalisations' included (PPO's log std is none). Each network draws a phi of its own, a target
    as well. The optimizers begin anew with the networks it is for, the encoder too if it is for
    all (official).
    """

    name = "shrink_perturb"

    def __init__(
        self,
        every_steps: int,
        *,
        alpha: float | None = None,
        alpha_min: float = 0.2,
        alpha_max: float = 1.0,
        scope: str = "linear",
        threshold: float = 0.025,
        networks: Sequence[str] | None = None,
        weights: torch.Generator,
    ):
        super().__init__(every_steps, networks=networks, weights=weights)
        if alpha_min > alpha_max:
            raise ConfigError(
                f"alpha_min: expected at most alpha_max = {alpha_max}, received {alpha_min}."
            )
        self.alpha = alpha
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.scope = scope
        self.threshold = threshold

    def before_update(self, step: int) -> Metrics:
        if not self.timer.is_due(step):
            return {}
        if self.alpha is not None:
            return self._apply(step, torch.tensor(self.alpha))
        if self.body.dormancy is not None:
            return self._apply(step, self._keep(self.body.dormancy))
        return {}

    def wants(self, step: int) -> bool:
        return self.timer.is_due(step)

    def after_update(self, step: int, units: Mapping[str, list[Tensor]]) -> Metrics:
        return self._apply(step, self._keep(dormant_ratio(units["actor"], self.threshold)))

    def _keep(self, dormancy: Tensor) -> Tensor:
        """alpha."""
        return (1.0 - 2.0 * dormancy).clamp(self.alpha_min, self.alpha_max)

    @torch.no_grad()
    def _apply(self, step: int, alpha: Tensor) -> Metrics:
        self.timer.done(step)
        for name, network in self.body.networks.items():
            leader = self.body.targets.get(name, name)
            if not self.is_for(leader) or (self.scope == "linear" and name == "encoder"):
                continue
            fresh = self.body.fresh(name, self.weights)
            led = layers(self.body.networks[leader])
            for layer, new, own in zip(layers(network), layers(fresh), led, strict=True):
                learns = all(p.requires_grad for p in own.parameters())
                if learns and (self.scope == "all" or isinstance(layer, nn.Linear)):
                    for old, phi in zip(layer.parameters(), new.parameters(), strict=True):
                        old.mul_(alpha).add_(phi.to(old.device) * (1.0 - alpha))
        if self.networks is None:
            for optimizer in self.body.optimizers.values():
                optimizer.state.clear()
        for name in self._named():
            self.body.forget(self.body.networks[name].parameters())
        return {"event/perturbation_alpha": alpha}


class Reset(Repeated):
    """Heads, or only their last layers, begin anew once an interval (arXiv 2205.07802).

    layers "heads": the whole stacks of linear layers after encoder and trunk; "last": the layer
    that gives the output (PPO's log std stays). A target takes its leader's fresh weights, and the
    optimizers begin anew with what was reset. An injected head is a plain one from then on.
    """

    name = "reset"

    def __init__(
        self,
        every_steps: int,
        *,
        layers: str = "heads",
        networks: Sequence[str] | None = None,
        weights: torch.Generator,
    ):
        super().__init__(every_steps, networks=networks, weights=weights)
        self.layers = layers

    def before_update(self, step: int) -> Metrics:
        if not self.timer.is_due(step):
            return {}
        self.timer.done(step)
        for name in self._named():
            for network in self.body.with_targets(name):
                for head in injected_heads(network):
                    head.retire()
            fresh = self.body.fresh(name, self.weights)
            for network in self.body.with_targets(name):
                for layer, new in zip(self._reset(network), self._reset(fresh), strict=True):
                    layer.load_state_dict(new.state_dict())
            self.body.forget(
                p for layer in self._reset(self.body.networks[name]) for p in layer.parameters()
            )
        self.body.detach_targets()
        return {"event/reset": 1.0}

    def _reset(self, network: nn.Module) -> list[nn.Module]:
        """The layers that are reset."""
        found: list[nn.Module] = []
        for _, head in heads(network):
            own = list(layers(head))
            if not any(isinstance(layer, nn.Conv2d) for layer in own):
                found += own if self.layers == "heads" else own[-1:]
        return found


class ReDo(Repeated):
    """Dormant units are recycled once an interval (arXiv 2302.12902, algorithm 1).

    A unit whose score is at most `threshold` gets fresh incoming weights and bias, its outgoing
    weights become 0, and the optimizer's moments of all these become 0. Targets get the same.
    Scores are of the update's own batch. Where the units are the encoder's outputs, what reads
    them in the other networks is cleared.
    """

    name = "redo"

    def __init__(
        self,
        every_steps: int,
        *,
        threshold: float = 0.1,
        networks: Sequence[str] | None = None,
        weights: torch.Generator,
    ):
        super().__init__(every_steps, networks=networks, weights=weights)
        self.threshold = threshold

    def wants(self, step: int) -> bool:
        return self.timer.is_due(step)

    @torch.no_grad()
    def after_update(self, step: int, units: Mapping[str, list[Tensor]]) -> Metrics:
        self.timer.done(step)
        recycled = torch.zeros(())
        for name in self._named():
            noted = units[name]
            if not noted:
                continue
            networks = self.body.with_targets(name)
            if not any(p.requires_grad for p in networks[0].parameters()):
                continue  # frozen
            fresh = hidden_layers(self.body.fresh(name, self.weights))
            for at, activation in enumerate(noted):
                dormant = unit_scores(activation) <= self.threshold
                recycled += dormant.sum().cpu()
                for network in networks:
                    self._recycle(name, hidden_layers(network)[at], fresh[at], dormant)
        return {"event/recycled_units": recycled}

    def _recycle(self, name: str, hidden: Hidden, fresh: Hidden, dormant: Tensor) -> None:
        for own, new in zip(_incoming(hidden), _incoming(fresh), strict=True):
            own[dormant] = new.to(own.device)[dormant]
            for moment in self.body.moments(own):
                moment[dormant] = 0.0
        readers = [hidden.reader] if hidden.reader else self.body.readers.get(name, ())
        for reader in readers:
            columns = dormant.repeat(hidden.halves)
            columns = columns.repeat(reader.weight.shape[1] // len(columns))  # of every pixel
            reader.weight[:, columns] = 0.0
            for moment in self.body.moments(reader.weight):
                moment[:, columns] = 0.0


def _incoming(hidden: Hidden) -> list[Tensor]:
    """The parameters that have a row for each unit."""
    makers = [hidden.maker] if hidden.norm is None else [hidden.maker, hidden.norm]
    return [parameter for layer in makers for parameter in layer.parameters()]


# --- by name ---


def chosen(config: RunConfig, seeds: Seeds) -> list[Intervention]:
    """The interventions that a config names, layers first, in an order of their own."""

    def weights(name: str) -> torch.Generator:
        return seeds.torch("interventions", "cpu", list(INTERVENTIONS).index(name))

    c = config
    make = {
        "layer_norm": lambda: LayerNorm(c.layer_norm.networks),
        "crelu": lambda: CReLU(c.crelu.networks),
        "spectral_norm": lambda: SpectralNorm(c.spectral_norm.networks),
        "injection": lambda: Injection(
            c.injection.at_step, networks=c.injection.networks, weights=weights("injection")
        ),
        "weight_decay": lambda: Pull(
            "weight_decay",
            c.weight_decay.strength,
            to_start=False,
            networks=c.weight_decay.networks,
        ),
        "l2_init": lambda: Pull(
            "l2_init", 2 * c.l2_init.strength, to_start=True, networks=c.l2_init.networks
        ),
        "freeze_encoder": lambda: FreezeEncoder(c.freeze_encoder.at_step),
        "augmentation": lambda: SwitchAugmentation(c.augmentation.at_step, on=c.augmentation.on),
        "shrink_perturb": lambda: ShrinkAndPerturb(
            c.shrink_perturb.every_steps,
            alpha=c.shrink_perturb.alpha,
            alpha_min=c.shrink_perturb.alpha_min,
            alpha_max=c.shrink_perturb.alpha_max,
            scope=c.shrink_perturb.scope,
            threshold=c.plasticity.dormant_threshold,
            networks=c.shrink_perturb.networks,
            weights=weights("shrink_perturb"),
        ),
        "reset": lambda: Reset(
            c.reset.every_steps,
            layers=c.reset.layers,
            networks=c.reset.networks,
            weights=weights("reset"),
        ),
        "redo": lambda: ReDo(
            c.redo.every_steps,
            threshold=c.redo.threshold,
            networks=c.redo.networks,
            weights=weights("redo"),
        ),
    }
    return [make[name]() for name in make if name in (config.intervention or ())]
