"""Laws: functions that raise LawBroken if what they are given breaks them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rlearly.core.tree_diff import first_difference

Law = Callable[[Any], None]


class LawBroken(AssertionError):
    """One sentence: what was expected, and what happened."""


def expect(holds: bool, sentence: str) -> None:
    """Raise LawBroken with this sentence unless `holds`."""
    if not holds:
        raise LawBroken(sentence)


def expect_equal(one: Any, two: Any, sentence: str) -> None:
    """Raise LawBroken with the first difference unless two nested states are equal bit for bit."""
    difference = first_difference(one, two)
    if difference:
        raise LawBroken(f"{sentence}; the first difference is {difference}")


@contextmanager
def no_global_randomness(what: str) -> Iterator[None]:
    """Raise LawBroken if something inside draws from a global generator, or seeds it."""
    before = _global_states()
    yield
    for name, state in _global_states().items():
        expect(
            first_difference(before[name], state) is None,
            f"{what} changed the global random generator of {name}; draw from a generator of your "
            "own, which the run's seed determines",
        )


def _global_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  it is read only
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, np.array(keys), *rest],
        "Python": [*map(repr, random.getstate())],
    }


def check_all(laws: Sequence[Law], subject: Any) -> None:
    """Check every law.

    Raises:
        LawBroken: at least one is broken; the message lists them all.
    """
    broken = []
    for law in laws:
        try:
            law(subject)
        except Exception as error:  # what is checked may raise anything
            text = (
                str(error) if isinstance(error, LawBroken) else f"{type(error).__name__}: {error}"
            )
            broken.append((f"{law.__name__}: {text}", error))
    if broken:
        raise LawBroken("\n".join(sentence for sentence, _ in broken)) from broken[0][1]


def as_test(law: Law) -> Callable[[Any], None]:
    """A law as a test method of a contract, which has the method `subjects`."""

    def test(self: Any) -> None:
        for subject in self.subjects():
            law(subject)

    test.__doc__ = law.__doc__
    test.__name__ = f"test_{law.__name__}"
    return test


def add_tests(contract: type, laws: Sequence[Law]) -> None:
    """Give a contract a test method for each law."""
    for law in laws:
        setattr(contract, f"test_{law.__name__}", as_test(law))
