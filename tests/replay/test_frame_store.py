"""However frames are kept, the batches, the checkpoints and the run are the same to the bit."""

import errno
import os

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_STATE
from hypothesis import given, settings
from hypothesis import strategies as st
from saved import equal, plain, rows
from test_trainer import make_trainer

from rlearly.config import resolve
from rlearly.config.schema import ReplayConfig
from rlearly.core.errors import ConfigError
from rlearly.replay import storage
from rlearly.replay.buffer import ReplayBuffer, TransitionLayout, VectorReplayBuffer
from rlearly.replay.frame_store import CompressedFrameStore, DeviceFrameStore, RawFrameStore
from rlearly.system import machine
from rlearly.training.checkpoint import Checkpoints

KINDS = ["zstd", "disk", "zstd on disk", "device"]


def store(kind, capacity, shape, folder):
    folder = folder if "disk" in kind else None
    if kind == "device":
        return DeviceFrameStore(capacity, shape, "uint8", device=torch.device("cpu"))
    if "zstd" in kind:  # a block holds a few frames, so that many are filled and used anew
        return CompressedFrameStore(capacity, shape, folder=folder, block_bytes=1000)
    return RawFrameStore(capacity, shape, "uint8", folder=folder)


def make(kind, capacity, folder, *, shape=(3, 5, 7), buffers=1, nstep=3, seed=0):
    generator = np.random.default_rng(seed)
    layout = TransitionLayout(shape, "uint8", 3, 2)
    return VectorReplayBuffer(
        [
            ReplayBuffer(
                layout,
                capacity=capacity,
                nstep=nstep,
                discount=0.9,
                generator=generator,
                frames=None if kind is None else store(kind, capacity, shape, folder),
            )
            for _ in range(buffers)
        ],
        generator,
    )


