"""Rules that choose the snapshot at which the next episode starts.

All rules have the same interface, and any object with the methods of `Selection` is a rule:

>>> SnapshotRL(env, "teacher.h5", selection=ValueClusters(6))  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots, require_at_least


@dataclass(frozen=True)
class OrdinaryStart:
    """A choice of no snapshot: the state to which the env resets with this seed."""

    seed: int


class Selection(Protocol):
    """Chooses snapshots; may adapt its choices to the learner's scores of earlier episodes.

    A rule that also has the method of `FollowsEpisodes` is told how each episode ended.
    """

    def prepare(self, snapshots: Snapshots) -> None:
        """Called once, with the snapshots to choose from."""
        ...

    def choose(self, random: np.random.Generator) -> int | OrdinaryStart:
        """The index of the snapshot at which the next episode starts, or an ordinary start."""
        ...

    def report(self, index: int, score: float) -> None:
        """The learner's score (at least 0, e.g. |TD error|) of an episode from snapshot `index`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class FollowsEpisodes(Protocol):
    """What a selection rule has in addition if it follows how the learner's episodes end."""

    def episode_over(
        self,
        start: int | OrdinaryStart,
        *,
        succeeded: bool | None,
        episode_return: float,
        steps: int,
    ) -> None:
        """Called at the end of each episode that the rule started.

        Args:
            start: what `choose` returned, or the snapshot that a reset asked for.
            succeeded: whether the episode reached its goal; None: the env does not report it.
            episode_return: undiscounted, from the start on.
            steps: length of the episode, from the start on.
        """
        ...


