"""Checkpoints are whole or absent."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from saved import equal

from rlearly.core.append_log import AppendLog
from rlearly.core.errors import ConfigError
from rlearly.system.disk import sync_folder
from rlearly.training import checkpoint
from rlearly.training.checkpoint import Checkpoints, DamagedCheckpoint

STATE = {
    "replay": {"frames": np.arange(60, dtype=np.uint8).reshape(5, 12), "none": np.zeros(0)},
    "agent": {"w": torch.arange(3.0), "list": [1, 2.5, None, "text", True], "betas": (0.9, 0.999)},
    "rng": np.random.default_rng(0).bit_generator.state,
}


def test_what_is_saved_is_loaded(tmp_path):
    Checkpoints(tmp_path, keep=2).save(400, STATE)
    frames, state = checkpoint.load_newest(tmp_path)
    assert frames == 400 and equal(STATE, state)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO])
def test_file_system_that_cannot_sync_keeps_checkpoints_and_a_failing_disk_does_not(
    tmp_path, monkeypatch, number
):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    refused = pytest.raises(OSError) if number == errno.EIO else contextlib.nullcontext()
    with refused:
        Checkpoints(tmp_path, keep=2).save(400, STATE)
    assert len(checkpoint.list_checkpoints(tmp_path)) == (number != errno.EIO)


def test_folder_that_cannot_be_opened_needs_no_sync(tmp_path, monkeypatch):
    def opened(path, *args):
        raise PermissionError(errno.EACCES, "as on Windows")

    monkeypatch.setattr(os, "open", opened)
    sync_folder(tmp_path)


def test_only_the_newest_are_kept(tmp_path):
    for frames in (10, 200, 3000, 40_000):
        Checkpoints(tmp_path, keep=2).save(frames, STATE)
    assert [int(p.name) for p in checkpoint.list_checkpoints(tmp_path)] == [3000, 40_000]


def test_views_of_big_arrays_are_saved_as_their_part_only(tmp_path):
    big = np.zeros((1000, 1000))
    path = Checkpoints(tmp_path, keep=1).save(1, {"part": big[:3]})
    assert sum(f.stat().st_size for f in path.iterdir()) < 50_000


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (f, d)
        for f in ("state.pt", "array_0.npy", "manifest.json", "manifest.sha256")
        for d in ("truncate", "flip", "remove", "empty")
    ],
)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, file, damage, caplog):
    Checkpoints(tmp_path, keep=2).save(1, STATE)
    victim = Checkpoints(tmp_path, keep=2).save(2, STATE) / file
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
        Checkpoints(tmp_path, keep=3).save(frames, STATE)
    for frames in (200, 300):
        (tmp_path / f"{frames:012d}" / "state.pt").write_bytes(b"")
    assert checkpoint.load_newest(tmp_path)[0] == 100
    (tmp_path / ".000000000250.partial").mkdir()
    Checkpoints(tmp_path, keep=2).save(150, STATE)
    assert [int(p.name) for p in checkpoint.list_checkpoints(tmp_path)] == [100, 150]
    assert not list(tmp_path.glob(".*"))


def test_renamed_checkpoint_is_not_taken_for_another(tmp_path):
    path = Checkpoints(tmp_path, keep=2).save(100, STATE)
    path.rename(tmp_path / f"{200:012d}")
    with pytest.raises(ConfigError, match="manifest is not what was written"):
        checkpoint.load_newest(tmp_path)


def test_nothing_whole_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="There is no checkpoint in"):
        checkpoint.load_newest(tmp_path)
    path = Checkpoints(tmp_path, keep=2).save(2, STATE)
    (path / "state.pt").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"No checkpoint in .* is whole: .*state.pt should have"):
        checkpoint.load_newest(tmp_path)


def test_half_written_checkpoint_is_not_seen_and_does_not_block_the_next(tmp_path):
    (tmp_path / ".000000000002.partial").mkdir()
    (tmp_path / ".000000000002.partial" / "state.pt").write_bytes(b"half")
    assert checkpoint.list_checkpoints(tmp_path) == []
    Checkpoints(tmp_path, keep=2).save(2, STATE)
    assert checkpoint.load_newest(tmp_path)[0] == 2


def test_hostile_pickle_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    path = Checkpoints(tmp_path, keep=2).save(2, STATE)
    torch.save({"x": Hostile()}, path / "state.pt", pickle_module=pickle)
    reseal(path, "state.pt")
    with pytest.raises(DamagedCheckpoint, match="its state does not load"):
        checkpoint.load(path)


def test_hostile_array_is_refused(tmp_path):
    path = Checkpoints(tmp_path, keep=2).save(2, STATE)
    np.save(path / "array_0.npy", np.array([print], dtype=object), allow_pickle=True)
    reseal(path, "array_0.npy")
    with pytest.raises(DamagedCheckpoint, match="its state does not load"):
        checkpoint.load(path)


def reseal(path, name):
    """Make the sums fit a file's new content, as an attacker would."""
    data = (path / name).read_bytes()
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    seal = f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n"
    (path / "manifest.sha256").write_text(seal, encoding="utf-8")


