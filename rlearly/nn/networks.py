"""The networks. They know no losses and draw no global randomness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from rlearly.core.spaces import PIXELS, VECTOR, is_fused, is_image
from rlearly.nn.augmentation import centred
from rlearly.nn.layers import CReLU, Dropout, LayerSpec, RecordedStack, Stack, skip_init


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


def inplace_relu() -> nn.ReLU:
    """A ReLU that takes no second piece of memory, whose first writing costs more than itself."""
    return nn.ReLU(inplace=True)


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    activation: Callable[[], nn.Module] = inplace_relu,
    *,
    dropout: float = 0.0,
    norm: bool = False,
) -> RecordedStack:
    """Linear - ReLU - Linear - ReLU - Linear, or another activation in the ReLUs' place.

    Dropout, if its probability is not 0, and then LayerNorm come before each activation.
    """

    def activated(size: int) -> list[nn.Module]:
        parts: list[nn.Module] = [Dropout(dropout)] if dropout else []
        return [*parts, *([nn.LayerNorm(size)] if norm else []), activation()]

    return RecordedStack(
        skip_init(nn.Linear, inputs, hidden),
        *activated(hidden),
        skip_init(nn.Linear, hidden, hidden),
        *activated(hidden),
        skip_init(nn.Linear, hidden, outputs),
    )


def small_mlp(inputs: int, hidden: int, outputs: int) -> RecordedStack:
    """Linear - ReLU - Linear."""
    return RecordedStack(
        skip_init(nn.Linear, inputs, hidden), inplace_relu(), skip_init(nn.Linear, hidden, outputs)
    )


class Trunk(Stack):
    """Linear - LayerNorm - Tanh: from the encoder's features [B, F] to a few numbers."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(skip_init(nn.Linear, inputs, outputs), nn.LayerNorm(outputs), nn.Tanh())

    def project(self, features: Tensor) -> Tensor:
        """The linear layer's output, in the weights' format."""
        layer: Any = self[0]
        weight = layer.weight.to(self.hidden_dtype_for(features) or layer.weight.dtype)
        output, _ = self.forward_layers(
            features, (LayerSpec(0, relu=False),), [weight, layer.bias], None
        )
        return output.to(layer.weight.dtype)

    def squash(self, projected: Tensor) -> Tensor:
        """What the other two layers make of it."""
        return self[2](self[1](projected))

    def forward(self, features: Tensor) -> Tensor:
        return self.squash(self.project(features))


