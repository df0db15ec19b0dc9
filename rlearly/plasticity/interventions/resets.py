"""Interventions that replace weights between updates: shrink and perturb, and resets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlearly.config.interventions import ResetConfig, ShrinkPerturbConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import Metrics
from rlearly.nn.custom import custom_networks
from rlearly.nn.networks import CustomEncoder, layers
from rlearly.nn.surgery import injected_heads, recorded_stacks
from rlearly.plasticity.interventions.base import PeriodicIntervention
from rlearly.plasticity.measures import dormant_ratio


class ShrinkAndPerturb(PeriodicIntervention):
    """theta <- alpha * theta + (1 - alpha) * phi once per interval, with phi freshly initialised.

    With `alpha` None, alpha = clip(1 - 2 * dormancy, alpha_min, alpha_max) of the actor's dormant
    ratio (DrM, arXiv 2310.19668, section 4.2): a responsive network is barely changed, a dormant
    one is mostly replaced. If the agent measures that ratio at every update, the last value is
    used, and the perturbation happens before the interval's first update. Otherwise it happens
    after that update, with the dormant ratio of the update's own activations at the monitor's
    threshold.

    scope "linear" (the official code): weights and biases of the Linear layers of every network
    except the encoder. scope "all" (the paper's text): every layer, encoder and normalisation
    layers included (PPO's log std is not a layer). Each network, including each target network,
    draws its own phi. The optimizer state of the selected networks is reset; if all are selected,
    that includes the encoder's (official code).

    Raises:
        ConfigError: alpha_min exceeds alpha_max.
    """

    name = "shrink_perturb"
    config: ShrinkPerturbConfig

    def __init__(self, config: ShrinkPerturbConfig, *, weights: torch.Generator):
        super().__init__(config, weights=weights)
        if config.alpha_min > config.alpha_max:
            raise ConfigError(
                f"alpha_min: expected at most alpha_max = {config.alpha_max}, received "
                f"{config.alpha_min}."
            )

    def before_update(self, step: int) -> Metrics:
        if not self.is_due(step):
            return {}
        if self.config.alpha is not None:
            return self._apply(step, torch.tensor(self.config.alpha))
        if self.modules.dormancy is not None:
            return self._apply(step, self._alpha(self.modules.dormancy))
        return {}

    def needs_activations(self, step: int) -> bool:
        return self.is_due(step)

    def after_update(self, step: int, activations: Mapping[str, list[Tensor]]) -> Metrics:
        policy = "actor" if "actor" in activations else "critic"  # Q-learning acts by its critic
        if not activations[policy]:
            raise ConfigError(
                f"shrink_perturb.alpha: the share depends on the {policy}'s dormant units, and the "
                "network that agent.network makes has no activation layer that can be measured "
                "(an nn.ReLU, nn.GELU, ...); set shrink_perturb.alpha, or use such layers."
            )
        dormancy = dormant_ratio(activations[policy], self.modules.monitor.threshold)
        return self._apply(step, self._alpha(dormancy))

    def _alpha(self, dormancy: Tensor) -> Tensor:
        return (1.0 - 2.0 * dormancy).clamp(self.config.alpha_min, self.config.alpha_max)

    @torch.no_grad()
    def _apply(self, step: int, alpha: Tensor) -> Metrics:
        self.mark_done(step)
        whole = self.config.scope == "all"
        for name, network in self.modules.networks.items():
            online = self.modules.targets.get(name, name)
            if not self.applies_to(online) or (name == "encoder" and not whole):
                continue
            fresh = self.modules.fresh_copy(name, self.weights)
            learning = layers(self.modules.networks[online])
            for layer, new, own in zip(layers(network), layers(fresh), learning, strict=True):
                trained = all(p.requires_grad for p in own.parameters())
                if trained and (whole or isinstance(layer, nn.Linear)):
                    for old, phi in zip(layer.parameters(), new.parameters(), strict=True):
                        old.mul_(alpha).add_(phi.to(old.device) * (1.0 - alpha))
        if self.config.networks is None:
            for optimizer in self.modules.optimizers.values():
                optimizer.state.clear()
        for name in self.selected():
            self.modules.reset_optimizer_state(self.modules.networks[name].parameters())
        return {"event/perturbation_alpha": alpha}


class ResetLayers(PeriodicIntervention):
    """Gives heads, or only their last layers, fresh weights once per interval (arXiv 2205.07802).

    layers "heads": all linear layers after encoder and trunk, and networks of the user's own as a
    whole; "last": output layers alone (PPO's log std stays). A target takes the fresh weights of
    its online network, and the optimizer state of what was reset is cleared. An injected head
    becomes a plain one.
    """

    name = "reset"
    config: ResetConfig

    def __init__(self, config: ResetConfig, *, weights: torch.Generator):
        super().__init__(config, weights=weights)
        self.needs_stacks = config.layers == "last"

    def before_update(self, step: int) -> Metrics:
        if not self.is_due(step):
            return {}
        self.mark_done(step)
        for name in self.selected():
            for network in self.modules.online_and_targets(name):
                for head in injected_heads(network):
                    head.retire()
            fresh = self._reset_layers(self.modules.fresh_copy(name, self.weights))
            for network in self.modules.online_and_targets(name):
                for layer, new in zip(self._reset_layers(network), fresh, strict=True):
                    layer.load_state_dict(new.state_dict())
            self.modules.reset_optimizer_state(
                parameter
                for layer in self._reset_layers(self.modules.networks[name])
                for parameter in layer.parameters()
            )
        self.modules.freeze_targets()
        return {"event/reset": 1.0}

    def _reset_layers(self, network: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        if self.config.layers == "heads" and not isinstance(network, CustomEncoder):
            found += custom_networks(network)
        for _, head in recorded_stacks(network):
            own = list(layers(head))
            if not any(isinstance(layer, nn.Conv2d) for layer in own):
                found += own if self.config.layers == "heads" else own[-1:]
        return found
