"""Image augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shift each image of [B, C, H, W] by a random number of whole pixels in [-pad, pad].

    The border is replicated. DrQ-v2's bilinear grid sampling lands on whole pixels, so a crop of
    the padded image is the same function (arXiv 2107.09645, section 3.1).
    """
    if pad == 0:
        return images
    shifts = torch.randint(
        0, 2 * pad + 1, (len(images), 2), generator=generator, device=images.device
    )
    return shift(images, shifts, pad)


def shift(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Crop replicate-padded images [B, C, H, W] at offsets `shifts` [B, 2] (x, y), in [0, 2 * pad].

    (pad, pad) is the identity. Any dtype. The result is channels-last, which copies whole pixels
    and suits convolutions.
    """
    count, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device)[None] + shifts[:, :1] - pad
    rows = torch.arange(height, device=images.device)[None] + shifts[:, 1:] - pad
    rows = rows.clamp_(0, height - 1) + height * torch.arange(count, device=images.device)[:, None]
    pixels = rows[:, :, None] * width + columns.clamp_(0, width - 1)[:, None, :]  # [B, H, W]
    last = images.permute(0, 2, 3, 1).reshape(-1, channels)
    moved = last.index_select(0, pixels.flatten()).view(count, height, width, channels)
    return moved.permute(0, 3, 1, 2)


def intensity_factors(noise: Tensor, scale: float) -> Tensor:
    """Factors [B, 1, 1, 1] of each image's pixels: 1 + scale * noise, the noise clipped to +-2.

    noise [B]: standard normal. As in Dopamine's DrQ(eps); pixels are not clipped afterwards.
    """
    return (1.0 + scale * noise.clamp(-2.0, 2.0))[:, None, None, None]


def centred(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, C, H, W] minus 127.5, in `dtype` and channels-last (faster to convolve).

    Exact in bfloat16 too: each value has eight significant bits.
    """
    return images.to(dtype, memory_format=torch.channels_last).sub_(127.5)
