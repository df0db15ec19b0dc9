"""Damaged files: a loader says no to each in one sentence, and lives.

They are loaded in a process of its own, so that a crash or a hang is a failing test.
"""

import faulthandler
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from rlearly.config import ConfigError
from rlearly.envs.snapshots import USER_BLOCK_BYTES, Snapshots, record, seal

LOADERS = {"snapshots": (Snapshots.load, ConfigError, USER_BLOCK_BYTES)}
"""What loads a path, what it raises, and how many first bytes are each to be damaged."""
CASE_SECONDS = 10
KINDS = ("cut", "flip", "noise", "span", "tail")


def damages(data, generator, count, head_bytes=0):
    """(label, damaged data): a flip in each of the first bytes, then `count` of each of KINDS."""

    def span(start, stop):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[start:stop] ^= generator.integers(1, 256, stop - start, dtype=np.uint8)
        return changed.tobytes()

    def flip(place):
        bit = int(generator.integers(8))
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        return f"bit {bit} of byte {place}", bytes(changed)

    for place in range(head_bytes):
        label, changed = flip(place)
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
    """How many damages of each kind the loader refused, in a process of its own."""
    command = [sys.executable, __file__, loader, str(path), str(count), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    assert all(drawn(0)[place][1][place] != data[place] for place in range(16))


# --- snapshots ---


def test_damaged_snapshots_are_refused(path):
    refused = fuzz("snapshots", path, count=60, seconds=60)
    assert refused == {"head": USER_BLOCK_BYTES} | dict.fromkeys(KINDS, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "count"), [(None, 4000), ("Hopper-v5", 400)])
def test_thousands_of_damaged_snapshots_are_refused(path, teacher, count):
    if teacher is not None:
        folder = Path(__file__).parents[1] / "rlearly/experiments/results/s3rl_cpu/teachers"
        path.write_bytes((folder / f"{teacher}.h5").read_bytes())
    refused = fuzz("snapshots", path, count, seconds=600, seed=1)
    print(dict(refused))
    assert refused == {"head": USER_BLOCK_BYTES} | dict.fromkeys(KINDS, count)


def test_other_programs_open_snapshots_and_their_changes_are_noticed(path, snapshots):
    with h5py.File(path) as file:
        assert np.array_equal(file["returns"][()], snapshots.returns)
    assert len(Snapshots.load(path)) == len(snapshots)
    with h5py.File(path, "a") as file:
        file["extra"] = 1
    with pytest.raises(ConfigError, match="its length or checksum is not the one noted in it"):
        Snapshots.load(path)
    seal(path)
    assert len(Snapshots.load(path)) == len(snapshots)


def test_snapshots_of_format_1_are_refused_with_what_to_do(path):
    path.write_bytes(path.read_bytes()[USER_BLOCK_BYTES:])
    with pytest.raises(ConfigError, match="this version reads format 2: record it again with"):
        Snapshots.load(path)


if __name__ == "__main__":
    fuzz_here(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
