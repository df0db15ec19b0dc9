"""Selection rules whose starts move along the demonstrations as training goes on.

A demonstration is one episode of the snapshots. All distances are in steps of the demonstrations,
so a rule does not depend on how densely they were recorded; with `record(..., every_steps=1)` every
state of a demonstration is a possible start, as in the papers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots, require_at_least
from rlearly.envs.snapshots.selection import OrdinaryStart, draw

DIRECTIONS = ("forward", "reverse")


def demonstrations(snapshots: Snapshots) -> list[np.ndarray]:
    """For each episode, in the order of their numbers: its snapshots' indices, by their steps."""
    order = np.lexsort((snapshots.steps, snapshots.episodes))
    _, first = np.unique(snapshots.episodes[order], return_index=True)
    return np.split(order, first[1:])


class DemonstrationWindow:
    """Chooses within a window that widens from one end of the demonstrations (robosuite).

    A demonstration is drawn uniformly, then a snapshot uniformly among those that are less than
    `first_steps` steps from its first ("forward") or last snapshot ("reverse"). After every
    `every_resets` choices the window is `widen_steps` wider. To mix in ordinary starts, give
    `SnapshotRL` a `probability` below 1; for states drawn uniformly, use `Uniform`.

    >>> rule = DemonstrationWindow("reverse", first_steps=10, widen_steps=5, every_resets=2)
    >>> rule.width_steps
    10

    Args:
        direction: "forward" or "reverse".
        first_steps: width of the first window.
        widen_steps: by how much it widens; 0: never.
        every_resets: choices between two widenings.

    Raises:
        ConfigError: an argument is out of range.

    The default numbers are those of robosuite's `DemoSamplerWrapper`. It stops widening when a
    demonstration shorter than the window is drawn; here the window goes on to widen, which has no
    effect once it covers all demonstrations.
    """

    def __init__(
        self,
        direction: str,
        first_steps: int = 25,
        widen_steps: int = 25,
        every_resets: int = 100,
    ):
        if direction not in DIRECTIONS:
            raise ConfigError(
                f"direction: expected one of {', '.join(DIRECTIONS)}, received {direction!r}."
            )
        require_at_least(1, first_steps=first_steps, every_resets=every_resets)
        require_at_least(0, widen_steps=widen_steps)
        self.direction = direction
        self.first_steps = first_steps
        self.widen_steps = widen_steps
        self.every_resets = every_resets
        self.resets = 0

    @property
    def width_steps(self) -> int:
        """Width of the window from which the next start is drawn."""
        return self.first_steps + self.widen_steps * (self.resets // self.every_resets)

    def prepare(self, snapshots: Snapshots) -> None:
        forward = self.direction == "forward"
        self.members = [
            members if forward else members[::-1] for members in demonstrations(snapshots)
        ]
        self.distances = [
            np.abs(snapshots.steps[members] - snapshots.steps[members[0]])
            for members in self.members
        ]

    def choose(self, random: np.random.Generator) -> int:
        number = int(random.integers(len(self.members)))
        within = int(np.searchsorted(self.distances[number], self.width_steps))
        self.resets += 1
        return int(self.members[number][int(random.integers(within))])

    def report(self, index: int, score: float) -> None:
        """Reports are ignored."""

    def state_dict(self) -> dict[str, Any]:
        return {"resets": self.resets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resets = state["resets"]


LEAST_WEIGHT = 1e-6
"""Of a demonstration whose start is its beginning."""
MOST_LATER = 4
"""How many snapshots after a demonstration's start an episode may begin."""
LEAST_FAILURES = 0.05
"""Of a seed that the learner has mastered: its weight in the forward stage."""


class ReverseForward:
    """Reverse, then forward curriculum (RFCL, arXiv 2405.03379).

    Reverse stage: each demonstration has a start of its own, its last snapshot at first. When at
    least `success_rate` of the last `episodes` episodes from exactly there succeeded, the start
    moves `back_steps` steps back (to the next snapshot that is at least so far away, or to the
    first), and its episodes are counted anew. A demonstration is solved when this happens at its
    first snapshot. Demonstrations are drawn with a probability proportional to the share of them
    that lies before their start. An episode begins at the start with a probability of 1/2, and 1,
    2, 3, 4 snapshots later with 1/4, 1/8, 1/16, 1/16.

    Forward stage, once all demonstrations are solved: ordinary starts of `seeds` seeds. A seed is
    drawn with a probability proportional to the share of its last `episodes` episodes that failed
    (1 if it was never tried, at least 0.05).

    An episode succeeded if its env says so (see `SnapshotRL`). If the env does not, `return_share`
    is needed.

    Args:
        back_steps: how far a start moves back, in steps of the demonstration.
        episodes: number of newest episodes that count.
        success_rate: share of them that must succeed, in (0, 1].
        return_share: an episode succeeded if its return is at least this share of the
            demonstration's return to go from its start, and for an ordinary start, of the
            demonstrations' mean return; above 0. None: the env reports success. With negative
            returns, 0.9 means at most a tenth worse. An episode that is truncated early cannot
            reach such a return: set `SnapshotRL(truncate_steps=None)`.
        seeds: number of seeds of the forward stage: 0, 1, ...

    Raises:
        ConfigError: an argument is out of range, or (at the end of the first episode) the env
            reports no success and `return_share` is None.

    `back_steps`, `episodes`, `success_rate`, the probabilities and the number of seeds are those of
    the official code (github.com/StoneT2000/rfcl, wrappers/curriculum.py and
    forward_curriculum.py). Deviations: its time limit for each start is left to
    `SnapshotRL(truncate_steps=...)`; its forward stage ranks seeds by three classes of success and
    adds staleness, this one takes the share of failures itself.
    """

    def __init__(
        self,
        back_steps: int = 8,
        episodes: int = 3,
        success_rate: float = 1.0,
        return_share: float | None = None,
        seeds: int = 1000,
    ):
        require_at_least(1, back_steps=back_steps, episodes=episodes, seeds=seeds)
        if not 0 < success_rate <= 1:
            raise ConfigError(
                f"success_rate: expected a number above 0 and at most 1, received {success_rate}."
            )
        if return_share is not None and not return_share > 0:
            raise ConfigError(f"return_share: expected a number above 0, received {return_share}.")
        self.back_steps = back_steps
        self.episodes = episodes
        self.success_rate = success_rate
        self.return_share = return_share
        self.seeds = seeds

    def prepare(self, snapshots: Snapshots) -> None:
        self.members = demonstrations(snapshots)
        self.steps = [snapshots.steps[members] for members in self.members]
        self.places = {
            int(index): (number, place)
            for number, members in enumerate(self.members)
            for place, index in enumerate(members)
        }
        self.returns_to_go = snapshots.returns_to_go
        self.mean_return = float(np.mean([snapshots.returns[m[0]] for m in self.members]))
        self.starts = np.array([len(members) - 1 for members in self.members])
        self.solved = np.zeros(len(self.members), dtype=bool)
        self.recent: list[list[bool]] = [[] for _ in self.members]
        self.recent_of_seeds: list[list[bool]] = [[] for _ in range(self.seeds)]

    def choose(self, random: np.random.Generator) -> int | OrdinaryStart:
        if self.solved.all():
            return OrdinaryStart(draw(self.seed_weights(), random))
        number = draw(self.weights(), random)
        later = min(int(random.geometric(0.5)) - 1, MOST_LATER)
        members = self.members[number]
        return int(members[min(self.starts[number] + later, len(members) - 1)])

    def weights(self) -> np.ndarray:
        """For each demonstration, the share of its steps before its start; at least 1e-6."""
        shares = [
            (steps[start] - steps[0]) / max(steps[-1] - steps[0], 1)
            for steps, start in zip(self.steps, self.starts, strict=True)
        ]
        return np.maximum(shares, LEAST_WEIGHT)

    def seed_weights(self) -> np.ndarray:
        """For each seed, the share of its newest episodes that failed, in [0.05, 1]."""
        failures = [
            1 - sum(recent) / len(recent) if recent else 1.0 for recent in self.recent_of_seeds
        ]
        return np.maximum(failures, LEAST_FAILURES)

    def episode_over(
        self,
        start: int | OrdinaryStart,
        *,
        succeeded: bool | None,
        episode_return: float,
        steps: int,
    ) -> None:
        reached = self._reached(start, succeeded, episode_return)
        if isinstance(start, OrdinaryStart):
            self._add(self.recent_of_seeds[start.seed], reached)
            return
        number, place = self.places[start]
        if place != self.starts[number]:
            return
        recent = self.recent[number]
        self._add(recent, reached)
        if len(recent) == self.episodes and np.mean(recent) >= self.success_rate:
            recent.clear()
            self._move_back(number)

    def _reached(
        self, start: int | OrdinaryStart, succeeded: bool | None, episode_return: float
    ) -> bool:
        if self.return_share is not None:
            ordinary = isinstance(start, OrdinaryStart)
            target = self.mean_return if ordinary else float(self.returns_to_go[start])
            return episode_return >= target - (1 - self.return_share) * abs(target)
        if succeeded is None:
            raise ConfigError(
                "ReverseForward moves its starts when episodes succeed, but this env reports "
                "neither info['success'] nor info['is_success'] at the end of an episode: give "
                "SnapshotRL a function success=, or set return_share (on the command line, "
                "snapshot_phase.reverse.return_share=0.9)."
            )
        return succeeded

    def _add(self, recent: list[bool], reached: bool) -> None:
        recent.append(reached)
        del recent[: -self.episodes]

    def _move_back(self, number: int) -> None:
        steps, start = self.steps[number], self.starts[number]
        if start == 0:
            self.solved[number] = True
        far_enough = int(np.searchsorted(steps, steps[start] - self.back_steps, side="right"))
        self.starts[number] = max(far_enough - 1, 0)

    def report(self, index: int, score: float) -> None:
        """Reports are ignored."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "starts": self.starts.copy(),
            "solved": self.solved.copy(),
            "recent": [list(recent) for recent in self.recent],
            "recent_of_seeds": [list(recent) for recent in self.recent_of_seeds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.starts = np.array(state["starts"])
        self.solved = np.array(state["solved"])
        self.recent = [list(recent) for recent in state["recent"]]
        self.recent_of_seeds = [list(recent) for recent in state["recent_of_seeds"]]
