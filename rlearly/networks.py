"""The networks. They know no losses and draw no global randomness."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.nn.utils import skip_init

from rlearly.augment import as_input


def orthogonal_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer as DrQ-v2 does: orthogonal weights, zero bias; identity LayerNorm.

    Gain sqrt(2) for convolutions and 1 for linear layers.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
        weight = torch.empty(module.weight.shape, device=module.weight.device)
        nn.init.orthogonal_(weight, gain, generator=generator)
        with torch.no_grad():
            module.weight.copy_(weight)  # whatever its memory format
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        identity_(module)


def identity_(module: nn.Module) -> None:
    """Let a normalisation scale by 1 and shift by 0; leaves other layers alone."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def fan_in_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one linear layer as torch and CleanRL do: weights and bias uniform in
    +-1 / sqrt(inputs)."""
    if isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        with torch.no_grad():
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
    else:
        identity_(module)


def layers(network: nn.Module) -> Iterator[nn.Module]:
    """Every layer of a network that holds weights."""
    kinds = nn.Conv2d | nn.Linear | nn.LayerNorm | nn.GroupNorm
    return (m for m in network.modules() if isinstance(m, kinds))


Initialiser = Callable[[nn.Module, torch.Generator], None]
"""Gives one layer fresh weights."""


def initialise_(
    network: nn.Module, generator: torch.Generator, one: Initialiser = orthogonal_
) -> None:
    """Give every layer of a network fresh weights."""
    for layer in layers(network):
        one(layer, generator)


class CReLU(nn.Module):
    """[B, N, ...] -> [B, 2N, ...]: relu(x) beside relu(-x), so no unit is silent for long.

    arXiv 1603.05201, against the loss of plasticity in arXiv 2303.07507.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([x, -x], dim=1))


ACTIVATIONS = (nn.ReLU, nn.Tanh, CReLU)


class Recording(nn.Sequential):
    """A Sequential that can note the outputs of its hidden units while it computes.

    A CReLU unit is noted as what its two halves are together, |x|.
    """

    def forward(self, x: Tensor, record: list[Tensor] | None = None) -> Tensor:
        for layer in self:
            x = layer(x)
            if record is not None and isinstance(layer, ACTIVATIONS):
                record.append(_joined(x) if isinstance(layer, CReLU) else x)
        return x

    def refill(self, parts: list[nn.Module]) -> None:
        """Hold these layers instead."""
        self._modules.clear()
        self.extend(parts)


def _joined(halves: Tensor) -> Tensor:
    """CReLU's [B, 2N, ...] as |x| [B, N, ...]."""
    one, two = halves.chunk(2, dim=1)
    return one + two


class SpectralLinear(nn.Linear):
    """A linear layer whose weight is divided by its largest singular value.

    That value is estimated by power iteration (arXiv 1802.05957, algorithm 1), which moves on by
    `iterate` alone, once a gradient step, so acting and evaluating change nothing. Gradients pass
    through the division.
    """

    FIRST_ITERATIONS = 20

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", torch.ones(outputs))
        self.register_buffer("right", torch.ones(inputs))

    def reset_parameters(self) -> None:
        """Nothing, which is all that must happen here: torch would draw from its global stream."""

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Come nearer to the largest singular value."""
        for _ in range(times):
            self.right.copy_(nn.functional.normalize(self.weight.T @ self.left, dim=0, eps=1e-12))
            self.left.copy_(nn.functional.normalize(self.weight @ self.right, dim=0, eps=1e-12))

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Estimate afresh: the weights are not those that the estimate was of."""
        self.left.copy_(torch.linspace(1.0, 2.0, len(self.left)))  # orthogonal to few things
        self.iterate(self.FIRST_ITERATIONS)

    def forward(self, x: Tensor) -> Tensor:
        largest = self.left @ (self.weight @ self.right)
        return nn.functional.linear(x, self.weight / largest.clamp(min=1e-12), self.bias)