class _Stateless:
    def report(self, index: int, score: float) -> None:
        """Reports are ignored."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Uniform(_Stateless):
    """Chooses all snapshots with the same probability (SnapshotRL, arXiv 2403.00673)."""

    def prepare(self, snapshots: Snapshots) -> None:
        self.count = len(snapshots)

    def choose(self, random: np.random.Generator) -> int:
        return int(random.integers(self.count))


class ValueClusters(_Stateless):
    """Status classification (SC of S3RL, arXiv 2403.00673, section 4.2).

    Clusters the teacher's values of the snapshots by k-means. Draws a cluster uniformly, then a
    snapshot uniformly within it, so that rare stages of an episode are visited as often as common
    ones.

    Args:
        clusters: number of clusters, at most the number of distinct values. The paper uses 6, and
            4 for SAC.

    Raises:
        ConfigError: `clusters` is out of range, or (in SnapshotRL) a snapshot has no value.

    Deviation from the official code: k-means in one dimension is solved exactly. There are no
    random starts, and the clusters follow from the values alone.
    """

    def __init__(self, clusters: int = 6):
        require_at_least(1, clusters=clusters)
        self.clusters = clusters

    def prepare(self, snapshots: Snapshots) -> None:
        values = snapshots.values
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{np.isnan(values).sum()} of {len(values)} snapshots carry no value to cluster "
                "by: record them with a value, or use selection Uniform or ReturnToGo."
            )
        distinct = len(np.unique(values))
        if self.clusters > distinct:
            raise ConfigError(
                f"clusters: expected at most {distinct}, the number of distinct values, "
                f"received {self.clusters}; record more snapshots, or use fewer clusters "
                f"(snapshot_phase.clusters={distinct})."
            )
        labels = cluster_numbers(values, self.clusters)
        self.members = [np.flatnonzero(labels == label) for label in range(self.clusters)]

    def choose(self, random: np.random.Generator) -> int:
        members = self.members[int(random.integers(len(self.members)))]
        return int(members[int(random.integers(len(members)))])


def cluster_numbers(numbers: np.ndarray, clusters: int) -> np.ndarray:
    """Labels [N] of the optimal k-means clustering of numbers [N], 0 for the lowest cluster.

    In one dimension a cluster is a contiguous run of the sorted numbers. Dynamic programming over
    where each run begins finds the least sum of squared distances to the cluster means exactly.
    Equal numbers share a cluster; `clusters` is at most the number of distinct ones.
    """
    distinct, where, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    centred = distinct - numbers.mean()
    weight, first, second = (
        np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in (0, 1, 2)
    )

    def squared_distances(begin: np.ndarray, end: int) -> np.ndarray:
        """Sum of squared distances to the mean, within distinct[begin:end]."""
        mass = weight[end] - weight[begin]
        return second[end] - second[begin] - (first[end] - first[begin]) ** 2 / mass

    count = len(distinct)
    least = np.full((clusters + 1, count + 1), np.inf)
    least[0, 0] = 0.0
    begins = np.zeros((clusters + 1, count + 1), dtype=np.int64)
    for k in range(1, clusters + 1):
        for end in range(k, count + 1):
            begin = np.arange(k - 1, end)
            costs = least[k - 1, begin] + squared_distances(begin, end)
            best = int(costs.argmin())
            least[k, end], begins[k, end] = costs[best], begin[best]
    labels = np.empty(count, dtype=np.int64)
    end = count
    for k in range(clusters, 0, -1):
        begin = begins[k, end]
        labels[begin:end] = k - 1
        end = begin
    return labels[where]


def draw(weights: np.ndarray, random: np.random.Generator) -> int:
    """An index, with a probability proportional to its weight."""
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))


class _Weighted(_Stateless):
    weights: np.ndarray

    def choose(self, random: np.random.Generator) -> int:
        return draw(self.weights, random)


class ReturnToGo(_Weighted):
    """Prefers states from which the teacher's return to go is high. Not in the paper.

    The probability falls linearly with the rank of the return to go.

    Args:
        contrast: how many times as often the best snapshot is drawn as the worst; at least 1.
    """

    def __init__(self, contrast: float = 10.0):
        require_at_least(1, contrast=contrast)
        self.contrast = contrast

    def prepare(self, snapshots: Snapshots) -> None:
        ranks = np.argsort(np.argsort(snapshots.returns_to_go, kind="stable"), kind="stable")
        share = ranks / max(len(ranks) - 1, 1)
        self.weights = 1.0 + (self.contrast - 1.0) * share


class Novelty(_Weighted):
    """Prefers states that differ from the teacher's other ones. Not in the paper.

    The weight is the distance to the `neighbours`-th nearest other snapshot, in observations scaled
    to unit variance.
    """

    def __init__(self, neighbours: int = 5):
        require_at_least(1, neighbours=neighbours)
        self.neighbours = neighbours

    def prepare(self, snapshots: Snapshots) -> None:
        from scipy.spatial import KDTree

        obs = snapshots.observations.reshape(len(snapshots), -1).astype(np.float64)
        spread = obs.std(0)
        obs = (obs - obs.mean(0)) / np.where(spread > 0, spread, 1.0)
        near = min(self.neighbours, len(obs) - 1)
        if near == 0:
            self.weights = np.ones(len(obs))
            return
        distances, _ = KDTree(obs).query(obs, k=near + 1)
        far = np.asarray(distances)[:, -1]
        self.weights = far if far.any() else np.ones(len(obs))


class LearnerError:
    """Prefers states where the learner was most wrong. Not in the paper.

    The learner reports a score (|TD error|, regret) for each episode that started at a snapshot;
    the latest is kept. A snapshot that was never tried counts as having the highest score so far.

    Args:
        sharpness: the weight is (score / highest score) to this power; at least 0.
        floor: the lowest weight, in (0, 1].
    """

    def __init__(self, sharpness: float = 1.0, floor: float = 0.05):
        if sharpness < 0 or not 0 < floor <= 1:
            raise ConfigError(
                "expected a sharpness of at least 0 and a floor above 0 and at most 1, received "
                f"{sharpness} and {floor}."
            )
        self.sharpness = sharpness
        self.floor = floor

    def prepare(self, snapshots: Snapshots) -> None:
        self.scores = np.full(len(snapshots), np.nan)

    def choose(self, random: np.random.Generator) -> int:
        return draw(self.weights(), random)

    def weights(self) -> np.ndarray:
        """[N], in (0, 1]; the highest is 1."""
        tried = self.scores[~np.isnan(self.scores)]
        highest = tried.max() if len(tried) else 0.0
        if highest <= 0:
            return np.ones(len(self.scores))
        share = np.where(np.isnan(self.scores), 1.0, self.scores / highest)
        return np.maximum(share**self.sharpness, self.floor)

    def report(self, index: int, score: float) -> None:
        if not np.isfinite(score) or score < 0:
            raise ConfigError(f"score: expected a finite number of at least 0, received {score}.")
        self.scores[index] = score

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores = np.array(state["scores"])


def student_clusters(agent: str) -> int:
    """The number of clusters that the paper uses for a student: 4 for SAC, 6 for the others."""
    return 4 if agent == "sac" else 6
