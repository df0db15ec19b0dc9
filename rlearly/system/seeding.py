"""Random streams: one SeedSequence per run, one child per consumer, no global generator."""

from __future__ import annotations

import logging

import numpy as np
import torch

from rlearly.core.errors import ConfigError

log = logging.getLogger(__name__)
STREAMS = (
    "env", "evaluation", "replay", "weights", "exploration", "policy_noise", "augmentation",
    "perturbation", "minibatches", "interventions", "dropout", "tuner",
)  # fmt: skip
"""Append only: a stream is identified by its index, so an inserted name would change every run."""


class Seeds:
    """Independent, named streams of randomness, all derived from one seed.

    Children of one SeedSequence cannot collide, unlike `seed + offset` schemes.
    """

    def __init__(self, seed: int):
        if seed < 0:
            raise ConfigError(f"seed: expected a whole number of at least 0, received {seed}.")
        self.seed = seed

    def sequence(self, stream: str, *key: int) -> np.random.SeedSequence:
        """The stream's SeedSequence; further `key` numbers select a child of it.

        Raises:
            ValueError: there is no such stream.
        """
        if stream not in STREAMS:
            raise ValueError(
                f"stream: expected one of {', '.join(STREAMS)}, received {stream!r}; a new "
                "consumer appends its name to STREAMS in rlearly/system/seeding.py."
            )
        return np.random.SeedSequence(self.seed, spawn_key=(STREAMS.index(stream), *key))

    def integer(self, stream: str, *key: int) -> int:
        """A 63-bit seed for libraries that need an integer."""
        return int(self.sequence(stream, *key).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def numpy(self, stream: str, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self.sequence(stream, *key)))

    def torch(self, stream: str, device: torch.device | str = "cpu", *key: int) -> torch.Generator:
        return torch.Generator(device=device).manual_seed(self.integer(stream, *key))


def restore(generator: torch.Generator, state: torch.Tensor) -> None:
    """Continue a stream from its saved state, or warn and restart it if another device saved it.

    The states of CPU and GPU generators are not interchangeable.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        log.warning("The checkpoint is from another kind of device: its random streams restart.")


def episode_seed(generator: np.random.Generator) -> int:
    """A new seed for one episode's reset, of the 32 bits that legacy simulators accept."""
    return int(generator.integers(2**32, dtype=np.uint64))
