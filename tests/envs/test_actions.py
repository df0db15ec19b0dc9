"""What reaches an env is a member of its action space, and all of the space is reached."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlearly import envs
from rlearly.core.errors import ConfigError
from rlearly.envs.wrappers import ScaledActions, agent_actions

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64"]


class Acted(gymnasium.Env):
    """Has an action space."""

    observation_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space


def scaled(low, high, dtype):
    return ScaledActions(Acted(Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)))


@st.composite
def bounds(draw, dtype):
    """(low, high) of one dimension, as numbers of `dtype`; both or neither are huge or infinite."""
    if np.dtype(dtype).kind == "f":
        width = 8 * np.dtype(dtype).itemsize
        least, most = (-6e4, 6e4) if dtype == "float16" else (-9e8, 9e8)
        values = st.floats(-np.float32(-least), np.float32(most), width=width)
        free = st.sampled_from([(-np.inf, np.inf)])
        if dtype != "float16":
            free |= st.just((-1e10, 1e10))
    else:
        limits = np.iinfo(dtype)
        least, most = max(limits.min, -(10**9) + 1), min(limits.max, 10**9 - 1)
        values = st.integers(least, most)
        free = st.just((limits.min, limits.max))
        if limits.min > -1e9 or limits.max < 1e9:
            free = st.just((0, 3))
    sorted_pair = st.tuples(values, values).map(lambda pair: tuple(sorted(pair)))
    return draw(sorted_pair | values.map(lambda value: (value, value)) | free)


@st.composite
def spaces(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 1)]))
    count = int(np.prod(shape))
    pairs = draw(st.lists(bounds(dtype), min_size=count, max_size=count))
    low, high = (np.array(side, dtype).reshape(shape) for side in zip(*pairs, strict=True))
    return Box(low, high, dtype=np.dtype(dtype).type)


@settings(max_examples=150, deadline=None)
@given(space=spaces(), data=st.data())
def test_what_reaches_the_env_is_a_member_and_both_ends_are_reached(space, data):
    env = ScaledActions(Acted(space))
    size = int(np.prod(space.shape))
    action = data.draw(arrays(np.float32, size, elements=st.floats(-1.5, 1.5, width=32)))
    for one in (action, -np.ones(size, np.float32), np.ones(size, np.float32)):
        given_to_env = env.action(one)
        assert given_to_env.dtype == space.dtype and space.contains(given_to_env)
    free = (space.low.astype(float) <= -1e9) & (space.high.astype(float) >= 1e9)
    ends = [env.action(np.full(size, end, np.float32)) for end in (-1, 1)]
    np.testing.assert_array_equal(ends[0], np.where(free, -1, space.low).astype(space.dtype))
    np.testing.assert_array_equal(ends[1], np.where(free, 1, space.high).astype(space.dtype))
    assert bool(env.note) == bool(free.any())


@settings(max_examples=40, deadline=None)
@given(low=st.integers(-128, 127), width=st.integers(0, 60), dtype=st.sampled_from(DTYPES[:8]))
def test_uniform_actions_draw_every_integer_equally_often(low, width, dtype):
    limits = np.iinfo(dtype)
    low = max(low, limits.min)
    high = min(low + width, limits.max)
    count = high - low + 1
    env = scaled([low], [high], dtype)
    parts = np.arange(count * 20)
    middles = ((2 * parts + 1) / len(parts) - 1).astype(np.float32)[:, None]
    drawn = np.concatenate([env.action(action) for action in middles])
    values, times = np.unique(drawn, return_counts=True)
    assert values.tolist() == list(range(low, high + 1)) and set(times.tolist()) == {20}
    assert (np.diff(drawn.astype(np.int64)) >= 0).all()


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (0.2, 0.9)])
def test_end_that_low_plus_width_misses_by_rounding_is_reached_and_not_passed(low, high):
    assert low + (high - low) != high
    env = scaled([low], [high], "float64")
    assert env.action(np.ones(1, np.float32)) == [high]
    assert env.action(-np.ones(1, np.float32)) == [low]


def test_bounds_below_a_billion_are_scaled_to():
    env = scaled([-2e6], [4e6], "float32")
    assert env.action(np.zeros(1, np.float32)) == [1e6] and not env.note


def test_unbounded_dimensions_get_unit_values_and_a_note_says_so():
    env = scaled([-1e10, 0, -np.inf], [1e10, 3, np.inf], "float64")
    np.testing.assert_array_equal(env.action(np.full(3, 0.5, np.float32)), [0.5, 2.25, 0.5])
    assert "no bounds in dimensions 0, 2; all values there will be from -1 to 1" in env.note
    integers = ScaledActions(Acted(Box(-np.inf, np.inf, (1,), np.int64)))
    thirds = [integers.action(np.array([a], np.float32))[0] for a in (-0.9, -0.3, 0.3, 0.4, 0.9)]
    assert thirds == [-1, 0, 0, 1, 1] and "will be -1, 0 or 1" in integers.note


def test_the_note_reaches_whoever_makes_the_env():
    for name, expected in (
        ("lqr_lqr_2_1", ["no bounds in dimension 0;"]),
        ("cartpole_swingup", []),
    ):
        env = envs.make(envs.config_for(name), pixels=False, model_seed=0)
        assert len(envs.notes(env)) == len(expected)
        assert all(part in note for part, note in zip(expected, envs.notes(env), strict=True))
        env.close()


@pytest.mark.parametrize(
    ("low", "high", "dtype", "received"),
    [
        ([0, -1], [np.inf, 1], "float32", r"\[0, inf\] in dimension 0, "),
        ([-1, -np.inf], [1, 0], "float64", r"\[-inf, 0\] in dimension 1, "),
        ([0], [2**63 - 1], "int64", r"\[0, 9.22337e\+18\] in dimension 0, "),
        ([1e10], [2e10], "float64", r"\[1e\+10, 2e\+10\] in dimension 0, "),
    ],
)
def test_dimension_with_one_bound_is_refused_with_the_remedy(low, high, dtype, received):
    with pytest.raises(ConfigError, match=received) as refused:
        scaled(low, high, dtype)
    assert "declare one, in the env or with gymnasium.wrappers.TransformAction" in str(
        refused.value
    )


def test_the_remedy_works():
    half = Acted(Box(0, np.inf, (2,), np.float32))
    space = Box(0, 5, (2,), np.float32)
    env = ScaledActions(gymnasium.wrappers.TransformAction(half, lambda action: action, space))
    assert env.action(np.array([1, 0], np.float32)).tolist() == [5, 2.5]


def test_discrete_actions_are_zero_based_and_reach_the_env_as_its_own():
    env = agent_actions(Acted(Discrete(3, start=-1)))
    assert env.action_space == Discrete(3)
    received = [env.action(np.int64(action)) for action in range(3)]
    assert received == [-1, 0, 1] and all(isinstance(action, np.int64) for action in received)


def test_the_combinations_of_discrete_parts_can_be_numbered():
    parts = Acted(MultiDiscrete([2, 3]))
    numbered = gymnasium.wrappers.TransformAction(parts, lambda a: divmod(int(a), 3), Discrete(6))
    assert agent_actions(numbered).action_space == Discrete(6)


@pytest.mark.parametrize(
    "space",
    [
        MultiDiscrete([2, 3]),
        MultiBinary(3),
        Tuple((Box(-1, 1, (1,)), Discrete(2))),
        Dict(a=Box(-1, 1, (1,))),
    ],
)
def test_other_action_spaces_are_refused_before_what_is_observed(space):
    class Unclear(Acted):
        observation_space = Box(-np.inf, np.inf, (64, 64, 3))

    gymnasium.register("Unclear-v0", Unclear, kwargs={"action_space": space})
    try:
        message = r"env=Unclear-v0: expected a Box or Discrete .*: map it to Discrete"
        with pytest.raises(ConfigError, match=message):
            envs.make(envs.config_for("Unclear-v0"), pixels=None, model_seed=0)
    finally:
        del gymnasium.registry["Unclear-v0"]
