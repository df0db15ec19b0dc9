"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlearly.plasticity.interventions.base import Intervention, ModulesView, _owned

# --- other gradients ---


class WeightRegularizer(Intervention):
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

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        if self.to_start:
            self.start = {
                name: [p.detach().clone() for p in modules.networks[name].parameters()]
                for name in self._named()
            }
        for optimizer in modules.optimizers.values():
            owned = _owned(optimizer)
            pulled = []
            for name in self._named():
                parameters = list(modules.networks[name].parameters())
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