class Injected(nn.Module):
    """A head that can be given a second, unworn one in mid-training (arXiv 2305.15555, section 3).

    Until `inject` it is `base`. From then on its output is base(x) + fresh(x) - anchor(x), where
    only `fresh` learns and `anchor` is what `fresh` was at that moment: the output does not change
    by injecting, nor does the number of weights that learn. Room for all three is there from the
    beginning, so a checkpoint has one shape.
    """

    def __init__(self, base: Recording):
        super().__init__()
        self.base = base
        self.fresh = copy.deepcopy(base)
        self.anchor = copy.deepcopy(base)
        self.active = False
        self._set_learning()

    @property
    def learning(self) -> Recording:
        """The part that gradients change."""
        return self.fresh if self.active else self.base

    def _set_learning(self) -> None:
        for part in (self.base, self.fresh, self.anchor):
            part.requires_grad_(part is self.learning)

    def inject(self, fresh: Recording) -> None:
        """Go on with these weights; a target with the same ones as its leader."""
        self.fresh.load_state_dict(fresh.state_dict())
        self.anchor.load_state_dict(fresh.state_dict())
        self.active = True
        self._set_learning()

    def retire(self) -> None:
        """Be a plain head again: the part that has been learning."""
        self.base.load_state_dict(self.learning.state_dict())
        self.active = False
        self._set_learning()

    def forward(self, x: Tensor, record: list[Tensor] | None = None) -> Tensor:
        if not self.active:
            return self.base(x, record)
        return self.base(x) + self.fresh(x, record) - self.anchor(x)

    def get_extra_state(self) -> dict[str, bool]:
        return {"active": self.active}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.active = state["active"]
        self._set_learning()


def heads(network: nn.Module, name: str = "") -> Iterator[tuple[str, Recording]]:
    """Each stack of a network that notes its hidden units, in the order of computing, by name.

    Of an injected head it is the part that learns.
    """
    if isinstance(network, Injected):
        yield name, network.learning
    elif isinstance(network, Recording):
        yield name, network
    else:
        for child_name, child in network.named_children():
            yield from heads(child, child_name)


@dataclass(frozen=True)
class Hidden:
    """One layer of hidden units: the weights that make them and those that read them.

    `reader` is None where the units are the network's output. `halves`: how many outputs each unit
    has (two by CReLU), the first ones of all units before the second ones.
    """

    maker: nn.Linear | nn.Conv2d
    norm: nn.LayerNorm | nn.GroupNorm | None
    reader: nn.Linear | nn.Conv2d | None
    halves: int

    @property
    def units(self) -> int:
        return self.maker.weight.shape[0]


def hidden_layers(network: nn.Module) -> list[Hidden]:
    """The layers of hidden units of a network: one for each entry that it records, in order."""
    found = []
    for _, head in heads(network):
        maker, norm = None, None
        parts = list(head)
        for at, layer in enumerate(parts):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                maker, norm = layer, None
            elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                norm = layer
            elif isinstance(layer, ACTIVATIONS) and maker is not None:
                after = (p for p in parts[at:] if isinstance(p, nn.Linear | nn.Conv2d))
                halves = 2 if isinstance(layer, CReLU) else 1
                found.append(Hidden(maker, norm, next(after, None), halves))
    return found


# --- other layers in a network's place, before its weights are drawn ---


def normalise_hidden(network: nn.Module) -> None:
    """Put a LayerNorm before every activation; over channels and pixels in convolutions."""
    for _, head in heads(network):
        parts: list[nn.Module] = []
        for layer in head:
            if isinstance(layer, ACTIVATIONS):
                outputs = next(p for p in reversed(parts) if isinstance(p, nn.Linear | nn.Conv2d))
                size = outputs.weight.shape[0]
                conv = isinstance(outputs, nn.Conv2d)
                parts.append(nn.GroupNorm(1, size) if conv else nn.LayerNorm(size))
            parts.append(layer)
        head.refill(parts)


