"""rlearly: reinforcement learning's first hours, in one small framework."""

__version__ = "0.1.0"
