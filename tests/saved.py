"""What runs have saved, and whether it is the same to the bit."""

import numpy as np
import torch

from rlearly import checkpoint


def agent_state(folder):
    """Of the newest checkpoint in a run's directory."""
    _, state = checkpoint.load_newest(folder / "checkpoints")
    return state["agent"]


def equal(one, two):
    if isinstance(one, dict):
        return set(one) == set(two) and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
