"""The replay buffer against a naive list of episodes, and worked examples."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlearly.config import presets, resolve
from rlearly.core.errors import ConfigError
from rlearly.nn.schedules import Decay, Linear, Step
from rlearly.replay import frame_store
from rlearly.replay.annealing import Annealing, annealing_for
from rlearly.replay.buffer import (
    EmptyReplayBuffer,
    ReplayBuffer,
    TransitionLayout,
    VectorReplayBuffer,
)
from rlearly.training import checkpoint
from rlearly.training.checkpoint import Checkpoints

LAYOUT = TransitionLayout(frame_shape=(1, 2, 2), frame_dtype="uint8", frame_stack=3, actions=2)


def frame(number):
    """A frame that says which one it is, in base 256 over two of its four pixels."""
    return np.array([[[number % 256, number // 256], [7, 7]]], dtype=np.uint8)


def number_of(image):
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


def make(capacity, nstep=3, discount=0.9, layout=LAYOUT):
    return ReplayBuffer(
        layout,
        capacity=capacity,
        nstep=nstep,
        discount=discount,
        generator=np.random.default_rng(0),
    )


def fill(replay, episodes):
    """Write episodes given as lists of ending flags; return them as lists of frame numbers."""
    counter = 0
    written = []
    for length, ending in episodes:
        numbers = list(range(counter, counter + length + 1))
        counter += length + 1
        stack = [frame(numbers[0])] * replay.layout.frame_stack
        replay.begin_episode(np.concatenate(stack))
        for step, number in enumerate(numbers[1:]):
            stack = [*stack[1:], frame(number)]
            final = step == length - 1
            replay.add(
                np.array([numbers[step], -numbers[step]], dtype=np.float32),
                float(numbers[step]),
                np.concatenate(stack),
                terminated=final and ending == "terminated",
                truncated=final and ending == "truncated",
            )
        written.append((numbers, ending))
    return written


def naive_transitions(written, capacity, nstep, discount, stack=3):
    """{start: (stack, reward, discount, next stack)} by loops over lists: the definition."""
    total = written[-1][0][-1] + 1
    oldest = max(0, total - capacity)
    expected = {}
    for numbers, ending in written:
        for t in range(len(numbers) - 1):
            k, reward = 0, 0.0
            while k < nstep and t + k < len(numbers) - 1:
                reward += discount**k * numbers[t + k]
                k += 1
            reaches_end = t + k == len(numbers) - 1
            if k < nstep and ending == "running":
                continue

            def forward_stack(i, numbers=numbers):
                return [numbers[max(0, j)] for j in range(i - stack + 1, i + 1)]

            if min(forward_stack(t)) < oldest:
                continue
            gone = reaches_end and ending == "terminated"
            expected[numbers[t]] = (
                forward_stack(t),
                reward,
                0.0 if gone else discount**k,
                forward_stack(t + k),
            )
    return expected


def assert_same_buffer(one, two):
    stored = min(two.added, two.capacity)
    assert np.array_equal(one.frames.read(0, stored), two.frames.read(0, stored))
    for name in (*one.layout.fields, "ready"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


episode = st.tuples(st.integers(1, 9), st.sampled_from(["terminated", "truncated"]))


@settings(max_examples=150, deadline=None)
@given(
    finished=st.lists(episode, min_size=0, max_size=12),
    running=st.integers(0, 9),
    capacity=st.integers(9, 40),
    nstep=st.integers(1, 5),
)
def test_buffer_equals_naive_list_of_episodes(finished, running, capacity, nstep):
    replay = make(capacity, nstep=nstep)
    episodes = [*finished, (running, "running")] if running or not finished else finished
    written = fill(replay, episodes)
    expected = naive_transitions(written, capacity, nstep, 0.9)
    assert len(replay) == len(expected)
    slots = np.flatnonzero(replay.ready)
    if not expected:
        with pytest.raises(EmptyReplayBuffer):
            replay.sample(1)
        return
    batch = replay.gather(slots)
    seen = set()
    for i in range(len(slots)):
        stack = [number_of(f) for f in batch.obs[i].numpy()[:, None]]
        want_stack, want_reward, want_discount, want_next = expected[stack[-1]]
        seen.add(stack[-1])
        assert stack == want_stack
        assert [number_of(f) for f in batch.next_obs[i].numpy()[:, None]] == want_next
        assert float(batch.reward[i]) == pytest.approx(want_reward, rel=1e-5)
        assert float(batch.discount[i]) == pytest.approx(want_discount, rel=1e-5)
        assert batch.action[i].tolist() == [stack[-1], -stack[-1]]
    assert seen == set(expected)


def test_truncation_still_bootstraps_and_termination_does_not():
    replay = make(20, nstep=3, discount=0.5)
    fill(replay, [(4, "truncated"), (2, "terminated")])
    batch = replay.gather(np.array([1, 2, 3, 5]))
    assert batch.discount[:, 0].tolist() == [0.125, 0.25, 0.5, 0.0]
    # rewards are the frame numbers: 1 + 2/2 + 3/4, 2 + 3/2, 3, 5 + 6/2
    assert batch.reward[:, 0].tolist() == [2.75, 3.5, 3.0, 8.0]


def test_samples_are_uniform_over_everything_that_can_be_sampled():
    replay = make(50)
    written = fill(
        replay, [(1, "terminated"), (30, "truncated"), (3, "terminated"), (25, "running")]
    )
    expected = naive_transitions(written, 50, 3, 0.9)
    starts = replay.sample(40_000).action[:, 0].numpy().astype(int)
    numbers, counts = np.unique(starts, return_counts=True)
    assert set(numbers) == set(expected)
    mean = 40_000 / len(expected)
    assert (np.abs(counts - mean) < 6 * np.sqrt(mean)).all()


def test_short_episodes_in_a_big_buffer_are_still_sampled():
    replay = make(10_000)
    fill(replay, [(2, "running")] * 400 + [(1, "truncated")])
    assert len(replay) == 1
    assert replay.sample(5).action[:, 0].unique().tolist() == [1200.0]


def filled_envs(counts, capacity=400, seed=0):
    """A replay of envs with so many transitions each; transition i of env c has action
    1000 * c + i."""
    generator = np.random.default_rng(seed)
    layout = TransitionLayout((1,), "float32", 1, 1)
    memory = VectorReplayBuffer(
        [
            ReplayBuffer(layout, capacity=capacity, nstep=1, discount=0.9, generator=generator)
            for _ in counts
        ],
        generator,
    )
    for env_index, count in enumerate(counts):
        memory.begin_episode(np.zeros(1, np.float32), env_index=env_index)
        for i in range(count):
            number = np.array([1000 * env_index + i], np.float32)
            memory.add(number, 1.0, number, terminated=False, truncated=False, env_index=env_index)
    return memory


def test_transitions_of_all_envs_are_sampled_uniformly():
    memory = filled_envs([3, 0, 90, 7])
    assert len(memory) == 100
    actions = np.concatenate([memory.sample(256).action[:, 0].numpy() for _ in range(400)])
    values, counts = np.unique(actions, return_counts=True)
    expected = [*range(3), *range(2000, 2090), *range(3000, 3007)]
    assert values.tolist() == expected
    mean = len(actions) / 100
    assert np.abs(counts - mean).max() < 5 * mean**0.5
    assert ((counts - mean) ** 2 / mean).sum() < 99 + 4 * 198**0.5, "chi-squared"
    batch = memory.sample(64)
    assert batch.obs.shape == (64, 1) and batch.discount.shape == (64, 1)
    assert torch.equal(batch.action, batch.next_obs), "the parts of a transition stay together"


def test_one_env_is_the_buffer_itself_draw_for_draw():
    memory, alone = filled_envs([50]), filled_envs([50]).buffers[0]
    for _ in range(5):
        assert torch.equal(memory.sample(32).action, alone.sample(32).action)


def test_saved_and_loaded_envs_give_the_same_samples_and_empty_ones_none():
    memory, other = filled_envs([20, 30]), filled_envs([1, 1], seed=5)
    memory.sample(8)
    other.load_state_dict(memory.state_dict())
    for _ in range(3):
        one, two = memory.sample(16), other.sample(16)
        assert torch.equal(one.action, two.action)
    with pytest.raises(EmptyReplayBuffer):
        filled_envs([0, 0]).sample(4)
    with pytest.raises(ValueError):
        other.load_state_dict(filled_envs([5]).state_dict())


def test_saved_and_loaded_replay_gives_the_same_samples():
    replay = make(30)
    fill(replay, [(9, "terminated"), (30, "truncated"), (5, "running")])
    state = replay.state_dict()
    twin = make(30)
    twin.load_state_dict(state)
    assert_same_buffer(twin, replay)
    for _ in range(3):
        one, two = replay.sample(16), twin.sample(16)
        assert (one.obs == two.obs).all() and (one.action == two.action).all()


@pytest.mark.parametrize("small_bytes", [0, 500, 10**6])
@given(
    capacity=st.integers(8, 40),
    parts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_replay_is_the_same_after_any_series_of_checkpoints(
    tmp_path_factory, small_bytes, capacity, parts, seed
):
    """Few steps between them or more than the buffer holds; every other one is resumed from."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with mock.patch.object(checkpoint, "SMALL_BYTES", small_bytes):
        _save_and_load_in_parts(folder, capacity, parts, seed)


