"""Measure the plasticity of an agent's networks during its own updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rlearly.core.types import Metrics
from rlearly.nn.custom import CustomNetwork
from rlearly.nn.layers import ACTIVATIONS, CReLU, RecordedStack
from rlearly.nn.surgery import recorded_parts, trained_parameters
from rlearly.plasticity import measures


class PlasticityMonitor:
    """Turns the activations, weights and gradients of an update into metrics.

    It measures at the first update in each `every_steps` agent steps (0: never), from the hidden
    activations of that update's own forward passes, per network and per head:

    - `dormant_ratio_*`: share of dormant units at `threshold` (tau of arXiv 2302.12902);
    - `fau_*`: share of active ReLU units (tanh and CReLU units are always active: no metric);
    - `effective_rank_*`, `stable_rank_*`, `threshold_rank_*`: of a head's last hidden layer;
    - `weight_norm_*`, `distance_*` (from the initial weights), `gradient_norm_*`: of an injected
      head, the part that learns.

    `critic_each_update` makes the agent measure the critic's FAU at every update, which the
    adaptive replay ratio needs. Measuring draws no random numbers and changes no weight.
    """

    def __init__(
        self, every_steps: int = 0, threshold: float = 0.025, *, critic_each_update: bool = False
    ):
        self.every_steps = every_steps
        self.threshold = threshold
        self.critic_each_update = critic_each_update
        self.intervals_done = -1
        self.initial_weights: dict[str, dict[str, Tensor]] = {}

    def start_from(self, networks: Mapping[str, nn.Module], *, taken_over: bool = False) -> None:
        """Remember the networks' weights as the initial ones, for `distance_*`.

        `taken_over`: they are another run's, and not those that the seed draws.
        """
        self.taken_over = taken_over
        if self.every_steps:
            self.initial_weights = {
                name: {key: p.detach().clone() for key, p in network.named_parameters()}
                for name, network in networks.items()
            }

    def is_due(self, step: int) -> bool:
        return self.every_steps > 0 and step // self.every_steps > self.intervals_done

    def read(
        self,
        networks: Mapping[str, nn.Module],
        activations: Mapping[str, list[Tensor]],
        *,
        step: int,
    ) -> Metrics:
        """All metrics of these networks; `activations`: of each, in forward order."""
        self.intervals_done = step // self.every_steps
        metrics: dict[str, Tensor] = {}
        for name, network in networks.items():
            trained = trained_parameters(network)
            if not trained:
                continue
            parameters = list(trained.values())
            initial = [self.initial_weights[name][key] for key in trained]
            metrics[f"weight_norm_{name}"] = measures.weight_norm(parameters)
            metrics[f"distance_{name}"] = measures.weight_distance(parameters, initial)
            metrics[f"gradient_norm_{name}"] = measures.gradient_norm(parameters)
            metrics |= self._of_activations(name, network, activations[name])
        return {f"plasticity/{name}": value for name, value in metrics.items()}

    def _of_activations(
        self, name: str, network: nn.Module, activations: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        metrics = self._unit_shares(name, network, activations)
        parts = dict(recorded_parts(network))
        heads = [part_name for part_name in parts if not part_name.startswith("fusion_")]
        remaining = iter(activations)
        for part_name, part in parts.items():
            own = [next(remaining) for _ in range(_count_recorded(part))]
            if not own:
                continue
            label = name if heads == [part_name] else f"{name}_{part_name}"
            if label != name:
                metrics |= self._unit_shares(label, part, own)
            singular = measures.singular_values(own[-1])
            metrics[f"effective_rank_{label}"] = measures.effective_rank(singular)
            metrics[f"stable_rank_{label}"] = measures.stable_rank(singular)
            metrics[f"threshold_rank_{label}"] = measures.threshold_rank(singular)
        return metrics

    def _unit_shares(
        self, name: str, part: nn.Module, activations: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        if not activations:
            return {}
        shares = {f"dormant_ratio_{name}": measures.dormant_ratio(activations, self.threshold)}
        if all(_can_be_inactive(recorded) for _, recorded in recorded_parts(part)):
            shares[f"fau_{name}"] = measures.active_fraction(activations)
        return shares

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"intervals_done": self.intervals_done}
        if self.taken_over:  # else the seed draws them again
            state["initial_weights"] = self.initial_weights
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.intervals_done = state["intervals_done"]
        if "initial_weights" not in state:
            return
        self.taken_over = True
        for name, weights in state["initial_weights"].items():
            for key, weight in weights.items():
                self.initial_weights[name][key].copy_(weight)


def _count_recorded(part: RecordedStack | CustomNetwork) -> int:
    """How many tensors a forward pass of a part records."""
    if isinstance(part, CustomNetwork):
        return part.recorded
    return sum(isinstance(layer, ACTIVATIONS) for layer in part)


def _can_be_inactive(part: RecordedStack | CustomNetwork) -> bool:
    """Whether the units of a part are ReLUs: tanh and CReLU units are always active."""
    if isinstance(part, CustomNetwork):
        return part.has_relu_only or not part.recorded
    return not {type(layer) for layer in part} & {nn.Tanh, CReLU}
