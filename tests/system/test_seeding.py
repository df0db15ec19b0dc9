"""Random streams of a run."""

import numpy as np
import pytest
import torch

from rlearly.core.errors import ConfigError
from rlearly.system.seeding import STREAMS, Seeds, restore


def generator():
    return torch.Generator().manual_seed(0)


def test_streams_are_independent_reproducible_and_append_only():
    assert STREAMS[:4] == ("env", "evaluation", "replay", "weights")
    numbers = {Seeds(s).integer(name) for s in range(50) for name in STREAMS}
    assert len(numbers) == 50 * len(STREAMS)
    with pytest.raises(ValueError, match=r"expected one of env, .*received 'search'; .*STREAMS"):
        Seeds(0).torch("search")
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
