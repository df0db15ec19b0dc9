"""Train on a user's `gymnasium.vector.VectorEnv`, in any autoreset mode."""