def _save_and_load_in_parts(folder, capacity, parts, seed):
    random = np.random.default_rng(seed)
    replay, checkpoints = make(capacity), Checkpoints(folder, keep=2)
    step, running = 0, False
    for number, steps in enumerate(parts):
        for _ in range(steps):
            if not running:
                replay.begin_episode(np.repeat(frame(step), 3, axis=0))
            ends = bool(random.random() < 0.2)
            step += 1
            seen = np.repeat(frame(step), 3, axis=0)
            replay.add(random.random(2), step, seen, terminated=ends, truncated=False)
            running = not ends
        checkpoints.save(number, {"replay": replay.state_dict()})
        twin, later = make(capacity), Checkpoints(folder, keep=2)
        twin.load_state_dict(later.load_newest()[1]["replay"])
        assert_same_buffer(twin, replay)
        assert (twin.added, twin._age, len(twin)) == (replay.added, replay._age, len(replay))
        if number % 2:
            replay, checkpoints = twin, later


def test_one_transition_of_dog_run_costs_a_frame_and_little_more():
    layout = TransitionLayout(
        frame_shape=(3, 84, 84), frame_dtype="uint8", frame_stack=3, actions=38
    )
    replay = make(2000, layout=layout)
    arrays = [getattr(replay, n) for n in ("actions", "rewards", "ages", "flags", "ready")]
    assert sum(a.nbytes for a in [replay.frames.array, *arrays]) == 2000 * layout.transition_bytes
    assert layout.transition_bytes == 84 * 84 * 3 + 38 * 4 + 10
    # Every frame stored once: the official 63.5 GB a million transitions, divided by 2.9 at least.
    assert 1e6 * layout.transition_bytes < 63.5e9 / 2.9


