"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rlearly.core.types import Metrics
from rlearly.nn.layers import ACTIVATIONS, CReLU
from rlearly.nn.surgery import recorded_stacks, trained_parameters
from rlearly.plasticity.measures import (
    active_fraction,
    dormant_ratio,
    effective_rank,
    gradient_norm,
    singular_values,
    stable_rank,
    threshold_rank,
    weight_distance,
    weight_norm,
)


class PlasticityMonitor:
    """Reads the plasticity of networks from updates that happen anyway.

    At the first update in each `every_steps` agent steps (0: never) it has the hidden activations
    of that update's own forward passes noted, and turns them, the weights and the gradients into
    metrics, per network and per head:

    - `dormant_ratio_*`: share of dormant units at `threshold` (Sokar's definition);
    - `fau_*`: share of active units, of ReLUs (tanh and CReLU units are always active, and have
      none);
    - `effective_rank_*`, `stable_rank_*`, `threshold_rank_*`: of a head's last hidden layer;
    - `weight_norm_*`, `distance_*` (from the initial weights), `gradient_norm_*`: of an injected
      head, of the part that learns.

    With `critic_each_update` the critic's FAU is read at every update, which the adaptive replay
    ratio decides by. Reading draws nothing and changes nothing.
    """

    def __init__(
        self, every_steps: int = 0, threshold: float = 0.025, *, critic_each_update: bool = False
    ):
        self.every_steps = every_steps
        self.threshold = threshold
        self.critic_each_update = critic_each_update
        self.intervals_done = -1
        self.origin: dict[str, dict[str, Tensor]] = {}

    def start_from(self, networks: Mapping[str, nn.Module]) -> None:
        """Take these weights for the initial ones."""
        if self.every_steps:
            self.origin = {
                name: {key: p.detach().clone() for key, p in network.named_parameters()}
                for name, network in networks.items()
            }

    def is_due(self, step: int) -> bool:
        return self.every_steps > 0 and step // self.every_steps > self.intervals_done

    def read(
        self, networks: Mapping[str, nn.Module], units: Mapping[str, list[Tensor]], *, step: int
    ) -> Metrics:
        """All metrics of these networks; `units`: what each of them noted, in order."""
        self.intervals_done = step // self.every_steps
        metrics: dict[str, Tensor] = {}
        for name, network in networks.items():
            in_use = trained_parameters(network)
            if not in_use:
                continue
            parameters, origin = list(in_use.values()), self.origin[name]
            metrics[f"weight_norm_{name}"] = weight_norm(parameters)
            metrics[f"distance_{name}"] = weight_distance(
                parameters, [origin[key] for key in in_use]
            )
            metrics[f"gradient_norm_{name}"] = gradient_norm(parameters)
            metrics |= self._activity(name, network, units[name])
        return {f"plasticity/{name}": value for name, value in metrics.items()}

    def _activity(
        self, name: str, network: nn.Module, noted: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        metrics = self._shares(name, network, noted)
        parts = dict(recorded_stacks(network))
        only = [head for head in parts if not head.startswith("fusion_")]
        left = iter(noted)
        for head_name, head in parts.items():
            own = [next(left) for layer in head if isinstance(layer, ACTIVATIONS)]
            label = name if only == [head_name] else f"{name}_{head_name}"
            if label != name:
                metrics |= self._shares(label, head, own)
            singular = singular_values(own[-1])
            metrics[f"effective_rank_{label}"] = effective_rank(singular)
            metrics[f"stable_rank_{label}"] = stable_rank(singular)
            metrics[f"threshold_rank_{label}"] = threshold_rank(singular)
        return metrics

    def _shares(self, name: str, part: nn.Module, noted: Sequence[Tensor]) -> dict[str, Tensor]:
        shares = {f"dormant_ratio_{name}": dormant_ratio(noted, self.threshold)}
        hidden = [type(layer) for _, head in recorded_stacks(part) for layer in head]
        if nn.Tanh not in hidden and CReLU not in hidden:
            shares[f"fau_{name}"] = active_fraction(noted)
        return shares

    def state_dict(self) -> dict[str, Any]:
        return {"intervals_done": self.intervals_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.intervals_done = state["intervals_done"]
