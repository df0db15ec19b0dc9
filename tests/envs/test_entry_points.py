"""Envs named by what makes them: module:NAME, functions and objects of a program."""

import functools

import gymnasium
import numpy as np
import pytest
import tiny_envs

from rlearly import envs
from rlearly.core.errors import ConfigError
from rlearly.envs import entry_points
from rlearly.envs.entry_points import gymnasium_id, name_of_env, name_of_factory


def make_reach(render_mode=None):
    return gymnasium.wrappers.TransformReward(tiny_envs.StateReach(render_mode), lambda r: 2 * r)


class Nested:
    @staticmethod
    def make():
        return tiny_envs.StateReach()


def test_a_class_of_a_module_makes_an_env():
    made = envs.make(envs.config_for("tiny_envs:StateReach"), pixels=None, model_seed=0)
    assert made.observation_space.shape == (2,)
    assert envs.code_of(envs.config_for("tiny_envs:StateReach")) == ["tiny_envs"]


def test_a_function_may_wrap_its_env():
    made = envs.make(envs.config_for("test_entry_points:make_reach"), pixels=None, model_seed=0)
    made.reset(seed=0)
    assert 1 < made.step(np.zeros(1, np.float32))[1] < 2


def test_a_registered_id_comes_before_a_class():
    assert gymnasium_id("tiny_envs:StateReach-v0") == "StateReach-v0"
    assert gymnasium_id("Hopper-v5") == "Hopper-v5"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tiny_envs:StatReach", "did you mean StateReach"),
        ("nothing_here:Reach", "cannot be imported: No module named 'nothing_here'"),
        ("os:nothing", "os registers no env 'nothing'.*has no env at all"),
    ],
)
def test_a_wrong_name_is_refused(name, expected):
    with pytest.raises(ConfigError, match=expected):
        envs.make(envs.config_for(name), pixels=None, model_seed=0)


def test_what_another_process_can_find_is_named_by_its_module():
    assert name_of_factory(tiny_envs.StateReach) == "tiny_envs:StateReach"
    assert name_of_factory(Nested.make) == "test_entry_points:Nested.make"
    assert gymnasium_id("test_entry_points:Nested.make")
    assert name_of_factory(lambda: tiny_envs.StateReach()) == "given/lambda"
    assert name_of_factory(functools.partial(make_reach)) == "given/make_reach"


def test_an_env_of_another_process_is_asked_for():
    with pytest.raises(ConfigError, match=r"given/Reach: was passed to rlearly.train as an object"):
        envs.config_for("given/Reach")


def test_a_made_env_is_named_by_its_id_and_arguments():
    env = gymnasium.make("Hopper-v5")
    assert name_of_env(env) == ("Hopper-v5", {})
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert name_of_env(env) == ("Hopper-v5", {})
    other = gymnasium.make("Hopper-v5", max_episode_steps=50, terminate_when_unhealthy=False)
    assert name_of_env(other) == (
        "Hopper-v5",
        {"env.kwargs": {"terminate_when_unhealthy": False}, "env.max_episode_steps": 50},
    )
    assert name_of_env(gymnasium.make("tiny_envs:StateReach-v0"))[0] == "tiny_envs:StateReach-v0"


def test_a_wrapped_env_is_made_again_with_its_wrappers():
    name, _ = name_of_env(gymnasium.wrappers.TimeAwareObservation(gymnasium.make("Pendulum-v1")))
    assert gymnasium.make(name).observation_space.shape == (4,)


def test_a_changed_env_is_copied_with_its_changes():
    env = gymnasium.make("Pendulum-v1")
    env.unwrapped.g = 3.0
    name, _ = name_of_env(env)
    assert gymnasium.make(name).unwrapped.g == 3.0
    env.unwrapped.g = 4.0  # the caller's own env goes its own way
    assert gymnasium.make(name).unwrapped.g == 3.0


def test_a_change_that_no_copy_has_is_refused_by_name():
    env = gymnasium.make("Hopper-v5")
    env.unwrapped.model.opt.gravity[2] = -3.0
    with pytest.raises(ConfigError, match=r"it was changed.*gravity.*pass a function"):
        name_of_env(env)
    assert env.unwrapped.model.opt.gravity[2] == -3.0


def test_an_env_that_cannot_be_copied_is_refused_with_the_reason():
    env = tiny_envs.StateReach()
    env.stream = (number for number in range(3))
    with pytest.raises(ConfigError, match=r"cannot be copied.*generator.*pass a function"):
        name_of_env(env)


def test_an_env_object_stays_as_it_is():
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=3)
    state = env.unwrapped.state.copy()
    name_of_env(env)
    assert (env.unwrapped.state == state).all()


def test_a_class_defined_again_replaces_the_first():
    for value in (1, 2):

        class Mine(tiny_envs.StateReach):
            number = value

        name = name_of_factory(Mine)
        assert gymnasium.make(name).unwrapped.number == value
    assert entry_points.GIVEN in name
