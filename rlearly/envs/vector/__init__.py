"""Train on somebody's `gymnasium.vector.VectorEnv`, whichever way it resets its envs."""
