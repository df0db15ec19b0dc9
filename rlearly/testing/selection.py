"""The contract of a selection rule of SnapshotRL."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.own_rule import METHODS
from rlearly.envs.snapshots.selection import FollowsEpisodes, OrdinaryStart
from rlearly.testing.laws import (
    Law,
    add_tests,
    check_all,
    expect,
    expect_equal,
    no_global_randomness,
)

EPISODES, LENGTH = 4, 10
CHOICES = 60


def example_snapshots() -> Snapshots:
    """40 snapshots of four episodes, without simulator states: only what a rule may read."""
    generator = np.random.default_rng(0)
    count = EPISODES * LENGTH
    rewards = generator.random(count).astype(np.float32)
    table = rewards.reshape(EPISODES, LENGTH)
    return Snapshots(
        records=[b""] * count,
        observations=generator.normal(size=(count, 3)).astype(np.float32),
        values=generator.normal(size=count),
        rewards=rewards,
        returns_to_go=np.cumsum(table[:, ::-1], axis=1)[:, ::-1].ravel(),
        returns=np.repeat(table.sum(1), LENGTH),
        steps=np.tile(np.arange(LENGTH), EPISODES),
        episodes=np.repeat(np.arange(EPISODES), LENGTH),
        env_id="Example-v0",
    )


@dataclass(frozen=True)
class RuleSubject:
    """A rule to check: what makes a new one."""

    make: Callable[[], Any]

    def prepared(self) -> Any:
        rule = self.make()
        rule.prepare(example_snapshots())
        return rule


def _follow(rule: Any, generator: np.random.Generator, count: int = CHOICES) -> list[Any]:
    """What a rule chooses, when it is told how the episodes went."""
    choices, follows = [], isinstance(rule, FollowsEpisodes)
    for _ in range(count):
        choice = rule.choose(generator)
        choices.append(choice.seed if isinstance(choice, OrdinaryStart) else int(choice))
        if not isinstance(choice, OrdinaryStart):
            rule.report(int(choice), float(generator.random()))
        if follows:
            success, steps = bool(generator.random() < 0.5), int(generator.integers(1, LENGTH))
            rule.episode_over(choice, succeeded=success, episode_return=2.0, steps=steps)
    return choices


# --- laws ---


def has_all_methods(subject: RuleSubject) -> None:
    """It has the methods of `Selection`."""
    rule = subject.make()
    missing = [name for name in METHODS if not callable(getattr(rule, name, None))]
    expect(not missing, f"expected the methods {', '.join(METHODS)}; missing: {', '.join(missing)}")


def chooses_snapshots_that_exist(subject: RuleSubject) -> None:
    """choose returns a snapshot's number or an OrdinaryStart."""
    rule, generator = subject.prepared(), np.random.default_rng(1)
    count = len(example_snapshots())
    for _ in range(CHOICES):
        choice = rule.choose(generator)
        whole = isinstance(choice, int | np.integer) and not isinstance(choice, bool)
        expect(
            isinstance(choice, OrdinaryStart) or (whole and 0 <= int(choice) < count),
            f"choose(random): expected a number from 0 to {count - 1} or an OrdinaryStart, "
            f"received {choice!r}",
        )


def draws_only_from_the_generator_that_it_is_given(subject: RuleSubject) -> None:
    """The generator's state determines the choices, and no global generator is used."""
    with no_global_randomness("the rule"):
        one, two = (_follow(subject.prepared(), np.random.default_rng(2)) for _ in range(2))
    expect_equal(one, two, "expected the same choices from the same state of the generator")


def loaded_rule_continues_to_the_bit(subject: RuleSubject) -> None:
    """A new rule that is prepared and loads the saved state chooses like the old one."""
    rule, loaded = subject.prepared(), subject.prepared()
    generator = np.random.default_rng(3)
    _follow(rule, generator)
    state = rule.state_dict()
    saved, other = copy.deepcopy(state), copy.deepcopy(generator)
    later = _follow(rule, generator)
    expect_equal(saved, state, "expected later choices to leave a state that was saved as it was")
    loaded.load_state_dict(saved)
    expect_equal(
        later,
        _follow(loaded, other),
        "expected a loaded rule to choose like the saved one; is state_dict incomplete?",
    )
    expect_equal(rule.state_dict(), loaded.state_dict(), "expected equal states afterwards")


def leaves_the_snapshots_alone(subject: RuleSubject) -> None:
    """Several rules and runs may share the snapshots."""
    snapshots = example_snapshots()
    rule = subject.make()
    rule.prepare(snapshots)
    _follow(rule, np.random.default_rng(4))
    for name in ("observations", "values", "rewards", "returns_to_go", "steps", "episodes"):
        expect_equal(
            getattr(example_snapshots(), name),
            getattr(snapshots, name),
            f"expected the rule to leave the snapshots' {name} as they are",
        )


SELECTION_LAWS: tuple[Law, ...] = (
    has_all_methods,
    chooses_snapshots_that_exist,
    draws_only_from_the_generator_that_it_is_given,
    loaded_rule_continues_to_the_bit,
    leaves_the_snapshots_alone,
)
"""What holds for every selection rule. Laws take a RuleSubject."""


def check_selection(make: Callable[[], Any]) -> None:
    """Check all laws of a selection rule.

    >>> from rlearly import Uniform
    >>> check_selection(Uniform)

    Args:
        make: makes a new rule: its class, or a function.

    Raises:
        LawBroken: a law is broken; the message lists all that are.
    """
    check_all(SELECTION_LAWS, RuleSubject(make))


class SelectionContract:
    """Tests of a selection rule, one for each law, for pytest.

        class TestMyRule(SelectionContract):
            rule = my_module.MyRule

    rule: its class, or a staticmethod that makes one.
    """

    rule: ClassVar[Any]

    def subjects(self) -> Iterator[RuleSubject]:
        yield RuleSubject(self.rule)


add_tests(SelectionContract, SELECTION_LAWS)
