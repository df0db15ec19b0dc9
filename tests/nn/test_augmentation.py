"""Random shifts and centring of images."""

import pytest
import torch
import torch.nn.functional as F

from rlearly.nn.augmentation import centred, random_shift, shift
from rlearly.nn.networks import PixelEncoder, initialise_


def generator():
    return torch.Generator().manual_seed(0)


def test_shift_by_hand():
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    right_and_up = shift(image, torch.tensor([[2, 0]]), pad=1)[0, 0]
    assert right_and_up.tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]
    assert torch.equal(shift(image, torch.tensor([[1, 1]]), pad=1), image)


def test_every_image_is_shifted_by_itself_and_every_offset_is_used():
    images = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    where = random_shift(images, 2, generator()).flatten(1).argmax(1)
    counts = torch.bincount(where, minlength=81).view(9, 9)
    assert (counts[2:7, 2:7] > 40).all() and int(counts[2:7, 2:7].sum()) == 2000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_centred_exactly(dtype):
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = [value - 127.5 for value in range(256)]
    assert centred(image, dtype).flatten().tolist() == expected


def test_encoder_sees_minus_half_to_half_and_gives_each_pixels_channels_together():
    encoder = PixelEncoder((3, 21, 21), 4)
    initialise_(encoder, generator())
    image = torch.randint(0, 256, (2, 3, 21, 21), generator=generator(), dtype=torch.uint8)
    units = []
    got = encoder(image, units)
    x = image.double() / 255.0 - 0.5
    for layer in encoder.convolutions[::2]:
        x = F.conv2d(x, layer.weight.double(), layer.bias.double(), layer.stride).relu()
    torch.testing.assert_close(got, x.permute(0, 2, 3, 1).reshape(2, -1).float())
    torch.testing.assert_close(units[3], x.float())
    assert torch.equal(got[1, 4:8], units[3][1, :, 0, 1]) and got[1, 4:8].any()
