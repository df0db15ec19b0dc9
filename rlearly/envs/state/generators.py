"""Random generators: their states as plain data, and the global ones, which envs must not use."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlearly.core.tree import map_leaves

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class UnknownGenerator(Exception):
    """A saved generator is of a kind that cannot be made here."""


def is_generator(value: Any) -> bool:
    """Whether a value is a random generator of numpy, Python or torch."""
    return _is_generator_class(type(value))


@functools.cache
def _is_generator_class(kind: type) -> bool:
    if issubclass(kind, np.random.Generator | np.random.RandomState | random.Random):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(kind, torch.Generator)


def generator_state(generator: Any) -> dict[str, Any]:
    """A random generator's state as a tree."""
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"class": "python", "version": version, "words": list(words), "gauss": gauss}

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        return leaf.item() if isinstance(leaf, np.generic) else leaf

    if isinstance(generator, np.random.RandomState):
        return {"class": "legacy", "state": map_leaves(plain, generator.get_state(legacy=False))}
    if isinstance(generator, np.random.Generator):
        return {"class": "numpy", "state": map_leaves(plain, generator.bit_generator.state)}
    return {"class": "torch", "state": generator.get_state().numpy().copy()}


def with_state(generator: Any, state: dict[str, Any]) -> Any:
    """`generator` set to `state`, or a new generator if `state` is of a different kind.

    Raises:
        UnknownGenerator: `state` is of a kind that cannot be made here.
    """
    if state["class"] == "python":
        generator = generator if isinstance(generator, random.Random) else random.Random()
        generator.setstate((state["version"], tuple(state["words"]), state["gauss"]))
        return generator
    if state["class"] == "torch":
        import torch

        generator = generator if isinstance(generator, torch.Generator) else torch.Generator()
        generator.set_state(torch.from_numpy(np.array(state["state"])))
        return generator
    values = state["state"]
    name = values["bit_generator"]
    if name not in BIT_GENERATORS:
        raise UnknownGenerator(f"there is no generator {name}")
    legacy = state["class"] == "legacy"
    kind: Any = np.random.RandomState if legacy else np.random.Generator
    fits = isinstance(generator, kind) and generator_state(generator)["state"]
    if not fits or fits["bit_generator"] != name:
        generator = kind(getattr(np.random, name)())
    if legacy:
        generator.set_state(values)
    else:
        generator.bit_generator.state = values
    return generator


def draw_seed(generator: Any) -> int:
    """A seed below 2**31, drawn from a generator of numpy or Python."""
    if isinstance(generator, np.random.RandomState):
        return int(generator.randint(2**31 - 1))
    if isinstance(generator, random.Random):
        return generator.getrandbits(31)
    return int(generator.integers(2**31))


def as_generator(generator: Any) -> np.random.Generator:
    """A numpy Generator: the same, or one seeded from an env's generator of another kind."""
    if isinstance(generator, np.random.Generator):
        return generator
    return np.random.default_rng(draw_seed(generator))


def _global_states() -> dict[str, Any]:
    """The states of the global generators, by the names that users know them by."""
    states: dict[str, Any] = {
        "numpy.random": np.random.get_state(),  # noqa: NPY002
        "random": random.getstate(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.random.get_rng_state()
    return states


def _set_global_states(states: dict[str, Any]) -> None:
    np.random.set_state(states["numpy.random"])  # noqa: NPY002
    random.setstate(states["random"])
    if "torch" in states:
        sys.modules["torch"].random.set_rng_state(states["torch"])


@contextmanager
def global_generators_watched() -> Iterator[list[str]]:
    """Within the block, whoever draws from a global generator is found out.

    Yields a list that holds, after the block, the names of the global generators that were drawn
    from or seeded: numpy.random, random, torch. They are put back.
    """
    drawn: list[str] = []
    before = _global_states()
    try:
        yield drawn
    finally:
        after = _global_states()
        for name, state in before.items():
            if not _equal(state, after[name]):
                drawn.append(name)
        if drawn:
            _set_global_states(before)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    if one is None or two is None:
        return one is two
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))
