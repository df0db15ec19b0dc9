"""Batches gathered ahead by a thread while the learner computes: the same ones, to the bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from rlearly.core.spaces import Observation, observation_arrays
from rlearly.core.types import Batch
from rlearly.replay.buffer import Draw, VectorReplayBuffer, gather


@dataclass(frozen=True)
class Ahead:
    """A batch that is drawn and being gathered, and the generator as it was before."""

    size: int
    generator_state: Mapping[str, Any]
    batch: Future[tuple[Batch, Any]]


class PrefetchedReplay:
    """A replay whose next batches are gathered while the last one is learnt from.

    The schedule is fixed. Batches are drawn in the order in which they are sampled, by the caller's
    thread, from the replay's one generator, each from the ring as it is when it is sampled: a batch
    is drawn ahead only for as long as nothing is added. Whatever changes or saves the replay first
    takes back what was drawn ahead and not yet sampled, and puts the generator back to where it
    was. So neither this class nor any timing changes a bit of a batch, a checkpoint or a run.

    How many updates follow each other without a step between, and how many steps lie between such
    series, is taken to be what it was last time, and decides only whether drawing ahead is worth
    it. It is where several updates follow each other: at a replay ratio above 1, and with several
    copies of an env. Otherwise only the time between a step's storage and the next update is used.

    On a GPU a batch is also copied there ahead, on a stream of its own (unmeasured: written without
    one).
    """

    def __init__(self, memory: VectorReplayBuffer, batches: int):
        """`batches`: so many are ahead at most; each takes its own memory."""
        self.memory = memory
        self.batches = batches
        self._ahead: deque[Ahead] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._sampled, self._added = 0, 0  # batches and steps of the series that goes on
        self._last_sampled, self._last_added = 1, 0  # of the one before
        self._size = 0  # of the last batch
        self._device = memory.buffers[0].device
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None
        threads = torch.get_num_threads()
        self._thread.submit(torch.set_num_threads, 1).result()  # of that thread's own team
        torch.set_num_threads(threads)

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return len(self.memory)

    def begin_episode(self, obs: Observation, *, env_index: int) -> None:
        self._take_back()
        self.memory.begin_episode(obs, env_index=env_index)
        self._after_change()

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: Observation,
        *,
        terminated: bool,
        truncated: bool,
        env_index: int,
    ) -> None:
        self._take_back()
        self.memory.add(
            action,
            reward,
            next_obs,
            terminated=terminated,
            truncated=truncated,
            env_index=env_index,
        )
        if self._sampled:
            self._last_sampled, self._sampled = self._sampled, 0
        self._added += 1
        self._after_change()

    def sample(self, batch_size: int) -> Batch:
        """As `VectorReplayBuffer.sample`."""
        if self._ahead and self._ahead[0].size != batch_size:
            self._take_back()
        if self._ahead:
            batch = self._received(self._ahead.popleft())
        else:
            batch = self.memory.sample(batch_size)
        if self._added:
            self._last_added, self._added = self._added, 0
        self._sampled += 1
        self._size = batch_size
        self._draw_ahead(self._last_sampled - self._sampled)
        return batch

    def clear(self) -> None:
        """No transition that is ready now is sampled again."""
        self._take_back()
        self.memory.clear()

    def metrics(self) -> Mapping[str, float]:
        """As `VectorReplayBuffer.metrics`."""
        return self.memory.metrics()

    def state_dict(self) -> dict[str, Any]:
        self._take_back()
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._take_back()
        self.memory.load_state_dict(state)

    def _after_change(self) -> None:
        if self._size and self._added == self._last_added and len(self.memory):
            self._draw_ahead(self._last_sampled)

    def _draw_ahead(self, count: int) -> None:
        """Have up to `count` batches ahead, all of the size that was asked for last."""
        generator = self.memory.generator.bit_generator
        while len(self._ahead) < min(count, self.batches):
            before = generator.state
            drawn = self.memory.draw(self._size)
            ready = self._stream and torch.cuda.current_stream(self._device).record_event()
            future = self._thread.submit(self._gather, drawn, ready)
            self._ahead.append(Ahead(self._size, before, future))

    def _gather(self, drawn: Draw, ready: Any) -> tuple[Batch, Any]:
        if self._stream is None:
            return gather(drawn), None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)  # what was written to frames on the GPU is there
            return gather(drawn), self._stream.record_event()

    def _received(self, ahead: Ahead) -> Batch:
        batch, copied = ahead.batch.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for field in fields(batch):
                for part in observation_arrays(getattr(batch, field.name)):
                    part.record_stream(stream)
        return batch

    def _take_back(self) -> None:
        """Nothing is ahead, and the generator is as if nothing had been."""
        if not self._ahead:
            return
        for ahead in self._ahead:
            ahead.batch.cancel()
        wait([ahead.batch for ahead in self._ahead])
        self.memory.generator.bit_generator.state = dict(self._ahead[0].generator_state)
        self._ahead.clear()
