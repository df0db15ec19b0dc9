"""Batches that are gathered ahead are those that would have been gathered at once."""

import time

import numpy as np
import pytest
import torch
from conftest import TINY_STATE
from hypothesis import given, settings
from hypothesis import strategies as st
from saved import equal, plain, rows
from test_frame_store import assert_same_batches, live, make
from test_trainer import make_trainer

from rlearly.replay import prefetch
from rlearly.replay.buffer import EmptyReplayBuffer, gather
from rlearly.replay.prefetch import PrefetchedReplay


def slow_or_fast(monkeypatch, seed):
    """Gathering takes any time; returns the list of batches that the thread gathered."""
    random, done = np.random.default_rng(seed), []

    def delayed(drawn):
        time.sleep(float(random.choice([0, 0, 0.001, 0.004])))
        done.append(drawn)
        return gather(drawn)

    monkeypatch.setattr(prefetch, "gather", delayed)
    return done


a_round = st.tuples(
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from(["", "", "resize", "clear", "save", "load"]),
)


@given(
    rounds=st.lists(a_round, min_size=4, max_size=14),
    batches=st.integers(1, 3),
    buffers=st.integers(1, 2),
    capacity=st.integers(9, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_batches_and_states_are_those_without_it_whatever_the_timing(
    rounds, batches, buffers, capacity, seed
):
    """Each round has some steps, perhaps a new episode, some batches, and something else."""
    with pytest.MonkeyPatch.context() as patch:
        slow_or_fast(patch, seed)
        alone = make(None, capacity, None, buffers=buffers)
        ahead = PrefetchedReplay(make(None, capacity, None, buffers=buffers), batches)
        episodes = {}
        live([alone, _Buffers(ahead)], 25, seed, stacks=episodes)
        for number, (steps, begins, samples, then) in enumerate(rounds):
            live([alone, _Buffers(ahead)], steps, seed + number, stacks=episodes)
            if begins:
                for memory in (alone, ahead):
                    memory.begin_episode(
                        np.full((9, 5, 7), number, np.uint8), env_index=number % buffers
                    )
            assert_same_batches(ahead, alone, sizes=[6] * samples)
            if then == "resize":
                assert_same_batches(ahead, alone, sizes=[4])
            elif then == "clear":
                alone.clear(), ahead.clear()
                with pytest.raises(EmptyReplayBuffer):
                    ahead.sample(6)
            elif then == "save":
                assert equal(ahead.state_dict(), alone.state_dict())
            elif then == "load":
                state = ahead.state_dict()
                ahead = PrefetchedReplay(
                    make(None, capacity, None, buffers=buffers, seed=7), batches
                )
                for used in (25, 8):  # so that something is ahead
                    live([_Buffers(ahead)], used, seed)
                    for _ in range(used // 8 if len(ahead) else 0):
                        ahead.sample(6)
                ahead.load_state_dict(state)
            assert len(ahead) == len(alone)
        assert equal(ahead.state_dict(), alone.state_dict())


class _Buffers:
    """What `live` asks of a memory."""

    def __init__(self, memory):
        self.buffers = memory.memory.buffers
        self.begin_episode, self.add = memory.begin_episode, memory.add


@pytest.mark.parametrize(("ratio", "every"), [(4, 1), (1, 1), (1, 2), (1, 3)])
def test_a_steady_schedule_is_gathered_ahead_and_nothing_in_vain(monkeypatch, ratio, every):
    """All but the first batch of a series at first, all from then on, none thrown away."""
    done = slow_or_fast(monkeypatch, 0)
    memory = PrefetchedReplay(make(None, 500, None), 8)
    stacks = np.zeros((9, 5, 7), np.uint8)
    memory.begin_episode(stacks, env_index=0)
    for step in range(1, 61):
        memory.add(np.zeros(2), 1.0, stacks, terminated=False, truncated=False, env_index=0)
        if step % every == 0 and step > 10:
            for _ in range(ratio):
                memory.sample(8)
    sampled = sum(step % every == 0 for step in range(11, 61)) * ratio
    memory.state_dict()
    assert sampled - 2 * ratio - 1 <= len(done) <= sampled


def test_a_batch_is_kept_apart_from_those_ahead_of_it(monkeypatch):
    from rlearly.replay import frame_store

    monkeypatch.setattr(frame_store, "BIG_BYTES", 1)
    memory = PrefetchedReplay(make(None, 100, None), 2)
    live([_Buffers(memory)], 80, 0)
    held, copies = [], []
    for _ in range(30):
        for _ in range(3):
            batch = memory.sample(8)
            held.append(batch.obs), copies.append(batch.obs.clone())
        live([_Buffers(memory)], 1, len(held))
    assert all(map(torch.equal, held, copies))


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_asked_for(monkeypatch):
    memory = PrefetchedReplay(make(None, 100, None), 1)
    with pytest.raises(EmptyReplayBuffer):
        memory.sample(8)
    live([_Buffers(memory)], 40, 0)

    def broken(drawn):
        raise OSError("the disk is gone")

    monkeypatch.setattr(prefetch, "gather", broken)
    for _ in range(2):
        memory.sample(8)
    live([_Buffers(memory)], 1, 3)
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in range(2):
            memory.sample(8)


def test_the_learners_threads_are_as_many_as_before():
    before = torch.get_num_threads()
    PrefetchedReplay(make(None, 100, None), 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("ratio", ["0.5", "3", "linear(0.5,4,200)"])
def test_a_run_and_its_resumption_are_the_same_with_it(tmp_path, monkeypatch, num_envs, ratio):
    done = slow_or_fast(monkeypatch, 1)
    words = (
        "train_frames=190",
        "agent.learning_starts_steps=60",
        f"num_envs={num_envs}",
        f"replay_ratio={ratio}",
        "log_every_frames=40",
        "replay.capacity=120",
    )

    def make(name, *more):
        return make_trainer(tmp_path / name, *words, *more, base=TINY_STATE["td3"])

    straight = make("straight")
    assert straight.run() and not done
    stopped = make("resumed", "replay.prefetch=2")
    stopped.stop_requested = lambda: stopped.steps >= 133
    assert not stopped.run() and done
    resumed = make("resumed", "replay.prefetch=1")
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")
