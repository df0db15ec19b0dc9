"""Adam, gradient steps and target network updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class FlatParameters:
    """Parameters as views of one tensor, `values`, and their gradients as views of `gradients`."""

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self.values = torch.zeros(sum(p.numel() for p in self.parameters))
        self.gradients = torch.zeros_like(self.values)
        self.gather()

    def gather(self) -> None:
        """Make the parameters views again if something has moved them in memory."""
        views = zip(*map(self.parts, (self.values, self.gradients)), strict=True)
        for parameter, (value, gradient) in zip(self.parameters, views, strict=True):
            if parameter.data_ptr() != value.data_ptr():
                parameter.data = value.copy_(parameter.detach())
            parameter.grad = gradient

    def parts(self, whole: Tensor) -> list[Tensor]:
        """The views of a tensor like `values`, one per parameter."""
        split = whole.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(split, self.parameters, strict=True)]

    def joined(self, tensors: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A copy of tensors like the parameters as one tensor, and its views."""
        whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return whole, self.parts(whole)


class Adam:
    """Adam (arXiv 1412.6980) by torch's fused kernel, one call per step.

    Same weights, checkpoints, `state`, `param_groups` and hooks as `torch.optim.Adam`, without its
    overhead: 5 % of a state agent's update, and two seconds of start-up to import its compiler.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": lr, "betas": betas, "eps": eps}
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._steps: Tensor | None = None  # [parameters]; `state` holds its elements
        self._all: list[list[Tensor]] = []  # steps and moments, while complete
        self._flat: FlatParameters | None = None  # the layout of `_all`
        self._before: list[Callable[..., None]] = []
        self._after: list[Callable[..., None]] = []

    def register_step_pre_hook(self, hook: Callable[..., None]) -> None:
        """Call `hook(self)` before each step; it may change gradients."""
        self._before.append(hook)

    def register_step_post_hook(self, hook: Callable[..., None]) -> None:
        """Call `hook(self)` after each step."""
        self._after.append(hook)

    @torch.no_grad()
    def step(self, flat: FlatParameters | None = None) -> None:
        """Update every parameter that has a gradient.

        `flat`: the layout of all parameters; they are then updated as one tensor if all have taken
        the same number of steps.
        """
        for hook in self._before:
            hook(self)
        (group,) = self.param_groups
        moved = group["params"] if flat else [p for p in group["params"] if p.grad is not None]
        if moved:
            steps, first, second = self._moments_of(moved, flat)
            if flat and len(steps) == 1:
                moved, gradients = [flat.values], [flat.gradients]
            else:
                gradients = [p.grad for p in moved]
            torch._fused_adam_(  # pyright: ignore
                moved,
                gradients,
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
        for hook in self._after:
            hook(self)

    def _moments_of(self, moved: list[Tensor], flat: FlatParameters | None) -> list[list[Tensor]]:
        """Incremented steps, first and second moments: per parameter, or of `flat` as one."""
        every = len(moved) == len(self.param_groups[0]["params"])
        known = self._all and self._flat is flat and len(self.state) == len(moved)
        if self._steps is not None and every and known:
            self._steps.add_(1)
            return self._all
        states = [self.state.get(p) or self._begin(p) for p in moved]
        found = [[s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq")]
        torch._foreach_add_(found[0], 1)  # pyright: ignore
        if flat and self._steps is not None and bool((self._steps == self._steps[0]).all()):
            found = [[self._steps[0]], *([self._join(n, flat)] for n in ("exp_avg", "exp_avg_sq"))]
        self._all, self._flat = found if every else [], flat
        return found

    def _join(self, name: str, flat: FlatParameters) -> Tensor:
        """Lay out a moment of all parameters in one tensor, with views of it in `state`."""
        whole, parts = flat.joined(self.state[p][name] for p in flat.parameters)
        for parameter, part in zip(flat.parameters, parts, strict=True):
            self.state[parameter][name] = part
        return whole

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        indices = {p: at for at, p in enumerate(self.param_groups[0]["params"])}
        if self._steps is None:
            self._steps = torch.zeros(len(indices), device=parameter.device)
        self._all = []
        self.state[parameter] = {
            "step": self._steps[indices[parameter]].zero_(),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        return self.state[parameter]

    def state_dict(self) -> dict[str, Any]:
        """State by the index of the parameter, as torch's."""
        (group,) = self.param_groups
        indices = {parameter: at for at, parameter in enumerate(group["params"])}
        settings = {key: value for key, value in group.items() if key != "params"}
        return {
            "state": {indices[p]: dict(moments) for p, moments in self.state.items()},
            "param_groups": [settings | {"params": list(indices.values())}],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a copy of `state`."""
        (group,), (saved,) = self.param_groups, state["param_groups"]
        group.update({key: saved[key] for key in group if key != "params"})
        self.load_moments(state)

    @torch.no_grad()
    def load_moments(self, state: Mapping[str, Any]) -> None:
        """Continue from a copy of the steps and moments in `state`, with one's own settings."""
        (group,) = self.param_groups
        self.state.clear()
        for at, moments in state["state"].items():
            own = self._begin(group["params"][at])
            for name, moment in moments.items():
                own[name].copy_(moment)  # keeps the parameter's memory format


def adam(network: nn.Module, lr: float, eps: float = 1e-8) -> Adam:
    """Adam over a whole network."""
    return Adam(network.parameters(), lr, eps=eps)


def optimize(loss: Tensor, *optimizers: Adam, max_norm: float | None = None) -> None:
    """Backpropagate into the parameters of these optimizers only, then step them.

    Frozen parameters are left unchanged. `max_norm` limits the norm of the whole gradient.
    """
    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter in owned:
        parameter.grad = None  # also of parameters frozen since
    owned = [p for p in owned if p.requires_grad]
    loss.backward(inputs=owned)
    if max_norm is not None:
        nn.utils.clip_grad_norm_(owned, max_norm)
    for optimizer in optimizers:
        optimizer.step()


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Compute no gradients for these parameters inside this context."""
    learning = [p for p in parameters if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@torch.no_grad()
def polyak_update_(target: Sequence[Tensor], online: Sequence[Tensor], tau: float) -> None:
    """target <- (1 - tau) target + tau online."""
    torch._foreach_lerp_(list(target), list(online), tau)  # pyright: ignore
