"""What runs have saved, and whether it is the same to the bit."""

import numpy as np
import torch

from rlearly import checkpoint
from rlearly.tape import Tape


def agent_state(folder):
    """Of the newest checkpoint in a run's directory."""
    _, state = checkpoint.load_newest(folder / "checkpoints")
    return state["agent"]


def tape_rows(tape):
    """All rows of a tape, field by field."""
    pieces = [rows for _, rows in tape.pieces()]
    return {name: np.concatenate([rows[name] for rows in pieces]) for name in pieces[0]}


def equal(one, two):
    if isinstance(one, Tape):
        same = (one.first, one.end) == (two.first, two.end)
        return same and (one.first == one.end or equal(tape_rows(one), tape_rows(two)))
    if isinstance(one, dict):
        return set(one) == set(two) and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
