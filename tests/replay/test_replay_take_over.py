"""A replay that begins with another run's transitions samples what it had seen them itself."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rlearly.core.errors import Misfit
from rlearly.core.types import EnvSpec
from rlearly.replay.buffer import ReplayBuffer, TransitionLayout, VectorReplayBuffer
from rlearly.replay.prefetch import PrefetchedReplay
from rlearly.replay.rollout import RolloutBuffer


def make_buffer(capacity=50, nstep=1, stack=1, frame=(1,), actions=1, dtype="float32"):
    layout = TransitionLayout(frame, dtype, stack, actions)
    random = np.random.default_rng(0)
    return ReplayBuffer(layout, capacity=capacity, nstep=nstep, discount=0.9, generator=random)


def play(buffer, lengths, *, running, cut=False):
    """Episodes of these lengths, alternately terminated and truncated; frame and reward count on.

    The last one is still `running`, unless it is `cut`: truncated after its last step.
    """
    number = 0
    for at, length in enumerate(lengths):
        stack = [float(number)] * buffer.layout.frame_stack
        buffer.begin_episode(np.array(stack, np.float32))
        number += 1
        for step in range(length):
            stack = [*stack[1:], float(number)]
            last = step == length - 1
            in_running = at == len(lengths) - 1 and running
            buffer.add(
                np.array([number], np.float32),
                float(number),
                np.array(stack, np.float32),
                terminated=last and at % 2 == 0 and not in_running,
                truncated=last and ((at % 2 == 1 and not in_running) or (in_running and cut)),
            )
            number += 1


def transitions(buffer):
    """All that can be sampled, in the order in which it was seen."""
    first = max(0, buffer.added - buffer.capacity)
    slots = np.array([s % buffer.capacity for s in range(first, buffer.added)])
    batch = buffer.gather(slots[buffer.ready[slots]])
    return [
        tuple(map(tuple, (part.numpy().round(4).tolist() for part in row)))
        for row in zip(
            batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, strict=True
        )
    ]


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("lengths", [[5, 4, 6], [3, 1, 1, 7], [2, 9, 0]])
@pytest.mark.parametrize("capacities", [(50, 50), (50, 9), (12, 50), (12, 8)])
@pytest.mark.parametrize(("there", "here"), [((1, 1), (3, 1)), ((3, 2), (1, 3)), ((2, 3), (2, 3))])
def test_it_samples_as_if_the_running_episode_had_been_truncated(
    running, lengths, capacities, there, here
):
    other = make_buffer(capacities[0], *there)
    stacked = make_buffer(min(capacities), *here)
    play(other, lengths, running=running)
    play(stacked, lengths, running=running, cut=True)
    buffer = make_buffer(capacities[1], *here)
    buffer.take_over(other.state_dict(), nstep=there[0], frame_stack=there[1])
    assert transitions(buffer) == transitions(stacked)
    assert len(buffer) == buffer.ready.sum() > 0


def test_its_own_episodes_follow(tmp_path):
    other, straight = make_buffer(12, 2), make_buffer(12, 2)
    play(other, [5, 4], running=True)
    play(straight, [5, 4], running=True, cut=True)
    buffer = make_buffer(12, 2)
    buffer.take_over(other.state_dict(), nstep=2, frame_stack=1)
    for one in (buffer, straight):
        play(one, [3, 3, 6], running=True)
    assert transitions(buffer) == transitions(straight)
    assert buffer.agent_steps == 12, "those of the other run are not counted"
    again = make_buffer(12, 2)
    again.load_state_dict(buffer.state_dict())
    assert transitions(again) == transitions(buffer)


def test_what_was_cleared_stays_cleared():
    other, straight = make_buffer(30, 3), make_buffer(30, 1)
    play(other, [5, 4], running=False)
    other.clear()
    play(other, [6], running=False)
    play(straight, [6], running=False)
    buffer = make_buffer(30, 1)
    buffer.take_over(other.state_dict(), nstep=3, frame_stack=1)
    assert transitions(buffer) == transitions(straight)


def test_empty_replay_is_taken_over_as_nothing():
    buffer = make_buffer()
    buffer.take_over(make_buffer().state_dict(), nstep=1, frame_stack=1)
    assert len(buffer) == buffer.added == 0


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ({"frame": (2,)}, r"the replay's frames are \[2\] there and \[1\] here"),
        ({"dtype": "uint8"}, "the replay's dtype of frames are uint8 there and float32 here"),
        ({"actions": 2}, r"actions are float32 \[2\] there and float32 \[1\] here"),
        ({"actions": 0}, r"actions are int64 \[\] there and float32 \[1\] here"),
    ],
)
def test_other_observations_or_actions_are_refused(there, sentence):
    other = make_buffer(**there)
    obs = np.zeros(other.layout.frame_shape, other.layout.frame_dtype)
    other.begin_episode(obs)
    other.add(other.actions[0], 1.0, obs, terminated=False, truncated=True)
    with pytest.raises(Misfit, match=sentence):
        make_buffer().take_over(other.state_dict(), nstep=1, frame_stack=1)


def test_another_number_of_envs_is_refused():
    random = np.random.default_rng(0)
    two = VectorReplayBuffer([make_buffer(), make_buffer()], random)
    one = PrefetchedReplay(VectorReplayBuffer([make_buffer()], random), 1)
    with pytest.raises(Misfit, match="of 2 envs there and of 1 here"):
        one.take_over(two.state_dict(), nstep=1, frame_stack=1)
    one.close()


def test_a_rollout_takes_nothing_over():
    spec = EnvSpec(Box(-1, 1, (2,), np.float32), Discrete(2), 1)
    with pytest.raises(Misfit, match="learns from its own steps alone"):
        RolloutBuffer(spec, steps=4, num_envs=1).take_over({}, nstep=1, frame_stack=1)
