"""Damaged and hostile files: loaders refuse each in one sentence and do not crash.

The damaged ones are loaded in a process of its own, so that a crash or a hang is a failing test.
"""

import faulthandler
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import USER_BLOCK_BYTES, Snapshots, seal
from rlearly.envs.snapshots.recording import record
from rlearly.replay.buffer import ReplayBuffer, TransitionLayout
from rlearly.training import checkpoint
from rlearly.training.checkpoint import Checkpoints, DamagedCheckpoint


def load_around(file):
    """Load a checkpoint after one of its files was damaged, rows included."""
    (folder,) = checkpoint.list_checkpoints(
        next(p for p in file.parents if checkpoint.list_checkpoints(p))
    )
    for chunk_rows in checkpoint.load(folder)["replay"]["slots"].chunks():
        assert chunk_rows


LOADERS = {
    "snapshots": (Snapshots.load, ConfigError, USER_BLOCK_BYTES),
    "checkpoint": (load_around, DamagedCheckpoint, 80),
}
"""The loader of a path, what it raises, and how many of the first bytes are damaged one by one."""
CASE_SECONDS = 10
TEACHERS = Path(__file__).parents[2] / "rlearly/experiments/results/s3rl_cpu/teachers"
KINDS = ("cut", "flip", "noise", "span", "tail")


def damages(data, generator, count, head_bytes=0):
    """(label, damaged data): a flip in each of the first bytes, then `count` of each of KINDS."""

    def span(start, stop):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[start:stop] ^= generator.integers(1, 256, stop - start, dtype=np.uint8)
        return changed.tobytes()

    def flip(index):
        bit = int(generator.integers(8))
        changed = bytearray(data)
        changed[index] ^= 1 << bit
        return f"bit {bit} of byte {index}", bytes(changed)

    for index in range(head_bytes):
        label, changed = flip(index)
        yield f"head: {label}", changed
    for _ in range(count):
        length = int(generator.integers(len(data)))
        yield f"cut: to {length} bytes", data[:length]
        label, changed = flip(int(generator.integers(len(data))))
        yield f"flip: {label}", changed
        length = int(generator.integers(2 * len(data)))
        yield f"noise: {length} bytes", generator.bytes(length)
        start, stop = sorted(generator.choice(len(data) + 1, 2, replace=False).tolist())
        yield f"span: bytes {start} to {stop}", span(start, stop)
        length = int(generator.integers(1, 1000))
        yield f"tail: {length} bytes more", data + generator.bytes(length)


