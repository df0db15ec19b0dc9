"""Prefetching: a thread gathers the next batches while the learner computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Any

import torch

from rlearly.core.spaces import Observation, observation_arrays
from rlearly.core.types import Batch
from rlearly.replay.buffer import Draw, VectorReplayBuffer, gather


@dataclass(frozen=True)
class Prefetched:
    """A batch that is being gathered, and the generator's state before it was drawn."""

    batch_size: int
    generator_state: Mapping[str, Any]
    batch: Future[tuple[Batch, Any]]


class PrefetchedReplay:
    """A replay that gathers its next batches while the learner uses the last one.

    Batches are the same as without it, to the bit, whatever the timing. They are drawn in the order
    in which they are sampled, by the caller's thread, from the replay's one generator, and only
    while nothing is added: whatever changes or saves the replay first discards the prefetched
    batches and sets the generator back to where it was.

    The number of updates in a row, and of steps between such series, is predicted from the last
    series; a wrong guess only costs time. Prefetching helps where several updates follow each
    other: at a replay ratio above 1, and with several envs. Otherwise it only uses the time between
    a step's storage and the next update.

    On a GPU a batch is also copied there in advance, on a stream of its own (the gain has not been
    measured).
    """

    def __init__(self, memory: VectorReplayBuffer, batches: int):
        """`batches`: the largest number prefetched at a time; each has its own memory."""
        self.memory = memory
        self.batches = batches
        self._prefetched: deque[Prefetched] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._sampled, self._added = 0, 0  # batches and steps of the current series
        self._last_sampled, self._last_added = 1, 0  # of the series before
        self._batch_size = 0  # of the last batch
        self._device = memory.buffers[0].device
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None
        threads = torch.get_num_threads()
        self._thread.submit(torch.set_num_threads, 1).result()  # in that thread's own team
        torch.set_num_threads(threads)

    def __len__(self) -> int:
        return len(self.memory)

    def begin_episode(self, obs: Observation, *, env_index: int) -> None:
        self._discard()
        self.memory.begin_episode(obs, env_index=env_index)
        self._prefetch_for_series()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As `VectorReplayBuffer.add`."""
        self._discard()
        self.memory.add(*args, **kwargs)
        if self._sampled:
            self._last_sampled, self._sampled = self._sampled, 0
        self._added += 1
        self._prefetch_for_series()

    def skip(self, *, env_index: int) -> None:
        """As `VectorReplayBuffer.skip`."""

    def sample(self, batch_size: int) -> Batch:
        """As `VectorReplayBuffer.sample`."""
        if self._prefetched and self._prefetched[0].batch_size != batch_size:
            self._discard()
        if self._prefetched:
            batch = self._receive(self._prefetched.popleft())
        else:
            batch = self.memory.sample(batch_size)
        if self._added:
            self._last_added, self._added = self._added, 0
        self._sampled += 1
        self._batch_size = batch_size
        self._prefetch(self._last_sampled - self._sampled)
        return batch

    def clear(self) -> None:
        self._discard()
        self.memory.clear()

    def metrics(self) -> Mapping[str, float]:
        return self.memory.metrics()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self.memory.close()

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        self._discard()
        self.memory.take_over(state, nstep=nstep, frame_stack=frame_stack)

    def state_dict(self) -> dict[str, Any]:
        self._discard()
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._discard()
        self.memory.load_state_dict(state)

    def _prefetch_for_series(self) -> None:
        """Start prefetching if the last series of updates began after this many steps."""
        if self._batch_size and self._added == self._last_added and len(self.memory):
            self._prefetch(self._last_sampled)

    def _prefetch(self, count: int) -> None:
        """Have up to `count` batches prefetched, of the size that was sampled last."""
        generator = self.memory.generator.bit_generator
        while len(self._prefetched) < min(count, self.batches):
            state = generator.state
            drawn = self.memory.draw(self._batch_size)
            ready = self._stream and torch.cuda.current_stream(self._device).record_event()
            future = self._thread.submit(self._gather, drawn, ready)
            self._prefetched.append(Prefetched(self._batch_size, state, future))

    def _gather(self, drawn: Draw, ready: Any) -> tuple[Batch, Any]:
        if self._stream is None:
            return gather(drawn), None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)  # frames written to the GPU have arrived
            return gather(drawn), self._stream.record_event()

    def _receive(self, prefetched: Prefetched) -> Batch:
        batch, copied = prefetched.batch.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for field in fields(batch):
                for part in observation_arrays(getattr(batch, field.name)):
                    part.record_stream(stream)
        return batch

    def _discard(self) -> None:
        """Drop prefetched batches and set the generator back to before they were drawn."""
        if not self._prefetched:
            return
        for prefetched in self._prefetched:
            prefetched.batch.cancel()
        wait([prefetched.batch for prefetched in self._prefetched])
        self.memory.generator.bit_generator.state = dict(self._prefetched[0].generator_state)
        self._prefetched.clear()