def double_hidden(network: nn.Module) -> None:
    """Put CReLU in the place of every ReLU, and let what reads it take twice as many inputs."""
    for _, head in heads(network):
        parts: list[nn.Module] = []
        doubled = False
        for layer in head:
            if doubled and isinstance(layer, nn.Linear):
                layer = skip_init(nn.Linear, 2 * layer.in_features, layer.out_features)
            elif doubled and isinstance(layer, nn.Conv2d):
                size, stride = layer.kernel_size, layer.stride
                inputs, outputs = 2 * layer.in_channels, layer.out_channels
                layer = skip_init(nn.Conv2d, inputs, outputs, size, stride=stride)
            elif isinstance(layer, nn.ReLU):
                layer, doubled = CReLU(), True
            parts.append(layer)
        head.refill(parts)
    if isinstance(network, PixelEncoder):
        network.features *= 2
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def bound_hidden(network: nn.Module) -> None:
    """Divide the weights of the linear layers that make hidden units by their spectral norm."""
    for _, head in heads(network):
        linear = [layer for layer in head if isinstance(layer, nn.Linear)]
        bounded: list[nn.Module] = []
        for layer in head:
            if isinstance(layer, nn.Linear) and layer is not linear[-1]:
                bounded.append(SpectralLinear(layer.in_features, layer.out_features))
            else:
                bounded.append(layer)
        head.refill(bounded)


def make_injectable(network: nn.Module) -> None:
    """Let every head of linear layers take a plasticity injection."""
    for name, child in list(network.named_children()):
        if isinstance(child, Recording):
            if not any(isinstance(layer, nn.Conv2d) for layer in child):
                setattr(network, name, Injected(child))
        else:
            make_injectable(child)


def parameters_in_use(network: nn.Module) -> dict[str, nn.Parameter]:
    """By name, without the parts of injectable heads that do not learn (yet, or any more)."""
    idle = {
        id(p)
        for head in injected_heads(network)
        for part in (head.base, head.fresh, head.anchor)
        if part is not head.learning
        for p in part.parameters()
    }
    return {name: p for name, p in network.named_parameters() if id(p) not in idle}


def spectral_layers(network: nn.Module) -> list[SpectralLinear]:
    """The layers whose spectral norm is being followed."""
    return [m for m in network.modules() if isinstance(m, SpectralLinear)]


def injected_heads(network: nn.Module) -> list[Injected]:
    """The heads that can take an injection, or have."""
    return [m for m in network.modules() if isinstance(m, Injected)]


# --- the networks ---


