"""Image augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each image of [B, C, H, W] shifted by its own whole number of pixels in [-pad, pad].

    The border is replicated. DrQ-v2's bilinear grid sampling lands on whole pixels, so a plain
    crop of the padded image is the same function (arXiv 2107.09645, section 3.1).
    """
    if pad == 0:
        return images
    shifts = torch.randint(
        0, 2 * pad + 1, (len(images), 2), generator=generator, device=images.device
    )
    return shift(images, shifts, pad)


def shift(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Crop [B, C, H, W] out of its replicate-padded self at offsets `shifts` [B, 2] (x, y).

    Offsets lie in [0, 2 * pad]; (pad, pad) is the identity. Any dtype.
    """
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=images.device)[None] + shifts[:, :1] - pad
    rows = torch.arange(height, device=images.device)[None] + shifts[:, 1:] - pad
    columns.clamp_(0, width - 1)
    rows.clamp_(0, height - 1)
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # [B, H * W]
    index = flat[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view_as(images)


def as_input(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] as floats in [-0.5, 0.5], channels last in memory (faster to convolve)."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255.0).sub_(0.5)