def fuzz(loader, path, count, seconds, seed=0):
    """How many damages of each kind the loader refused, in its own process."""
    command = [sys.executable, __file__, loader, str(path), str(count), str(seed)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        out, complaint = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, complaint = process.communicate()
        complaint = f"It took more than {seconds} s. {complaint}"
    labels = out.splitlines()
    assert process.returncode == 0, f"{labels[-1:]}, exit {process.returncode}: {complaint}"
    return Counter(label.partition(":")[0] for label in labels)


def fuzz_here(loader, path, count, seed):
    """Print each damage and load it; exit when one is not refused in one line.

    A case of more than CASE_SECONDS ends the process, wherever it hangs.
    """
    load, refusal, head_bytes = LOADERS[loader]
    whole = path.read_bytes()
    load(path)
    for label, data in damages(whole, np.random.default_rng(seed), count, head_bytes):
        print(label, flush=True)
        path.write_bytes(data)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        try:
            load(path)
        except refusal as error:
            if "\n" in str(error):
                sys.exit(f"refused in several lines: {error}")
        else:
            sys.exit("accepted")
        finally:
            faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def snapshots():
    env = gymnasium.make("CartPole-v1")
    return record(env, lambda obs: 0, value=lambda obs: 1.0, episodes=2, every_steps=3)


@pytest.fixture
def path(snapshots, tmp_path):
    snapshots.save(tmp_path / "t.h5")
    return tmp_path / "t.h5"


def test_damages_differ_from_the_data_and_repeat_with_the_seed():
    data = bytes(range(256)) * 4

    def drawn(seed):
        return list(damages(data, np.random.default_rng(seed), 50, head_bytes=16))

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(changed != data for _, changed in drawn(0))
    assert all(drawn(0)[index][1][index] != data[index] for index in range(16))


# --- checkpoints ---

FILES = ("manifest.sha256", "manifest.json", "state.pt", "array_0.npy", "rows")


@pytest.fixture
def checkpoint_files(tmp_path):
    """A small checkpoint of a replay and weights: name -> file."""
    layout = TransitionLayout(frame_shape=(3,), frame_dtype="float32", frame_stack=1, actions=1)
    random = np.random.default_rng(0)
    replay = ReplayBuffer(layout, capacity=40, nstep=3, discount=0.99, generator=random)
    replay.begin_episode(np.zeros(3, np.float32))
    for _ in range(60):
        replay.add(random.random(1), 1.0, random.random(3), terminated=False, truncated=False)
    state = {"agent": {"w": torch.arange(50.0)}, "replay": replay.state_dict()}
    folder = Checkpoints(tmp_path / "checkpoints", keep=1).save(7, state)
    rows, _ = (tmp_path / "checkpoints" / "logs").iterdir()  # before and after the buffer's end
    return {"rows": rows} | {file.name: file for file in folder.iterdir()}


@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoints_are_refused(checkpoint_files, name):
    refused = fuzz("checkpoint", checkpoint_files[name], count=60, seconds=120)
    assert refused == {"head": 80} | dict.fromkeys(KINDS, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_thousands_of_damaged_checkpoints_are_refused(checkpoint_files, name):
    refused = fuzz("checkpoint", checkpoint_files[name], 1000, seconds=600, seed=1)
    print(name, dict(refused))
    assert refused == {"head": 80} | dict.fromkeys(KINDS, 1000)


# --- snapshots ---


def test_damaged_snapshots_are_refused(path):
    refused = fuzz("snapshots", path, count=60, seconds=60)
    assert refused == {"head": USER_BLOCK_BYTES} | dict.fromkeys(KINDS, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "count"), [(None, 4000), ("Hopper-v5", 400)])
def test_thousands_of_damaged_snapshots_are_refused(path, teacher, count):
    if teacher is not None:
        path.write_bytes((TEACHERS / f"{teacher}.h5").read_bytes())
    refused = fuzz("snapshots", path, count, seconds=600, seed=1)
    print(dict(refused))
    assert refused == {"head": USER_BLOCK_BYTES} | dict.fromkeys(KINDS, count)


@pytest.mark.parametrize(("env_id", "count"), [("Hopper-v5", 336), ("Walker2d-v5", 297)])
def test_teachers_of_the_study_load(env_id, count):
    snapshots = Snapshots.load(TEACHERS / f"{env_id}.h5")
    assert (snapshots.env_id, len(snapshots)) == (env_id, count)


def test_other_programs_open_snapshots_and_their_changes_are_noticed(path, snapshots):
    with h5py.File(path) as file:
        assert np.array_equal(file["returns"][()], snapshots.returns)
    assert len(Snapshots.load(path)) == len(snapshots)
    with h5py.File(path, "a") as file:
        file["extra"] = 1
    with pytest.raises(ConfigError, match="its length or checksum differs from the one stored"):
        Snapshots.load(path)
    seal(path)
    assert len(Snapshots.load(path)) == len(snapshots)


def test_snapshots_of_format_1_are_refused_with_what_to_do(path):
    path.write_bytes(path.read_bytes()[USER_BLOCK_BYTES:])
    with pytest.raises(ConfigError, match="this version reads format 3: record it again with"):
        Snapshots.load(path)


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(file, folder):
    data = np.frombuffer(pickle.dumps(Touches(folder / "ran")), np.uint8)
    rows = file.create_dataset("values", len(file["steps"]), h5py.vlen_dtype(np.uint8))
    rows[:] = [data] * len(rows)


def opaque(tag):
    """Bytes that h5py would read as objects, taking them for their addresses."""

    def write(file, folder):
        kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
        kind.set_tag(b"NUMPY:" + tag)
        space = h5py.h5s.create_simple((len(file["steps"]),))
        values = h5py.h5d.create(file.id, b"values", kind, space)
        values.write(h5py.h5s.ALL, h5py.h5s.ALL, np.full(len(file["steps"]), b"\1" * 8, "V8"), kind)

    return write


def external_link(file, folder):
    file["values"] = h5py.ExternalLink(str(folder / "other.h5"), "/values")


def external_group(file, folder):
    file.move("states", "own")
    file["states"] = h5py.ExternalLink(str(folder / "other.h5"), "/states")
    file["values"] = file["returns"][()]


def soft_link(file, folder):
    file["values"] = h5py.SoftLink("/returns")


def virtual(file, folder):
    source = h5py.VirtualSource(folder / "other.h5", "values", file["steps"].shape, np.float64)
    layout = h5py.VirtualLayout(file["steps"].shape, np.float64)
    layout[:] = source
    file.create_virtual_dataset("values", layout)


def raw_file(file, folder):
    (folder / "raw").write_bytes(bytes(8 * len(file["steps"])))
    segments = [(str(folder / "raw"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("values", file["steps"].shape, np.float64, external=segments)


def complex_numbers(file, folder):
    file["values"] = np.zeros(len(file["steps"]), np.complex128)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (pickled, "values is not made of numbers"),
        (opaque(b"|O"), "values is not made of numbers"),
        (opaque(b"<f8"), "values is not made of numbers"),
        (external_link, "values is not within the file"),
        (external_group, "states/ends is not within the file"),
        (soft_link, "values is not within the file"),
        (virtual, "values is not plain data within the file"),
        (raw_file, "values is not plain data within the file"),
        (complex_numbers, "values: expected float64, found complex128"),
    ],
)
def test_hostile_snapshots_with_a_right_checksum_are_refused(path, snapshots, write, reason):
    snapshots.save(path.with_name("other.h5"))
    with h5py.File(path, "a") as file:
        del file["values"]
        write(file, path.parent)
    seal(path)
    with pytest.raises(ConfigError, match=reason):
        Snapshots.load(path)
    assert not path.with_name("ran").exists()


def test_hostile_attribute_with_a_right_checksum_is_refused(path):
    with h5py.File(path, "a") as file:
        del file.attrs["rlearly_snapshots"]
        file.attrs["rlearly_snapshots"] = np.void(b"\1" * 8)
    seal(path)
    with pytest.raises(ConfigError, match="rlearly_snapshots is not text"):
        Snapshots.load(path)


if __name__ == "__main__":
    fuzz_here(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