class PixelEncoder(nn.Module):
    """uint8 [B, C, H, W] -> float [B, features]: four 3x3 convolutions, strides 2, 1, 1, 1.

    The features are hidden units, and come in the format that these compute in. Deviation: they are
    in the order of memory, a pixel's channels beside each other, where the official code has a
    channel's pixels beside each other; to the trunks that read them it is only another numbering.
    """

    vector = 0
    """Numbers that are observed beside the image."""

    def __init__(self, shape: tuple[int, ...], channels: int):
        super().__init__()
        self.convolutions = RecordedStack(
            skip_init(nn.Conv2d, shape[0], channels, 3, stride=2),
            inplace_relu(),
            skip_init(nn.Conv2d, channels, channels, 3),
            inplace_relu(),
            skip_init(nn.Conv2d, channels, channels, 3),
            inplace_relu(),
            skip_init(nn.Conv2d, channels, channels, 3),
            inplace_relu(),
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        height, width = ((side - 3) // 2 + 1 - 6 for side in shape[1:])
        self.units = channels * height * width

    @property
    def features(self) -> int:
        """Numbers that come out: a CReLU unit gives two."""
        doubled = any(isinstance(layer, CReLU) for layer in self.convolutions)
        return (1 + doubled) * self.units

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        """What is scaled by 1/255 is the first layer's weights, which are fewer than pixels."""
        stack, first = self.convolutions, cast(nn.Conv2d, self.convolutions[0])
        dtype = stack.hidden_dtype_for(obs) or first.weight.dtype
        images = centred(obs, dtype)
        if stack.layer_specs is None:
            maps = stack(images.div_(255.0), activations)
        else:
            weight, *rest = stack.layer_parameters()
            maps = stack.forward_with([(weight / 255.0).to(dtype), *rest], images, activations)
        return maps.permute(0, 2, 3, 1).flatten(1)


class VectorEncoder(nn.Module):
    """float [B, D] as it is: a state needs no encoder."""

    vector = 0

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.features = math.prod(shape)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return obs.flatten(1)


class FusedFeatures(NamedTuple):
    """Features of an image [B, F], and the vector that was observed with it [B, D]."""

    pixels: Tensor
    vector: Tensor

    def detach(self) -> FusedFeatures:
        return FusedFeatures(self.pixels.detach(), self.vector.detach())


Features = Tensor | FusedFeatures
"""What an encoder makes of observations, and every other network reads."""


class FusedEncoder(PixelEncoder):
    """{"pixels": uint8 [B, C, H, W], "vector": float [B, D]} -> Fused: the image is encoded.

    The vector goes on as it is, for the few numbers of a body would be lost among an image's
    thousands of features: each network adds them behind its own trunk (see `Fusion`).
    """

    def __init__(self, shape: tuple[int, ...], channels: int, vector: int):
        super().__init__(shape, channels)
        self.vector = vector

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, obs: Mapping[str, Tensor], activations: list[Tensor] | None = None
    ) -> FusedFeatures:
        return FusedFeatures(super().forward(obs[PIXELS], activations), obs[VECTOR])


class Fusion(nn.Module):
    """A trunk's output [B, T] and a vector [B, D] -> [B, T], as in DrM's official Adroit agent.

    Two stacks of one hidden layer: trunk + vector stack, and the joint stack of that sum.
    """

    def __init__(self, vector: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.vector = small_mlp(vector, hidden_dim, feature_dim)
        self.joint = small_mlp(feature_dim, hidden_dim, feature_dim)

    def forward(
        self,
        trunk: Tensor,
        vector: Tensor,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """With `ends`, append both stacks' outputs: DrM's code measures the dormancy of each."""
        added = self.vector(vector, activations)
        joint = self.joint(trunk + added, activations)
        if pre_activations is not None:
            pre_activations += [added, joint]
        return joint


class Head(nn.Module):
    """What actor, critic and value net begin with: a trunk of their own, and a fusion behind it.

    `vector`: numbers that are observed beside an image; 0: none, and no fusion.
    """

    def __init__(self, features: int, feature_dim: int, hidden_dim: int, vector: int):
        super().__init__()
        self.trunk = Trunk(features, feature_dim)
        self.fusion = Fusion(vector, feature_dim, hidden_dim) if vector else None

    def read(
        self,
        features: Features,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T], what the layers behind go on with; with `ends`, append the trunk's linear output
        before LayerNorm, and the fusion's."""
        image = features.pixels if isinstance(features, FusedFeatures) else features
        projected = self.trunk.project(image)
        if pre_activations is not None:
            pre_activations.append(projected)
        read = self.trunk.squash(projected)
        if self.fusion is None:
            return read
        assert isinstance(features, FusedFeatures)
        return self.fusion(read, features.vector, activations, pre_activations)


def encoder_for(observation: Any, channels: int) -> PixelEncoder | VectorEncoder:
    """The encoder that fits an observation space."""
    if is_fused(observation):
        pixels, vector = observation[PIXELS].shape, observation[VECTOR].shape
        return FusedEncoder(pixels, channels, vector[0])
    if is_image(observation):
        return PixelEncoder(observation.shape, channels)
    return VectorEncoder(observation.shape)


class Actor(Head):
    """features [B, F] -> mean action [B, A] in (-1, 1)."""

    def __init__(
        self, features: int, actions: int, feature_dim: int, hidden_dim: int, vector: int = 0
    ):
        super().__init__(features, feature_dim, hidden_dim, vector)
        self.policy = mlp(feature_dim, hidden_dim, actions)

    def forward(
        self,
        features: Features,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """With `ends`, append the trunk's linear output before LayerNorm, a fusion's outputs, and
        the output layer's before tanh: DrM's code measures the dormancy of these beside the hidden
        units'.
        """
        output = self.policy(self.read(features, activations, pre_activations), activations)
        if pre_activations is not None:
            pre_activations.append(output)
        return torch.tanh(output)


class Critic(Head):
    """features [B, F], action [B, A] -> two estimates of Q, each [B, 1].

    `dropout` and `norm`: of the heads' hidden layers (see `mlp`).
    """

    def __init__(
        self,
        features: int,
        actions: int,
        feature_dim: int,
        hidden_dim: int,
        vector: int = 0,
        *,
        dropout: float = 0.0,
        norm: bool = False,
    ):
        super().__init__(features, feature_dim, hidden_dim, vector)
        inputs = feature_dim + actions
        self.q1 = mlp(inputs, hidden_dim, 1, dropout=dropout, norm=norm)
        self.q2 = mlp(inputs, hidden_dim, 1, dropout=dropout, norm=norm)

    def forward(
        self, features: Features, action: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.read(features, activations), action], dim=-1)
        return self.q1(joined, activations), self.q2(joined, activations)


class Value(Head):
    """features [B, F] -> V [B, 1], through a trunk of its own."""

    def __init__(self, features: int, feature_dim: int, hidden_dim: int, vector: int = 0):
        super().__init__(features, feature_dim, hidden_dim, vector)
        self.v = mlp(feature_dim, hidden_dim, 1)

    def forward(self, features: Features, activations: list[Tensor] | None = None) -> Tensor:
        return self.v(self.read(features, activations), activations)


class StateActor(nn.Module):
    """state [B, D] -> `outputs` numbers [B, outputs], unbounded."""

    def __init__(self, features: int, outputs: int, hidden_dim: int):
        super().__init__()
        self.policy = mlp(features, hidden_dim, outputs)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.policy(features, activations)


class StateCritic(nn.Module):
    """state [B, D], action [B, A] -> two estimates of Q, each [B, 1]."""

    def __init__(self, features: int, actions: int, hidden_dim: int):
        super().__init__()
        self.q1 = mlp(features + actions, hidden_dim, 1)
        self.q2 = mlp(features + actions, hidden_dim, 1)

    def forward(
        self, features: Tensor, action: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([features, action], dim=-1)
        return self.q1(joined, activations), self.q2(joined, activations)


class GaussianActor(nn.Module):
    """state [B, D] -> mean [B, A] and log std [A], which no state changes; tanh layers."""

    def __init__(self, features: int, actions: int, hidden_dim: int):
        super().__init__()
        self.policy = mlp(features, hidden_dim, actions, nn.Tanh)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(
        self, features: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.policy(features, activations), self.log_std


class StateValue(nn.Module):
    """state [B, D] -> V [B], with tanh layers."""

    def __init__(self, features: int, hidden_dim: int):
        super().__init__()
        self.v = mlp(features, hidden_dim, 1, nn.Tanh)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.v(features, activations)[:, 0]
