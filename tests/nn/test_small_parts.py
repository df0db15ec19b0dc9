"""Noise, shifts and seeds."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlearly.core.errors import ConfigError
from rlearly.envs import gl_backend
from rlearly.nn.augmentation import centred, random_shift, shift
from rlearly.nn.distributions import truncated_normal
from rlearly.nn.networks import PixelEncoder, initialise_
from rlearly.system import machine
from rlearly.system.seeding import STREAMS, Seeds, restore
from rlearly.training.metrics import MetricMeans


def generator():
    return torch.Generator().manual_seed(0)


def test_policy_noise_is_clipped_in_updates_and_only_there():
    mean = torch.zeros(20_000, 1)
    clipped = truncated_normal(mean, 0.5, generator(), clip=0.3)
    free = truncated_normal(mean, 0.5, generator())
    assert float(clipped.abs().max()) == pytest.approx(0.3)
    assert float(free.abs().max()) > 0.9
    inside = free.abs() < 0.3
    torch.testing.assert_close(free[inside], clipped[inside])
    assert float(free.clamp(-0.9, 0.9).std()) == pytest.approx(0.48, abs=0.02)


def test_action_stays_inside_and_the_gradient_passes_straight_through():
    mean = torch.tensor([[0.99], [-2.0], [0.1]], requires_grad=True)
    action = truncated_normal(mean, 1e-9, generator())
    assert (action.abs() < 1).all()
    action.sum().backward()
    assert mean.grad is not None and mean.grad.flatten().tolist() == [1.0, 1.0, 1.0]


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


def test_streams_are_independent_reproducible_and_append_only():
    assert STREAMS[:4] == ("env", "evaluation", "replay", "weights")
    numbers = {Seeds(s).integer(name) for s in range(50) for name in STREAMS}
    assert len(numbers) == 50 * len(STREAMS)
    assert Seeds(3).numpy("env").integers(100) == Seeds(3).numpy("env").integers(100)
    first = np.random.SeedSequence(3).spawn(len(STREAMS))[2].generate_state(2)
    np.testing.assert_array_equal(Seeds(3).sequence("replay").generate_state(2), first)
    with pytest.raises(ConfigError, match="seed: expected a whole number"):
        Seeds(-1)


def test_stream_of_another_kind_of_device_restarts_with_a_warning(caplog):
    one = generator()
    restore(one, torch.zeros(16, dtype=torch.uint8))  # the size of a GPU generator's state
    assert "another kind of device" in caplog.text
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=generator()))


def test_memory_is_the_least_that_any_control_group_leaves(tmp_path, monkeypatch):
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    (tmp_path / "memory.max").write_text("max")
    (tmp_path / "memory.current").write_text("5")
    assert machine.available_bytes(tmp_path) == 10**12, lines
    (tmp_path / "memory.max").write_text("9000")
    (tmp_path / "memory.current").write_text("8000")
    (tmp_path / "memory.stat").write_text("anon 7000\ninactive_file 300\nactive_file 200\n")
    assert machine.available_bytes(tmp_path) == 1500


def test_means_are_over_the_updates_that_reported():
    means = MetricMeans()
    means.add({"a/x": torch.tensor(1.0), "a/y": 5.0})
    means.add({"a/x": torch.tensor(4.0)})
    assert means.take() == {"a/x": 2.5, "a/y": 5.0}
    assert means.take() == {}


def test_means_go_on_from_a_saved_state_and_add_in_double_precision():
    straight, before = MetricMeans(), MetricMeans()
    rows = [
        {"a/x": torch.tensor(1e8), "a/y": 2.0},
        {"a/x": torch.tensor(1.0), "a/z": torch.tensor(3)},
        {"a/y": 4.0, "a/x": torch.tensor(1.0)},
    ]
    for row in rows:
        straight.add(row)
    for row in rows[:2]:
        before.add(row)
    after = MetricMeans()
    after.load_state_dict(before.state_dict())
    after.add(rows[2])
    expected = {"a/x": (1e8 + 2) / 3, "a/y": 3.0, "a/z": 3.0}
    assert straight.take() == after.take() == expected


def test_missing_gl_names_the_packages(monkeypatch):
    monkeypatch.setattr(gl_backend, "backend_error", lambda backend: f"no {backend}")
    monkeypatch.setattr(gl_backend, "choose_backend", lambda: None)
    with pytest.raises(ConfigError, match=r"egl: no egl; osmesa: no osmesa.*libegl1.*libosmesa6"):
        gl_backend.require_backend(gl_backend.WITHOUT_VIDEOS)
