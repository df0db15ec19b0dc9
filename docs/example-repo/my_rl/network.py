"""Networks for td3, sac, ppo, drqv2 and drm: agent.network=my_rl.network:residual."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """x + MLP(LayerNorm(x)), [B, width] -> [B, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual(
    name: str, inputs: tuple[int, ...], outputs: int | None, width: int = 32, blocks: int = 2
) -> nn.Module | None:
    """A residual network for states; the encoder of images is left to the agent.

    agent.network_kwargs.width=64 and agent.network_kwargs.blocks=3 set the last two arguments.
    """
    if outputs is None:  # the encoder
        return None
    hidden = [Block(width) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs[0], width), *hidden, nn.Linear(width, outputs))
