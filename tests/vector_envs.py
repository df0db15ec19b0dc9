"""Envs that count, one by one and in vector envs of every kind."""

import functools

import gymnasium
import numpy as np
from conftest import Silent
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from rlearly.training import builder
from rlearly.training.sinks import JsonLines, Sinks

MODES = list(AutoresetMode)


def length_of(index, episode):
    """Steps of an episode: 2 to 5, other ones for each member."""
    return 2 + (2 * index + episode) % 4


def ends(index, episode, step):
    """(terminated, truncated) of an episode's step, which counts from 1; both ways are frequent."""
    over = step == length_of(index, episode)
    return over and (episode + index) % 2 == 0, over and (episode + index) % 2 == 1


def reward_of(index, episode, step, action):
    return 100.0 * index + 10.0 * episode + step + float(np.ravel(action)[0]) / 4


class Count(gymnasium.Env):
    """Observes (its index, its episodes so far, the episode's step); actions from -2 to 6."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-2, 6, (1,), np.float32)

    def __init__(self, index=0):
        self.index = index
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._obs(), {"began": self.episode}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        terminated, truncated = ends(self.index, self.episode, self.steps)
        assert self.steps <= length_of(self.index, self.episode), "stepped after its end"
        reward = reward_of(self.index, self.episode, self.steps, action)
        info = {"success": self.episode % 2 == 0} if terminated or truncated else {}
        return self._obs(), reward, terminated, truncated, info

    def _obs(self):
        return np.array([self.index, self.episode, self.steps], np.float32)


class CountVector(VectorEnv):
    """Count as a vector env of its own, which writes every observation into the same array.

    Where an env resets itself and the action is ignored, the reward is not finite.
    """

    def __init__(self, num_envs, mode):
        self.num_envs = num_envs
        self.mode = mode
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = (
            Count.observation_space,
            Count.action_space,
        )
        self.observation_space = batch_space(Count.observation_space, num_envs)
        self.action_space = batch_space(Count.action_space, num_envs)
        self.envs = [Count(index) for index in range(num_envs)]
        self.over = np.zeros(num_envs, bool)
        self.array = np.zeros((num_envs, 3), np.float32)
        self.final = np.full((num_envs, 3), np.nan, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for index in np.flatnonzero(mask):
            self.array[index] = self.envs[index].reset()[0]
            self.over[index] = False
        return self.array, {}

    def step(self, actions):
        assert self.action_space.contains(actions)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        success = np.zeros(self.num_envs, bool)
        for index, env in enumerate(self.envs):
            if self.over[index]:
                assert self.mode is AutoresetMode.NEXT_STEP
                self.array[index], rewards[index] = env.reset()[0], np.nan
                self.over[index] = False
                continue
            obs, rewards[index], terminated[index], truncated[index], _ = env.step(actions[index])
            self.over[index] = terminated[index] | truncated[index]
            success[index] = env.episode % 2 == 0
            if self.mode is AutoresetMode.SAME_STEP and self.over[index]:
                self.final[index], obs = obs, env.reset()[0]
            self.array[index] = obs
        over = terminated | truncated
        infos = {"success": success, "_success": over}
        if self.mode is AutoresetMode.SAME_STEP and over.any():
            self.over[:] = False
            infos = {"final_obs": self.final, "_final_obs": over, "final_info": infos}
        return self.array, rewards, terminated, truncated, infos


def makers(num_envs, make=Count):
    return [functools.partial(make, index) for index in range(num_envs)]


KINDS = {
    "sync": lambda n, mode: SyncVectorEnv(makers(n), copy=False, autoreset_mode=mode),
    "async": lambda n, mode: AsyncVectorEnv(makers(n), copy=False, autoreset_mode=mode),
    "custom": CountVector,
}


def trainer_on(vector, folder, config, **kwargs):
    import torch

    folder.mkdir(exist_ok=True, parents=True)
    return builder.build(
        config,
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
        vector_env=vector,
        **kwargs,
    )