def test_state_observations_are_stored_as_floats():
    layout = TransitionLayout(frame_shape=(4,), frame_dtype="float32", frame_stack=1, actions=1)
    replay = make(20, nstep=1, layout=layout)
    replay.begin_episode(np.arange(4, dtype=np.float32))
    replay.add(
        np.zeros(1), 1.0, np.arange(4, dtype=np.float32) + 1, terminated=False, truncated=False
    )
    batch = replay.sample(2)
    assert batch.obs.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.next_obs.tolist() == [[1, 2, 3, 4]] * 2


def test_discrete_actions_are_stored_as_whole_numbers_and_saved():
    layout = TransitionLayout(frame_shape=(1,), frame_dtype="float32", frame_stack=1, actions=0)
    replay = make(20, nstep=1, layout=layout)
    replay.begin_episode(np.zeros(1, np.float32))
    for action in range(5):
        seen = np.full(1, action + 1, np.float32)
        replay.add(np.int64(action), 0.0, seen, terminated=False, truncated=False)
    assert layout.transition_bytes == 4 + 8 + 10 and replay.actions.nbytes == 20 * 8
    restored = make(20, nstep=1, layout=layout)
    restored.load_state_dict(replay.state_dict())
    for batch in (replay.sample(50), restored.sample(50)):
        assert batch.action.dtype == torch.int64 and batch.action.shape == (50,)
        assert batch.action.tolist() == batch.obs[:, 0].tolist()


# --- memory of batches ---


