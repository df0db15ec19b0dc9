"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlearly.core.types import Metrics
from rlearly.nn.surgery import (
    HiddenLayer,
    hidden_layers,
)
from rlearly.plasticity.measures import unit_scores

if TYPE_CHECKING:
    pass
from rlearly.plasticity.interventions.base import PeriodicIntervention


class ReDo(PeriodicIntervention):
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

    def needs_activations(self, step: int) -> bool:
        return self.timer.is_due(step)

    @torch.no_grad()
    def after_update(self, step: int, units: Mapping[str, list[Tensor]]) -> Metrics:
        self.timer.done(step)
        recycled = torch.zeros(())
        for name in self._named():
            noted = units[name]
            if not noted:
                continue
            networks = self.modules.online_and_targets(name)
            if not any(p.requires_grad for p in networks[0].parameters()):
                continue  # frozen
            fresh = hidden_layers(self.modules.fresh_copy(name, self.weights))
            for at, activation in enumerate(noted):
                dormant = unit_scores(activation) <= self.threshold
                recycled += dormant.sum().cpu()
                for network in networks:
                    self._recycle(name, hidden_layers(network)[at], fresh[at], dormant)
        return {"event/recycled_units": recycled}

    def _recycle(self, name: str, hidden: HiddenLayer, fresh: HiddenLayer, dormant: Tensor) -> None:
        for own, new in zip(_incoming(hidden), _incoming(fresh), strict=True):
            own[dormant] = new.to(own.device)[dormant]
            for moment in self.modules.optimizer_moments(own):
                moment[dormant] = 0.0
        readers = [hidden.reader] if hidden.reader else self.modules.readers.get(name, ())
        for reader in readers:
            columns = dormant.repeat(hidden.halves)
            columns = columns.repeat(reader.weight.shape[1] // len(columns))  # of every pixel
            reader.weight[:, columns] = 0.0
            for moment in self.modules.optimizer_moments(reader.weight):
                moment[:, columns] = 0.0


def _incoming(hidden: HiddenLayer) -> list[Tensor]:
    """The parameters that have a row for each unit."""
    makers = [hidden.maker] if hidden.norm is None else [hidden.maker, hidden.norm]
    return [parameter for layer in makers for parameter in layer.parameters()]
