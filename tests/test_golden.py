"""Restructuring changes no result: what a short run of each agent computes is on record."""

import json

import golden
import pytest


@pytest.fixture(scope="module")
def found():
    return golden.record(golden.HERE.parent, small=True)


@pytest.mark.parametrize("agent", golden.AGENTS)
def test_a_short_run_computes_what_is_on_record(agent, found):
    """To the bit where the record was made; elsewhere all that does not hang on rounding."""
    before = json.loads(golden.RECORD.read_text(encoding="utf-8"))["small"]
    case = f"{agent} plain"
    if found["machine"] == before["machine"]:
        assert found[case]["hashes"] == before[case]["hashes"]
    for kind, (count, total) in before[case]["sums"].items():
        assert found[case]["sums"][kind][0] == count
        if kind in ("weights", "replay"):
            assert found[case]["sums"][kind][1] == pytest.approx(total, rel=0.05)


def test_a_change_of_one_weight_is_told():
    before = {"a": {"hashes": {"weights": "1", "rows": "2"}}}
    after = {"a": {"hashes": {"weights": "1", "rows": "3"}}, "machine": {}}
    assert golden.different(before, before) == []
    assert golden.different(before, after) == ["a: rows"]
