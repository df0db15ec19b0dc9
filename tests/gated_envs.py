"""Pendulum with a gate: the test decides when a run may end, however fast the machine is."""

import itertools
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv

FREE_STEPS = 1000
"""Steps of a process that a closed gate does not slow down."""

_steps = itertools.count()


class GatedPendulum(PendulumEnv):
    """Pendulum, to the bit; while the file `gate` exists it takes five steps a second."""

    def __init__(self, render_mode=None, gate=None):
        super().__init__(render_mode)
        self.gate = gate

    def step(self, action):
        if next(_steps) > FREE_STEPS and self.gate and Path(self.gate).exists():
            time.sleep(0.2)
        return super().step(action)


gymnasium.register("GatedPendulum-v0", GatedPendulum, max_episode_steps=200)
