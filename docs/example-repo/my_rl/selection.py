"""A selection rule of SnapshotRL: starts move from the end of an episode to its beginning."""

from __future__ import annotations

from typing import Any

import numpy as np


class Backwards:
    """Uniform over the last `share` of each episode; the share grows to 1 over `resets` resets."""

    def __init__(self, first_share: float = 0.1, resets: int = 1000):
        self.first_share = first_share
        self.resets = resets
        self.done = 0

    def prepare(self, snapshots) -> None:
        lengths = np.zeros(snapshots.episodes.max() + 1)
        np.maximum.at(lengths, snapshots.episodes, snapshots.steps)
        self.progress = snapshots.steps / np.maximum(lengths[snapshots.episodes], 1)  # 0 to 1

    def choose(self, random: np.random.Generator) -> int:
        share = self.first_share + (1 - self.first_share) * min(self.done / self.resets, 1)
        self.done += 1
        return int(random.choice(np.flatnonzero(self.progress >= 1 - share)))

    def report(self, index: int, score: float) -> None:
        """Called with the score of an episode that began at a snapshot; this rule ignores it."""

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