def mlp(inputs: int, hidden: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> Recording:
    """Linear - ReLU - Linear - ReLU - Linear, or another activation in the ReLUs' place."""
    return Recording(
        skip_init(nn.Linear, inputs, hidden),
        activation(),
        skip_init(nn.Linear, hidden, hidden),
        activation(),
        skip_init(nn.Linear, hidden, outputs),
    )


def trunk(inputs: int, outputs: int) -> nn.Sequential:
    """Linear - LayerNorm - Tanh: from the encoder's features to a few numbers."""
    return nn.Sequential(skip_init(nn.Linear, inputs, outputs), nn.LayerNorm(outputs), nn.Tanh())


class PixelEncoder(nn.Module):
    """uint8 [B, C, H, W] -> float [B, features]: four 3x3 convolutions, strides 2, 1, 1, 1."""

    def __init__(self, shape: tuple[int, ...], channels: int):
        super().__init__()
        self.convolutions = Recording(
            skip_init(nn.Conv2d, shape[0], channels, 3, stride=2),
            nn.ReLU(inplace=True),
            skip_init(nn.Conv2d, channels, channels, 3),
            nn.ReLU(inplace=True),
            skip_init(nn.Conv2d, channels, channels, 3),
            nn.ReLU(inplace=True),
            skip_init(nn.Conv2d, channels, channels, 3),
            nn.ReLU(inplace=True),
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        height, width = ((side - 3) // 2 + 1 - 6 for side in shape[1:])
        self.features = channels * height * width

    def forward(self, obs: Tensor, record: list[Tensor] | None = None) -> Tensor:
        return self.convolutions(as_input(obs), record).flatten(1)


class VectorEncoder(nn.Module):
    """float [B, D] as it is: a state needs no encoder."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.features = math.prod(shape)

    def forward(self, obs: Tensor, record: list[Tensor] | None = None) -> Tensor:
        return obs.flatten(1)


def is_image(observation: Box) -> bool:
    """True for uint8 [C, H, W] observations."""
    return observation.dtype == "uint8" and len(observation.shape) == 3


def encoder_for(observation: Box, channels: int) -> PixelEncoder | VectorEncoder:
    """The encoder that fits an observation space."""
    if is_image(observation):
        return PixelEncoder(observation.shape, channels)
    return VectorEncoder(observation.shape)


class Actor(nn.Module):
    """features [B, F] -> mean action [B, A] in (-1, 1)."""

    def __init__(self, features: int, actions: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.trunk = trunk(features, feature_dim)
        self.policy = mlp(feature_dim, hidden_dim, actions)

    def forward(
        self,
        features: Tensor,
        record: list[Tensor] | None = None,
        ends: list[Tensor] | None = None,
    ) -> Tensor:
        """With `ends`, append the trunk's linear output before LayerNorm and the output layer's
        before tanh: DrM's code measures the dormancy of these beside the hidden units'.
        """
        linear, norm, squash = self.trunk
        projected = linear(features)
        output = self.policy(squash(norm(projected)), record)
        if ends is not None:
            ends += [projected, output]
        return torch.tanh(output)


class Critic(nn.Module):
    """features [B, F], action [B, A] -> two estimates of Q, each [B, 1]."""

    def __init__(self, features: int, actions: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.trunk = trunk(features, feature_dim)
        self.q1 = mlp(feature_dim + actions, hidden_dim, 1)
        self.q2 = mlp(feature_dim + actions, hidden_dim, 1)

    def forward(
        self, features: Tensor, action: Tensor, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.trunk(features), action], dim=-1)
        return self.q1(joined, record), self.q2(joined, record)


class Value(nn.Module):
    """features [B, F] -> V [B, 1], through a trunk of its own."""

    def __init__(self, features: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.trunk = trunk(features, feature_dim)
        self.v = mlp(feature_dim, hidden_dim, 1)

    def forward(self, features: Tensor, record: list[Tensor] | None = None) -> Tensor:
        return self.v(self.trunk(features), record)


class StateActor(nn.Module):
    """state [B, D] -> `outputs` numbers [B, outputs], unbounded."""

    def __init__(self, features: int, outputs: int, hidden_dim: int):
        super().__init__()
        self.policy = mlp(features, hidden_dim, outputs)

    def forward(self, features: Tensor, record: list[Tensor] | None = None) -> Tensor:
        return self.policy(features, record)


class StateCritic(nn.Module):
    """state [B, D], action [B, A] -> two estimates of Q, each [B, 1]."""

    def __init__(self, features: int, actions: int, hidden_dim: int):
        super().__init__()
        self.q1 = mlp(features + actions, hidden_dim, 1)
        self.q2 = mlp(features + actions, hidden_dim, 1)

    def forward(
        self, features: Tensor, action: Tensor, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([features, action], dim=-1)
        return self.q1(joined, record), self.q2(joined, record)


class GaussianActor(nn.Module):
    """state [B, D] -> mean [B, A] and log std [A], which no state changes; tanh layers."""

    def __init__(self, features: int, actions: int, hidden_dim: int):
        super().__init__()
        self.policy = mlp(features, hidden_dim, actions, nn.Tanh)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(
        self, features: Tensor, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.policy(features, record), self.log_std


class StateValue(nn.Module):
    """state [B, D] -> V [B], with tanh layers."""

    def __init__(self, features: int, hidden_dim: int):
        super().__init__()
        self.v = mlp(features, hidden_dim, 1, nn.Tanh)

    def forward(self, features: Tensor, record: list[Tensor] | None = None) -> Tensor:
        return self.v(features, record)[:, 0]
