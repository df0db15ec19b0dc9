"""From which snapshot the next episode starts: one interface, several rules."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots


class Selection(Protocol):
    """Draws snapshots. It is told the store once, and may be told how learning goes there."""

    def prepare(self, snapshots: Snapshots) -> None:
        """Get ready to draw from these."""
        ...

    def choose(self, random: np.random.Generator) -> int:
        """The index of the next start."""
        ...

    def report(self, index: int, score: float) -> None:
        """The learner's word on an episode that started at snapshot `index`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    def report(self, index: int, score: float) -> None:
        """This rule does not listen."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Uniform(_Stateless):
    """Every snapshot alike (SnapshotRL, arXiv 2403.00673)."""

    def prepare(self, snapshots: Snapshots) -> None:
        self.count = len(snapshots)

    def choose(self, random: np.random.Generator) -> int:
        return int(random.integers(self.count))


class ValueClusters(_Stateless):
    """Status classification (SC of S3RL, arXiv 2403.00673, section 4.2).

    KMeans on the teacher's value of each snapshot; a cluster is drawn uniformly, then a snapshot
    uniformly within it, so that rare stages of an episode are visited as often as common ones.
    Deviation from the official code: k-means of numbers can be solved exactly, so no random starts
    are tried, and the clusters follow from the values alone.
    """

    def __init__(self, clusters: int = 6):
        if clusters < 1:
            raise ConfigError(f"clusters: expected a number of at least 1, received {clusters}.")
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
                f"clusters: expected at most {distinct}, the number of snapshots with values that "
                f"differ, received {self.clusters}; record more, or take fewer clusters "
                f"(snapshot_phase.clusters={distinct})."
            )
        labels = cluster_numbers(values, self.clusters)
        self.members = [np.flatnonzero(labels == label) for label in range(self.clusters)]

    def choose(self, random: np.random.Generator) -> int:
        members = self.members[int(random.integers(len(self.members)))]
        return int(members[int(random.integers(len(members)))])


def cluster_numbers(numbers: np.ndarray, clusters: int) -> np.ndarray:
    """The labels [N] of the best k-means of numbers [N], 0 for the lowest cluster.

    Clusters of numbers are runs of their sorted order, so the least sum of squared distances to
    the clusters' means is found exactly, by dynamic programming over where each run begins. Equal
    numbers share a cluster; `clusters` is at most the number of distinct ones.
    """
    distinct, where, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    centred = distinct - numbers.mean()
    weight, first, second = (
        np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in (0, 1, 2)
    )

    def spread(begin: np.ndarray, end: int) -> np.ndarray:
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
            costs = least[k - 1, begin] + spread(begin, end)
            best = int(costs.argmin())
            least[k, end], begins[k, end] = costs[best], begin[best]
    labels = np.empty(count, dtype=np.int64)
    end = count
    for k in range(clusters, 0, -1):
        begin = begins[k, end]
        labels[begin:end] = k - 1
        end = begin
    return labels[where]


class _Weighted(_Stateless):
    weights: np.ndarray

    def choose(self, random: np.random.Generator) -> int:
        sums = np.cumsum(self.weights)
        return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))


class ReturnToGo(_Weighted):
    """States from which the teacher still earned much, more often; beyond the paper.

    The probability falls linearly with the rank of the return to go: the best snapshot is drawn
    `contrast` times as often as the worst.
    """

    def __init__(self, contrast: float = 10.0):
        if contrast < 1:
            raise ConfigError(f"contrast: expected a number of at least 1, received {contrast}.")
        self.contrast = contrast

    def prepare(self, snapshots: Snapshots) -> None:
        ranks = np.argsort(np.argsort(snapshots.returns_to_go, kind="stable"), kind="stable")
        share = ranks / max(len(ranks) - 1, 1)
        self.weights = 1.0 + (self.contrast - 1.0) * share


class Novelty(_Weighted):
    """States unlike the teacher's other ones, more often; beyond the paper.

    The weight is the distance to the `neighbours`-th nearest other snapshot, in observations
    scaled to unit variance.
    """

    def __init__(self, neighbours: int = 5):
        if neighbours < 1:
            raise ConfigError(
                f"neighbours: expected a number of at least 1, received {neighbours}."
            )
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
    """States where the learner was most wrong, more often; beyond the paper.

    The learner reports a score of each episode that started here (|TD error|, regret); its latest
    one is kept. A snapshot that was never tried takes the highest score so far. The weight is the
    score's share of the highest, to the power `sharpness`, and never below `floor`.
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
        sums = np.cumsum(self.weights())
        return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))

    def weights(self) -> np.ndarray:
        """[N], the highest 1."""
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


def make_selection(name: str, clusters: int = 6) -> Selection:
    """A selection by its name on the command line."""
    made: dict[str, Any] = {
        "uniform": Uniform,
        "clusters": lambda: ValueClusters(clusters),
        "return_to_go": ReturnToGo,
        "novelty": Novelty,
        "learner_error": LearnerError,
    }
    if name not in made:
        raise ConfigError(f"selection: expected one of {', '.join(made)}, received {name!r}.")
    return made[name]()


def student_clusters(agent: str) -> int:
    """The number of clusters that the paper uses for a student: 4 for SAC, 6 for the others."""
    return 4 if agent == "sac" else 6