# --- append logs ---


def rows_from(first, end, width=1000):
    """An append log with row i full of i."""

    def read(low, high):
        for at, stop in ((low, (low + high) // 2), ((low + high) // 2, high)):  # in two chunks
            if at < stop:
                rows = np.repeat(np.arange(at, stop, dtype=np.int32)[:, None], width, axis=1)
                yield at, {"wide": rows, "plain": rows[:, 0].astype(np.uint8)}

    return AppendLog(first, end, read)


def assert_is(loaded, first, end):
    assert (loaded.first, loaded.end) == (first, end)
    rows = loaded.rows()
    assert (rows["wide"] == np.arange(first, end)[:, None]).all()
    assert (rows["plain"] == np.arange(first, end).astype(np.uint8)).all()
    assert len(rows["wide"]) == end - first


def written(folder):
    """Chunk file -> when it was last written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "logs").iterdir()}


def test_a_checkpoint_writes_only_the_rows_that_the_one_before_has_not(tmp_path):
    """A row is 4 kB: 2000 of them are more than a small file."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, {"slots": rows_from(0, 2000)})
    before = written(tmp_path)
    checkpoints.save(2, {"slots": rows_from(1500, 4000)})
    checkpoints.save(3, {"slots": rows_from(1500, 4200)})
    after = written(tmp_path)
    assert before.items() <= after.items(), "files are written once"
    assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], 1500, 4200)
    assert_is(checkpoint.load(tmp_path / f"{2:012d}")["slots"], 1500, 4000)
    sizes = sorted(p.stat().st_size for p in (tmp_path / "logs").iterdir())
    assert sum(sizes) < 4005 * (4200 + 200), "each row once, and small files once more"


def test_rows_are_deleted_when_no_checkpoint_needs_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for frames, (first, end) in enumerate([(0, 2000), (0, 4000), (3000, 6000), (5999, 9000)]):
        checkpoints.save(frames, {"slots": rows_from(first, end)})
        assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], first, end)
    names = sorted(written(tmp_path))
    assert [name[2:27] for name in names] == [
        "000000005000-000000006000",
        "000000006000-000000007500",
        "000000007500-000000009000",
    ]


def test_frequent_checkpoints_do_not_leave_thousands_of_files(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for end in range(10, 1010, 10):
        checkpoints.save(end, {"slots": rows_from(0, end, width=3)})
    assert len(written(tmp_path)) <= 4
    assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], 0, 1000)


def test_going_on_from_a_loaded_checkpoint_writes_only_new_rows(tmp_path):
    Checkpoints(tmp_path, keep=3).save(1, {"slots": rows_from(0, 3000)})
    before = written(tmp_path)
    later = Checkpoints(tmp_path, keep=3)
    assert later.load_newest()[0] == 1
    later.save(2, {"slots": rows_from(0, 6000)})
    assert before.items() <= written(tmp_path).items()
    assert sum(p.stat().st_size for p in (tmp_path / "logs").iterdir()) < 4005 * 6100
    assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], 0, 6000)


def test_going_on_past_a_damaged_checkpoint_does_not_use_its_rows(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, {"slots": rows_from(0, 2000)})
    (damaged,) = {
        p
        for p in checkpoints.save(2, {"slots": rows_from(0, 4000)}).parent.glob("logs/*")
        if "-000000004000-" in p.name
    }
    damaged.write_bytes(damaged.read_bytes()[:-1])
    later = Checkpoints(tmp_path, keep=3)
    assert later.load_newest()[0] == 1
    later.save(2, {"slots": rows_from(0, 4000)})
    assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], 0, 4000)
    assert checkpoint.load_newest(tmp_path)[0] == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_rows_make_a_checkpoint_damaged_unless_they_are_not_wanted(tmp_path, damage):
    path = Checkpoints(tmp_path, keep=1).save(1, {"slots": rows_from(0, 50), "w": torch.ones(2)})
    (rows, *_) = (tmp_path / "logs").iterdir()
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 16
    rows.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "remove":
        rows.unlink()
    with pytest.raises(DamagedCheckpoint, match=r"\.rows"):
        checkpoint.load(path)
    assert checkpoint.load_newest(tmp_path, logs=False)[1]["w"].tolist() == [1, 1]


