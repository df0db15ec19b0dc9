"""ReDo: recycle dormant units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlearly.config.interventions import ReDoConfig
from rlearly.core.types import Metrics
from rlearly.nn.surgery import HiddenLayer, hidden_layers
from rlearly.plasticity.interventions.base import PeriodicIntervention
from rlearly.plasticity.measures import unit_scores


class ReDo(PeriodicIntervention):
    """Recycles dormant units once per interval (arXiv 2302.12902, algorithm 1).

    A unit with a score of at most `threshold` gets fresh incoming weights and bias, its outgoing
    weights become 0, and so do the optimizer's moments of all of these. Targets get the same.
    Scores come from the update's own batch. Where the units are the encoder's outputs, the weights
    that read them in other networks are cleared.
    """

    name = "redo"
    config: ReDoConfig
    needs_stacks = True

    def needs_activations(self, step: int) -> bool:
        return self.is_due(step)

    @torch.no_grad()
    def after_update(self, step: int, activations: Mapping[str, list[Tensor]]) -> Metrics:
        self.mark_done(step)
        recycled = torch.zeros(())
        for name in self.selected():
            networks = self.modules.online_and_targets(name)
            frozen = not any(p.requires_grad for p in networks[0].parameters())
            if frozen or not activations[name]:
                continue
            fresh = hidden_layers(self.modules.fresh_copy(name, self.weights))
            for at, activation in enumerate(activations[name]):
                dormant = unit_scores(activation) <= self.config.threshold
                recycled += dormant.sum().cpu()
                for network in networks:
                    self._recycle(name, hidden_layers(network)[at], fresh[at], dormant)
        return {"event/recycled_units": recycled}

    def _recycle(self, name: str, hidden: HiddenLayer, fresh: HiddenLayer, dormant: Tensor) -> None:
        for own, new in zip(_incoming(hidden), _incoming(fresh), strict=True):
            own[dormant] = new.to(own.device)[dormant]
            for moment in self.modules.optimizer_moments(own):
                moment[dormant] = 0.0
        readers = [hidden.outgoing] if hidden.outgoing else self.modules.readers.get(name, ())
        for reader in readers:
            columns = dormant.repeat(hidden.outputs_per_unit)
            columns = columns.repeat(reader.weight.shape[1] // len(columns))  # of every pixel
            reader.weight[:, columns] = 0.0
            for moment in self.modules.optimizer_moments(reader.weight):
                moment[:, columns] = 0.0


def _incoming(hidden: HiddenLayer) -> list[Tensor]:
    """The parameters that have a row for each unit."""
    layers = [hidden.incoming] if hidden.norm is None else [hidden.incoming, hidden.norm]
    return [parameter for layer in layers for parameter in layer.parameters()]
