"""Walk nested states: dicts, lists and tuples, with anything else as a leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def children(tree: Any) -> dict[Any, Any] | None:
    """The parts of a dict by key, or of a list or tuple by index; None for a leaf."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, list | tuple):
        return dict(enumerate(tree))
    return None


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every leaf, depth first, with its path: the keys and indices that lead to it."""
    parts = children(tree)
    if parts is None:
        yield path, tree
        return
    for key, part in parts.items():
        yield from leaves(part, (*path, key))


def map_leaves(
    function: Callable[[Any], Any], tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """A copy of the tree with `function` applied to each leaf, in the order of `leaves`.

    Args:
        is_leaf: called on every node; where it is true, the node is a leaf even if it is a dict,
            list or tuple.
    """
    parts = None if is_leaf and is_leaf(tree) else children(tree)
    if parts is None:
        return function(tree)
    mapped = {key: map_leaves(function, part, is_leaf=is_leaf) for key, part in parts.items()}
    return mapped if isinstance(tree, Mapping) else type(tree)(mapped.values())
