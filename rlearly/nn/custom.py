"""A network of the user's own in the place of one of our stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlearly.core.errors import OURS, UserCodeFailed, raised
from rlearly.nn.layers import ACTIVATIONS, CReLU, Dropout, default_initialisation

ACTIVATION_LAYERS = (
    *ACTIVATIONS, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
"""Layers whose outputs are hidden units."""


class CustomNetwork(nn.Module):
    """Any module float32 [B, *inputs] -> float32 [B, outputs], with the calls of a RecordedStack.

    Hooks record the outputs of its activation layers (`ACTIVATION_LAYERS`); what it computes by
    functions, as `torch.relu`, is not seen. It is in training mode where gradients are computed,
    and in evaluation mode everywhere else: when it acts or is asked for a value, and as a target
    network. It computes in float32 at any precision of the run.

    Args:
        network: the module.
        make_another: makes the module again, with weights drawn from a generator.
    """

    def __init__(self, network: nn.Module, make_another: Callable[[torch.Generator], nn.Module]):
        super().__init__()
        self.network = network
        self.make_another = make_another
        self.recorded = 0
        """How many tensors a forward pass records; `count_recorded` finds out."""
        self._activations: list[Tensor] | None = None
        self.kinds = {type(m) for m in network.modules() if isinstance(m, ACTIVATION_LAYERS)}
        for module in network.modules():
            if isinstance(module, ACTIVATION_LAYERS):
                module.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self._activations is not None:
            if isinstance(module, CReLU):
                one, two = output.chunk(2, dim=1)
                output = one + two
            self._activations.append(output)

    @property
    def has_relu_only(self) -> bool:
        """Whether all recorded units are ReLUs, the only ones that can be inactive."""
        return self.recorded > 0 and self.kinds == {nn.ReLU}

    def count_recorded(self, inputs: Tensor) -> Tensor:
        """The output for some inputs, after a pass that finds out how many tensors are recorded."""
        found: list[Tensor] = []
        output = self._run(inputs, found)
        self.recorded = len(found)
        return output

    def forward(self, x: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        before = 0 if activations is None else len(activations)
        try:
            output = self._run(x.to(torch.float32), activations)
        except (*OURS, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the user's code may raise anything
            raise UserCodeFailed(
                f"agent.network: a {type(self.network).__name__} {raised(error)}"
            ) from error
        if activations is not None and len(activations) - before != self.recorded:
            raise UserCodeFailed(
                f"agent.network: a {type(self.network).__name__} called "
                f"{len(activations) - before} activation layers, and {self.recorded} when it was "
                "built",
                remedy="expected the same ones in every forward pass",
            )
        return output

    def _run(self, x: Tensor, activations: list[Tensor] | None) -> Tensor:
        learns = self.training and torch.is_grad_enabled()
        if self.network.training != learns:
            self.network.train(learns)
        self._activations = activations
        try:
            return self.network(x)
        finally:
            self._activations = None

    def draw_(self, weights: torch.Generator) -> None:
        """Draw new weights, as those of a new module."""
        self.network.load_state_dict(self.make_another(weights).state_dict())


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Layers that are made inside draw their weights from this stream, by torch's own rules.

    They use torch's global generator, which is seeded from the stream here and put back afterwards.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        with default_initialisation():
            yield
    finally:
        torch.set_rng_state(before)


def custom_networks(network: nn.Module) -> list[CustomNetwork]:
    """The parts of a network that are the user's own."""
    return [part for part in network.modules() if isinstance(part, CustomNetwork)]


def our_modules(network: nn.Module) -> Iterator[nn.Module]:
    """All modules of a network, without the inside of those that are the user's own."""
    yield network
    if not isinstance(network, CustomNetwork):
        for child in network.children():
            yield from our_modules(child)


def custom_buffers(networks: Sequence[nn.Module]) -> list[Tensor]:
    """The buffers of the user's own parts, such as the statistics of a BatchNorm."""
    return [b for net in networks for part in custom_networks(net) for b in part.buffers()]


@torch.no_grad()
def copy_buffers_(target: Sequence[Tensor], online: Sequence[Tensor]) -> None:
    """target <- online: a target network has the statistics of its online network."""
    for own, other in zip(target, online, strict=True):
        own.copy_(other)


def dropouts(networks: Sequence[nn.Module]) -> list[Dropout]:
    """Every Dropout of networks, without those of the user's own parts, which switch them."""
    return [m for network in networks for m in our_modules(network) if isinstance(m, Dropout)]


def draws_dropout(networks: Mapping[str, nn.Module]) -> bool:
    """Whether any network has a Dropout of ours, which needs a random stream."""
    return any(isinstance(m, Dropout) for net in networks.values() for m in net.modules())