def picture(random, shape):
    """Noise, or flat, or something between: it compresses differently."""
    noise = random.integers(0, 256, shape, dtype=np.uint8)
    return [noise, noise // 64 * 64, np.full(shape, noise.flat[0])][random.integers(3)]


def live(memories, steps, seed, shape=(3, 5, 7), stacks=None):
    """The same experience for all of them, with ends of episodes and some that are left off.

    `stacks`: of the episodes that go on.
    """
    random = np.random.default_rng(seed)
    stacks = {} if stacks is None else stacks
    for _ in range(steps):
        env_index = int(random.integers(len(memories[0].buffers)))
        if env_index not in stacks or random.random() < 0.05:
            stacks[env_index] = [picture(random, shape)] * 3
            for memory in memories:
                memory.begin_episode(np.concatenate(stacks[env_index]), env_index=env_index)
        stacks[env_index] = [*stacks[env_index][1:], picture(random, shape)]
        ending, action = random.random(), random.random(2).astype(np.float32)
        for memory in memories:
            memory.add(
                action,
                float(action[0]),
                np.concatenate(stacks[env_index]),
                terminated=ending < 0.05,
                truncated=0.05 <= ending < 0.1,
                env_index=env_index,
            )
        if ending < 0.1:
            del stacks[env_index]


def assert_same_batches(one, two, sizes=(1, 16, 40)):
    for size in sizes if len(two) else ():
        a, b = one.sample(size), two.sample(size)
        for name in ("obs", "action", "reward", "discount", "next_obs"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    capacity=st.integers(9, 50),
    nstep=st.integers(1, 4),
    buffers=st.integers(1, 2),
    shape=st.sampled_from([(3, 5, 7), (1, 4, 4), (4, 3, 2)]),
    seed=st.integers(0, 99),
)
def test_batches_and_checkpoints_equal_those_of_plain_frames(
    tmp_path_factory, kind, parts, capacity, nstep, buffers, shape, seed
):
    """Through ends of episodes, many rounds of the buffer, forgetting, saving and resuming, also
    from one kind of store to the other."""
    folder = tmp_path_factory.mktemp("frames")
    words = {"shape": shape, "buffers": buffers, "nstep": nstep}
    one, two = (make(k, capacity, folder, **words) for k in (kind, None))
    checkpoints = Checkpoints(folder, keep=2)
    for number, steps in enumerate(parts):
        live([one, two], steps, seed + number, shape)
        assert_same_batches(one, two)
        assert equal(one.state_dict(), two.state_dict())
        checkpoints.save(number, {"replay": one.state_dict()})
        state = checkpoints.load_newest()[1]["replay"]
        if number % 3 == 0:
            one = make(kind, capacity, folder, **words, seed=5)
            one.load_state_dict(state)
        elif number % 3 == 1:
            two = make(None, capacity, folder, **words, seed=5)
            two.load_state_dict(state)
        else:
            one.clear(), two.clear()
        assert_same_batches(one, two)


@pytest.mark.parametrize("threads", [1, 3])
def test_compressed_frames_are_the_same_from_any_number_of_threads(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = np.random.default_rng(0)
    images = np.stack([picture(random, (3, 84, 84)) for _ in range(150)])
    compressed = CompressedFrameStore(150, (3, 84, 84))
    compressed.write(0, images)
    slots = random.integers(0, 150, 400)
    out = torch.empty(400, 3, 84, 84, dtype=torch.uint8)
    compressed.gather(slots, out)
    assert np.array_equal(out.numpy(), images[slots])
    assert np.array_equal(compressed.read(3, 150), images[3:])


def test_compressing_changes_no_frame_that_it_is_given():
    frame = np.random.default_rng(0).integers(0, 256, (3, 1, 1), dtype=np.uint8)
    before = frame.copy()
    CompressedFrameStore(10, (3, 1, 1)).write(0, frame[None])
    assert np.array_equal(frame, before)


def test_smooth_images_take_a_third_and_overwritten_ones_nothing():
    """A gradient with a little noise; after ten rounds of the buffer no more than after one."""
    random = np.random.default_rng(0)
    height, width = np.mgrid[:84, :84]
    compressed = CompressedFrameStore(200, (3, 84, 84), block_bytes=100_000)
    taken = []
    for step in range(2000):
        noise = random.integers(0, 3, (1, 84, 84))
        image = np.stack([height + step, width, height // 2 + width]) + noise
        compressed.write(step % 200, image.astype(np.uint8)[None])
        taken.append(compressed.allocated_bytes)
    assert compressed.compressed_bytes < 200 * 84 * 84 * 3 * 0.36
    assert taken[-1] <= taken[199] + 2 * 100_000
    assert taken[-1] - compressed.compressed_bytes < 4 * 100_000


def test_a_full_disk_or_memory_is_an_error_and_no_killed_process(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for kind in ("disk", "zstd on disk"):
        with pytest.raises(OSError, match="No space left"):
            live([make(kind, 20, tmp_path)], 2, 0)
    monkeypatch.setattr(machine, "available_bytes", lambda: storage.MIN_FREE_BYTES - 1)
    compressed = CompressedFrameStore(20, (3, 5, 7), check_space=storage.check_free_memory)
    with pytest.raises(OSError, match=r"only 0\.50 GB of memory are left .* replay\.storage=disk"):
        compressed.write(0, np.zeros((1, 3, 5, 7), np.uint8))


def test_a_file_of_frames_has_no_name_and_takes_room_as_it_fills(tmp_path):
    """So it is gone when the process ends, however it ends."""
    kept = RawFrameStore(10_000, (3, 84, 84), "uint8", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    number = kept.memory.file.fileno()
    assert os.fstat(number).st_size == 10_000 * 84 * 84 * 3
    assert os.fstat(number).st_blocks * 512 < 1e6
    kept.write(0, np.ones((1, 3, 84, 84), np.uint8))
    assert os.fstat(number).st_blocks * 512 < 2.2 * 84 * 84 * 3


# --- in a run ---

SWITCHES = {
    "zstd": ["replay.compression=zstd"],
    "disk": ["replay.storage=disk"],
    "both": ["replay.compression=zstd", "replay.storage=disk"],
}


@pytest.mark.parametrize("switch", sorted(SWITCHES))
def test_a_run_and_its_resumption_are_the_same_however_frames_are_kept(tmp_path, switch):
    """Resumed with the switch from a checkpoint without it, as well."""
    words = ("agent=drqv2", "train_frames=180", "replay.capacity=120", "log_every_frames=40")
    other = (*words, *SWITCHES[switch])
    straight = make_trainer(tmp_path / "straight", *words)
    assert straight.run()
    whole = make_trainer(tmp_path / "whole", *other)
    assert whole.run()
    for name, before in (("resumed", other), ("switched", words)):
        stopped = make_trainer(tmp_path / name, *before)
        stopped.stop_requested = lambda trainer=stopped: trainer.steps >= 133
        assert not stopped.run()
        resumed = make_trainer(tmp_path / name, *other)
        resumed.resume()
        assert resumed.run()
        whole_state, state = plain(whole.state_dict()), plain(resumed.state_dict())
        assert whole_state["agent"] == state["agent"] and whole_state["replay"] == state["replay"]
        assert rows(tmp_path / "whole") == rows(tmp_path / name)
    assert plain(straight.state_dict()) == plain(whole.state_dict())
    left = {p.name for p in (tmp_path / "whole").iterdir()}
    assert left == {"metrics.jsonl", "checkpoints"}, "no file of frames is left"


def test_a_resumed_run_may_keep_its_frames_elsewhere(tmp_path):
    config = resolve.compose([*TINY, "agent=drqv2"])
    fixed_settings = set(resolve.fixed_settings(config))
    assert "replay.capacity" in fixed_settings
    free = {f"replay.{name}" for name in ("compression", "storage", "folder", "device", "prefetch")}
    assert not fixed_settings & free


def test_a_run_says_where_its_frames_are_and_refuses_what_does_not_fit(tmp_path, monkeypatch):
    long = ("train_frames=4000000", "replay.capacity=3000000")
    said = "\n".join(make_trainer(tmp_path / "a", "replay.compression=zstd").display.messages)
    assert "5,000 transitions of about 648 bytes (an estimate)" in said
    said = "\n".join(make_trainer(tmp_path / "b", "replay.storage=disk").display.messages)
    assert "1,742 bytes" in said and f"free in {tmp_path / 'b'}" in said
    monkeypatch.setattr(machine, "available_bytes", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match=r"grow to 5\.23 GB"):
        make_trainer(tmp_path / "c", *long)
    make_trainer(tmp_path / "d", *long, "replay.compression=zstd").close()
    usage = type("Usage", (), {"free": 4_000_000_000})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"grow to 5\.18 GB, but only 4\.00 GB are free in") as e:
        make_trainer(tmp_path / "e", *long, "replay.storage=disk")
    capacity = int(str(e.value).split("replay.capacity=")[1].split(",")[0])
    assert 0.9 * 4e9 < capacity * 1728 < 4e9
    usage.free = 0
    with pytest.raises(ConfigError, match=r"only 0\.0 MB are free in .*: add replay\.folder= on a"):
        make_trainer(tmp_path / "f", *long, "replay.storage=disk")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("replay.compression=lz4", r"replay\.compression: expected one of none, zstd, received"),
        (
            "replay.device=cuda replay.storage=disk",
            r"frames are kept raw on the GPU; leave out replay\.storage=disk",
        ),
        ("replay.folder=x", r"replay\.folder: has no effect without replay\.storage=disk; add it"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve.compose([*TINY, *words.split()])


def test_a_missing_package_or_folder_and_states_are_one_sentence(tmp_path, monkeypatch):
    words = ("replay.storage=disk", f"replay.folder={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"replay\.folder: .*nowhere cannot be used"):
        make_trainer(tmp_path / "a", *words)
    with pytest.raises(
        ConfigError, match=r"zstd: compresses images, .* observations are states; leave"
    ):
        make_trainer(tmp_path / "b", "replay.compression=zstd", base=TINY_STATE["td3"])
    monkeypatch.setattr(storage, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="is not installed here: pip install zstandard"):
        storage.check(ReplayConfig(compression="zstd"))
    with pytest.raises(ConfigError, match=r"replay\.storage: agent=ppo is on policy"):
        resolve.compose([*TINY_STATE["ppo"], "replay.storage=disk"])


def test_frames_lie_on_the_learners_gpu_if_all_of_them_fit(tmp_path, monkeypatch):
    """Decided here, without a GPU."""
    layout = TransitionLayout((3, 84, 84), "uint8", 3, 38)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    def kept(learner, free_bytes, **words):
        monkeypatch.setattr(machine, "gpu_free_bytes", lambda _: free_bytes)
        replay = ReplayConfig(**words)
        return storage.ReplayStorage(replay, layout, slots=10, device=learner, folder=tmp_path)

    big, small = 80_000_000_000, 24_000_000_000
    assert kept(gpu, big).device == gpu and "frames on cuda" in kept(gpu, big).summary
    assert kept(gpu, small).device is None
    assert kept(gpu, small, capacity=500_000).device == gpu
    assert kept(cpu, big).device is None
    assert kept(gpu, big, device="cpu").device is None
    assert kept(gpu, big, storage="disk").device is None
    assert kept(gpu, big, compression="zstd").device is None
    with pytest.raises(ConfigError, match=r"take 21\.17 GB .* but only 24\.00 GB are free on cuda"):
        kept(gpu, small, device="cuda")
    with pytest.raises(ConfigError, match="the learner is on cpu"):
        kept(cpu, big, device="cuda")


def test_batches_are_gathered_on_the_device_that_frames_lie_on():
    """Torch's `meta` device stands for any other than the host: its tensors have no content."""
    memory = ReplayBuffer(
        TransitionLayout((3, 5, 7), "uint8", 3, 2),
        capacity=50,
        nstep=3,
        discount=0.9,
        generator=np.random.default_rng(0),
        frames=DeviceFrameStore(50, (3, 5, 7), "uint8", device=torch.device("meta")),
    )
    live([VectorReplayBuffer([memory], memory.generator)], 40, 0)
    batch = memory.sample(8)
    assert batch.obs.device.type == batch.next_obs.device.type == "meta"
    assert batch.obs.shape == (8, 9, 5, 7) and batch.action.device.type == "cpu"
