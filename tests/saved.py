"""What runs have saved, and whether it is the same to the bit."""

import json

import numpy as np
import torch

from rlearly.core.append_log import AppendLog
from rlearly.training import checkpoint


def agent_state(folder):
    """Of the newest checkpoint in a run's directory."""
    _, state = checkpoint.load_newest(folder / "checkpoints")
    return state["agent"]


def equal(one, two):
    if isinstance(one, AppendLog):
        return (one.first, one.end) == (two.first, two.end) and equal(one.rows(), two.rows())
    if isinstance(one, dict):
        return set(one) == set(two) and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def rows(folder):
    """The metrics file without what the clock decides."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("speed/", "eval/seconds")
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines
    ]


def plain(tree):
    """A state as comparable Python, to the bit, clocks left out."""
    if isinstance(tree, AppendLog):
        tree = {"first": tree.first, "end": tree.end, "rows": tree.rows()}
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items() if k not in ("elapsed_seconds", "sinks")}
    if isinstance(tree, list | tuple):
        return [type(tree).__name__, *map(plain, tree)]
    if isinstance(tree, torch.Tensor):
        tree = tree.detach().cpu().numpy()
    return (str(tree.dtype), tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree
