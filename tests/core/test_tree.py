"""Walking nested states."""

import numpy as np

from rlearly.core.tree import leaves, map_leaves

TREE = {"agent": {"weights": [1.0, (2.0, 3.0)], "empty": {}}, 7: None}


def test_leaves_come_depth_first_with_keys_and_indices():
    assert list(leaves(TREE)) == [
        (("agent", "weights", 0), 1.0),
        (("agent", "weights", 1, 0), 2.0),
        (("agent", "weights", 1, 1), 3.0),
        ((7,), None),
    ]
    assert list(leaves(5)) == [((), 5)]
    array = np.zeros(2)
    assert list(leaves([array])) == [((0,), array)], "an array is a leaf"


def test_mapping_keeps_the_structure_and_changes_no_input():
    found = map_leaves(str, TREE)
    assert found == {"agent": {"weights": ["1.0", ("2.0", "3.0")], "empty": {}}, 7: "None"}
    assert type(found["agent"]["weights"][1]) is tuple
    assert TREE["agent"]["weights"] == [1.0, (2.0, 3.0)]


def test_mapping_can_stop_at_marked_dicts():
    tree = {"a": [{"__array__": 3}], "b": {"__array__": 4, "more": 5}}
    found = map_leaves(
        lambda leaf: leaf["__array__"] if isinstance(leaf, dict) else -leaf,
        tree,
        is_leaf=lambda node: isinstance(node, dict) and set(node) == {"__array__"},
    )
    assert found == {"a": [3], "b": {"__array__": -4, "more": -5}}