def test_a_batch_that_is_still_referred_to_is_never_written_again(monkeypatch):
    """A view of it, or what autograd has kept, is enough."""
    monkeypatch.setattr(frame_store, "BIG_BYTES", 1)
    replay = make(300)
    fill(replay, [(250, "running")])
    kept, copies = [], []
    for number in range(30):
        batch = replay.sample(16)
        part = [batch, batch.obs[3:5], batch.next_obs.flatten()[7:], batch.obs.numpy()[1]][
            number % 4
        ]
        kept.append(part)
        copies.append([t.clone() for t in tensors(part)])
        del batch
        if number % 5 == 4:
            kept[number // 2] = copies[number // 2] = ()
    for part, copied in zip(kept, copies, strict=True):
        assert all(map(torch.equal, tensors(part), copied))


def tensors(part):
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(part)
    if isinstance(part, torch.Tensor):
        return [part]
    return [part.obs, part.next_obs, part.action, part.reward, part.discount] if part else []


def test_memory_of_batches_that_are_gone_is_used_again(monkeypatch):
    monkeypatch.setattr(frame_store, "BIG_BYTES", 1)
    replay = make(300)
    fill(replay, [(250, "running")])
    seen = set()
    for _ in range(50):  # as the loop does: the last batch is there until the next one is
        batch = replay.sample(16)
        seen |= {batch.obs.data_ptr(), batch.next_obs.data_ptr()}
    assert len(seen) == 4
    for size in range(1, 100):
        replay.sample(size)
    assert len(replay._batch_memory._arrays) <= replay._batch_memory.limit


def test_windows_of_any_length_equal_their_definition_one_by_one():
    """Also longer ones than numpy adds in order, and over the buffer's seam."""
    replay = make(64, nstep=20, discount=0.97)
    written = fill(replay, [(30, "terminated"), (25, "truncated"), (40, "running")])
    expected = naive_transitions(written, 64, 20, 0.97)
    batch = replay.gather(np.flatnonzero(replay.ready))
    assert len(batch.obs) == len(expected)
    for i, obs in enumerate(batch.obs):
        _, reward, discount, after = expected[number_of(obs[-1:].numpy())]
        assert float(batch.reward[i]) == pytest.approx(reward, rel=1e-5)
        assert float(batch.discount[i]) == pytest.approx(discount, rel=1e-5)
        assert number_of(batch.next_obs[i, -1:].numpy()) == after[-1]


def test_annealed_windows_worked_by_hand():
    """n = floor(1 + 2 exp(-step / 4)), gamma = 0.5 before the fourth step and 0.9 from it on.

    One episode of rewards 1, 2, 3, ... The windows of what was stored early are summed anew with
    the n and gamma of the time at which they are sampled.
    """
    annealing = Annealing(Decay(1.0, ((2.0, 4.0),)), Step(0.5, 0.9, 4))
    assert annealing.max_nstep == 3
    memory = ReplayBuffer(
        TransitionLayout((1,), "float32", 1, 1),
        capacity=30,
        nstep=annealing.max_nstep,
        discount=0.9,
        annealing=annealing,
        generator=np.random.default_rng(0),
    )
    first = np.array([0])

    def window():
        batch = memory.gather(first)
        return tuple(round(float(x), 4) for x in (batch.reward, batch.discount, batch.next_obs))

    memory.begin_episode(np.zeros(1, np.float32))
    seen = {}
    for step in range(1, 8):
        obs = np.array([step], np.float32)
        memory.add(np.zeros(1), float(step), obs, terminated=False, truncated=False)
        seen[step] = window() if memory.ready[0] else None
    # step:    1       2       3       4       5       6       7
    # 2 e^-s/4: 1.558   1.213   0.945   0.736   0.573   0.446   0.348
    # n:        2       2       1       1       1       1       1
    assert seen[1] is None and seen[2] is None  # the window of three steps is not there yet
    assert seen[3] == (1.0, 0.5, 1.0)
    assert seen[4] == (1.0, 0.9, 1.0)
    memory.steps = 2  # as it was then: 1 + 0.5 * 2, 0.5 ** 2, two steps on
    assert window() == (2.0, 0.25, 2.0)
    memory.steps = 0  # n = 3: 1 + 0.5 * 2 + 0.25 * 3
    assert window() == (2.75, 0.125, 3.0)
    memory.steps, memory.num_envs = 2, 2  # four agent steps, of two copies
    assert window() == (1.0, 0.9, 1.0)


def test_drms_annealing_on_metaworld():
    own = [w for w in presets.tuned("drm", "metaworld/soccer") if w.startswith("agent.")]
    agent = resolve.compose(["agent=drm", "env=HalfCheetah-v5", *own]).agent
    annealing = annealing_for(agent)
    for step in (0, 153_000, 154_200, 10**6, 3 * 10**6):
        n = math.floor(3 + 7 * math.exp(-step / 1e6))
        gamma = 0.997 - 0.02 * math.exp(-step / 5e5) - 0.007 * math.exp(-step / 1.6e6)
        assert annealing.at(step) == (n, pytest.approx(gamma))
    assert [annealing.at(step)[0] for step in (0, 153_000, 154_200)] == [10, 9, 8]
    assert annealing.max_nstep == 10
    assert annealing.at(0)[1] == pytest.approx(0.97)


def test_an_annealed_replay_goes_on_where_it_was_saved():
    annealing = Annealing(Linear(3, 1, 20), Linear(0.5, 0.9, 20))

    def build():
        generator = np.random.default_rng(3)
        buffers = [
            ReplayBuffer(
                LAYOUT,
                capacity=60,
                nstep=3,
                discount=0.9,
                annealing=annealing,
                num_envs=2,
                generator=generator,
            )
            for _ in range(2)
        ]
        return VectorReplayBuffer(buffers, generator)

    one, two = build(), build()
    for buffer in one.buffers:
        fill(buffer, [(7, "truncated")])
    two.load_state_dict(one.state_dict())
    for memory in (one, two):
        now = {"replay/nstep": 1, "replay/discount": pytest.approx(0.78)}
        assert memory.metrics() == now
    drawn = [memory.sample(16) for memory in (one, two)]
    assert torch.equal(drawn[0].reward, drawn[1].reward)
    assert torch.equal(drawn[0].discount, drawn[1].discount)


@pytest.mark.parametrize(
    "word",
    [
        "agent.nstep_schedule=7",
        "agent.nstep_schedule=decay(0,7,1000)",
        "agent.nstep_schedule=decay(3,7)",
        "agent.nstep_schedule=linear(3,5,0)",
        "agent.nstep_schedule='exp(3,5,9)'",
        "agent.discount_schedule=decay(0.997,0.02,1000)",
    ],
)
def test_a_schedule_that_is_none_or_leaves_its_range_gets_one_sentence(word):
    if word.endswith("=7"):
        assert annealing_for(resolve.compose(["env=HalfCheetah-v5", word]).agent).max_nstep == 7
        return
    of_range = {"decay(0,7,1000)": "goes from 7 to 0", "decay(0.997,0.02,1000)": "from 1.017 to"}
    expected = of_range.get(word.partition("=")[2], r"expected linear\(START,END,STEPS\), step")
    with pytest.raises(ConfigError, match=expected):
        resolve.compose(["agent=drm", "env=HalfCheetah-v5", word])


def test_vectors_beside_images_are_stored_sampled_and_saved(tmp_path):
    """A vector says which step it is of; images and vectors must never come apart."""
    layout = TransitionLayout((1, 2, 2), "uint8", frame_stack=2, actions=2, vector=3)

    def observed(number, before):
        return {
            "pixels": np.concatenate([frame(before), frame(number)]),
            "vector": np.array([number, -number, 0.5], np.float32),
        }

    def build():
        generator = np.random.default_rng(0)
        buffer = ReplayBuffer(layout, capacity=9, nstep=2, discount=0.9, generator=generator)
        return VectorReplayBuffer([buffer], generator)

    memory = build()
    number = 0
    for _ in range(4):  # the buffer of 9 slots goes round
        memory.begin_episode(observed(number, number), env_index=0)
        for step in range(4):
            number += 1
            before = number - 1
            ends = step == 3
            memory.add(
                np.zeros(2),
                1.0,
                observed(number, before),
                terminated=False,
                truncated=ends,
                env_index=0,
            )
        number += 1
    memory.begin_episode(observed(number, number), env_index=0)
    batch = memory.sample(64)
    assert set(batch.obs) == set(batch.next_obs) == {"pixels", "vector"}
    assert batch.obs["pixels"].shape == (64, 2, 2, 2) and batch.obs["vector"].shape == (64, 3)
    for obs, steps in ((batch.obs, 0), (batch.next_obs, 2)):
        for at in range(64):
            n = number_of(obs["pixels"][at, 1:].numpy())
            assert obs["vector"][at].tolist() == [n, -n, 0.5], steps
    starts = batch.obs["vector"][:, 0] - batch.next_obs["vector"][:, 0]
    assert set(starts.tolist()) == {-1.0, -2.0}
    saved = Checkpoints(tmp_path, keep=1)
    saved.save(1, {"replay": memory.state_dict()})
    loaded = build()
    loaded.load_state_dict(saved.load_newest()[1]["replay"])
    one, two = memory.sample(32), loaded.sample(32)
    for key in ("pixels", "vector"):
        assert torch.equal(one.obs[key], two.obs[key]), key
        assert torch.equal(one.next_obs[key], two.next_obs[key]), key
    with pytest.raises(ValueError, match="expected a replay of"):
        VectorReplayBuffer([make(9, nstep=2)], np.random.default_rng(0)).load_state_dict(
            memory.state_dict()
        )
    assert layout.transition_bytes == 4 + 4 * (2 + 3) + 10
