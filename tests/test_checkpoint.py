"""Whole or not there."""

import json
import pickle

import numpy as np
import pytest
import torch
from saved import equal

from rlearly import checkpoint
from rlearly.checkpoint import DamagedCheckpoint
from rlearly.config import ConfigError

STATE = {
    "replay": {"frames": np.arange(60, dtype=np.uint8).reshape(5, 12), "none": np.zeros(0)},
    "agent": {"w": torch.arange(3.0), "list": [1, 2.5, None, "text", True], "betas": (0.9, 0.999)},
    "rng": np.random.default_rng(0).bit_generator.state,
}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path, 400, STATE, keep=2)
    frames, state = checkpoint.load_newest(tmp_path)
    assert frames == 400 and equal(STATE, state)


def test_only_the_newest_are_kept(tmp_path):
    for frames in (10, 200, 3000, 40_000):
        checkpoint.save(tmp_path, frames, STATE, keep=2)
    assert [int(p.name) for p in checkpoint.found(tmp_path)] == [3000, 40_000]


def test_views_of_big_arrays_are_saved_as_their_part_only(tmp_path):
    big = np.zeros((1000, 1000))
    path = checkpoint.save(tmp_path, 1, {"part": big[:3]}, keep=1)
    assert sum(f.stat().st_size for f in path.iterdir()) < 50_000


@pytest.mark.parametrize(
    ("file", "damage"),
    [(f, d) for f in ("state.pt", "array_0.npy") for d in ("truncate", "flip", "remove", "empty")]
    + [("manifest.json", d) for d in ("truncate", "remove", "empty")],
)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, file, damage, caplog):
    checkpoint.save(tmp_path, 1, STATE, keep=2)
    victim = checkpoint.save(tmp_path, 2, STATE, keep=2) / file
    data = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 4
        victim.write_bytes(data)
    elif damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        checkpoint.load(victim.parent)
    assert checkpoint.load_newest(tmp_path)[0] == 1
    assert "Trying the one before it" in caplog.text


def test_save_after_falling_back_replaces_the_damaged_newer_ones(tmp_path):
    for frames in (100, 200, 300):
        checkpoint.save(tmp_path, frames, STATE, keep=3)
    for frames in (200, 300):
        (tmp_path / f"{frames:012d}" / "state.pt").write_bytes(b"")
    assert checkpoint.load_newest(tmp_path)[0] == 100
    (tmp_path / ".000000000250.partial").mkdir()
    checkpoint.save(tmp_path, 150, STATE, keep=2)
    assert [int(p.name) for p in checkpoint.found(tmp_path)] == [100, 150]
    assert not list(tmp_path.glob(".*"))


def test_nothing_whole_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="There is no checkpoint in"):
        checkpoint.load_newest(tmp_path)
    path = checkpoint.save(tmp_path, 2, STATE, keep=2)
    (path / "state.pt").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"No checkpoint in .* is whole: .*state.pt should have"):
        checkpoint.load_newest(tmp_path)


def test_half_written_checkpoint_is_not_seen_and_does_not_block_the_next(tmp_path):
    (tmp_path / ".000000000002.partial").mkdir()
    (tmp_path / ".000000000002.partial" / "state.pt").write_bytes(b"half")
    assert checkpoint.found(tmp_path) == []
    checkpoint.save(tmp_path, 2, STATE, keep=2)
    assert checkpoint.load_newest(tmp_path)[0] == 2


def test_hostile_pickle_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    path = checkpoint.save(tmp_path, 2, STATE, keep=2)
    torch.save({"x": Hostile()}, path / "state.pt", pickle_module=pickle)
    data = (path / "state.pt").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    import hashlib

    manifest["files"]["state.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match=r"state\.pt does not load"):
        checkpoint.load(path)