def test_full_disk_leaves_the_checkpoint_before_and_no_leftovers(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"slots": rows_from(0, 2000), "w": torch.ones(2)})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for calls in range(1, 40):  # of every write in turn
        left = [calls]
        real = checkpoint._HashedFile.write

        def full(self, data, left=left, real=real):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            return real(self, data)

        monkeypatch.setattr(checkpoint._HashedFile, "write", full)
        try:
            checkpoints.save(2, {"slots": rows_from(0, 4000), "w": torch.ones(2)})
        except OSError:
            now = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
            assert now == before
        else:
            break
        finally:
            monkeypatch.undo()
    assert calls > 8
    assert_is(checkpoint.load_newest(tmp_path)[1]["slots"], 0, 4000)


# --- reading while the run that writes them deletes old ones ---


def test_checkpoint_deleted_after_it_was_listed_gives_way_to_the_newest(
    tmp_path, monkeypatch, caplog
):
    Checkpoints(tmp_path, keep=1).save(1, STATE)
    verify = checkpoint.verify

    def overtaken(path, *, logs=True):
        verify(path, logs=logs)
        if path.name.endswith("1"):  # between the check and the load
            Checkpoints(tmp_path, keep=1).save(2, STATE)

    monkeypatch.setattr(checkpoint, "verify", overtaken)
    assert checkpoint.load_newest(tmp_path)[0] == 2 and not caplog.records
    Checkpoints(tmp_path, keep=1).save(11, STATE)
    with pytest.raises(ConfigError, match=r"there is none at 11 frames in .*; kept: 12"):
        monkeypatch.setattr(
            checkpoint, "verify", lambda path, **_: Checkpoints(tmp_path, 1).save(12, STATE)
        )
        checkpoint.load_at(tmp_path, 11)


def test_digest_of_a_deleted_checkpoint_gives_way_to_the_newest(tmp_path, monkeypatch):
    Checkpoints(tmp_path, keep=1).save(1, STATE)
    manifest = checkpoint._manifest

    def overtaken(path):
        if path.name.endswith("1") and path.is_dir():
            Checkpoints(tmp_path, keep=1).save(2, STATE)
        return manifest(path)

    monkeypatch.setattr(checkpoint, "_manifest", overtaken)
    found = checkpoint.newest_digest(tmp_path)
    assert found == (2, checkpoint.digest(tmp_path, 2))


def test_deletion_that_is_killed_leaves_no_damaged_checkpoint(tmp_path, monkeypatch, caplog):
    Checkpoints(tmp_path, keep=1).save(1, STATE)

    def killed(path, **_):
        for file in path.glob("*.pt"):
            file.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        Checkpoints(tmp_path, keep=1).save(2, STATE)
    assert [int(p.name) for p in checkpoint.list_checkpoints(tmp_path)] == [2]
    Checkpoints(tmp_path, keep=1).save(2, STATE)
    assert not list(tmp_path.glob(".*")) and not caplog.records


def test_checkpoint_is_replaced_by_another_state_at_the_same_frames_only_on_request(tmp_path):
    for replace, expected in ((False, 1), (True, 2)):
        Checkpoints(tmp_path, keep=2).save(5, {"w": 1})
        Checkpoints(tmp_path, keep=2).save(5, {"w": 2}, replace=replace)
        assert checkpoint.load_newest(tmp_path) == (5, {"w": expected})
        assert [path.name for path in tmp_path.iterdir()] == [f"{5:012d}"]


def save_many(folder):
    for frames in range(1, 100):
        Checkpoints(folder, keep=1).save(frames, {"w": np.full(2000, frames)})


def test_newest_checkpoint_loads_while_another_process_saves_and_deletes(tmp_path, caplog):
    Checkpoints(tmp_path, keep=1).save(0, {"w": np.full(2000, 0)})
    writer = multiprocessing.get_context("fork").Process(target=save_many, args=(tmp_path,))
    writer.start()
    seen = set()
    while writer.is_alive():
        frames, state = checkpoint.load_newest(tmp_path, logs=False)
        assert set(state["w"]) == {frames}
        assert checkpoint.newest_digest(tmp_path)[0] >= frames
        seen.add(frames)
    assert writer.exitcode == 0 and len(seen) > 1 and not caplog.records
