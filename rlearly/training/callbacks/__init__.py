"""Callbacks: user code that observes a run, may set attributes of its envs, and may end it."""

from rlearly.training.callbacks.callback import Callback as Callback
from rlearly.training.callbacks.callback import Episode as Episode
from rlearly.training.callbacks.callback import RunHandle as RunHandle
