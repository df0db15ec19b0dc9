"""Off-policy replay: single frames in a ring, from which stacks and n-step returns are gathered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlearly.core.append_log import AppendLog, LogChunk
from rlearly.core.errors import Misfit
from rlearly.core.spaces import PIXELS, VECTOR, Observation
from rlearly.core.types import Batch
from rlearly.replay.annealing import Annealing
from rlearly.replay.frame_store import (
    BatchMemory,
    DeviceFrameStore,
    FrameStore,
    RawFrameStore,
    reserve,
)

ENDS, TERMINATES, LAST = 1, 2, 4
"""Flags of a slot. ENDS: its transition ends the episode; TERMINATES: it does so by termination;
LAST: the slot holds an episode's final observation."""


class EmptyReplayBuffer(Exception):
    """Nothing can be sampled yet."""


@dataclass(frozen=True)
class TransitionLayout:
    """The shape of a transition.

    frame_shape: one frame of the observation, [C, H, W] with frames stacked on C, or [D].
    frame_stack: frames per observation.
    actions: size of an action; 0 of a discrete one, which is stored as an int64 number.
    vector: size of the vector that is observed with an image, of the newest frame only; 0 if there
        is none, and observations are not dicts.
    """

    frame_shape: tuple[int, ...]
    frame_dtype: str
    frame_stack: int
    actions: int
    vector: int = 0

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.frame_shape)) * np.dtype(self.frame_dtype).itemsize

    @property
    def transition_bytes(self) -> int:
        """Bytes per transition: a frame, an action, a vector, and 10 for reward and bookkeeping."""
        action_bytes = 4 * self.actions or 8
        return self.frame_bytes + action_bytes + 4 * self.vector + 4 + 4 + 1 + 1

    @property
    def fields(self) -> tuple[str, ...]:
        """The arrays of a buffer, other than frames, that a checkpoint saves slot by slot."""
        return ("actions", "rewards", "ages", "flags", *(["vectors"] if self.vector else []))

    def newest_frame(self, obs: Observation) -> np.ndarray:
        pixels = obs[PIXELS] if self.vector else obs
        return pixels[-self.frame_shape[0] :]


class ReplayBuffer:
    """The last `capacity` slots of one env's experience, sampled uniformly.

    A slot holds one frame, and the action, reward and ending that followed it. An episode of T
    transitions takes T + 1 slots: the last one holds only the final frame. The observation of slot
    t is the frames max(first, t - stack + 1) .. t, with the first frame of an episode repeated.

    A sample starts at slot t and takes k = min(n, steps to the episode's end) steps:
    reward = sum over i < k of gamma^i r[t + i]; discount = gamma^k, or 0 if the last of them
    terminated; next_obs is that of slot t + k. In a running episode a window can be sampled once
    all n steps are there. Deviation: the official loader never starts a window in the last n - 1
    steps of an episode, and so loses every episode shorter than n; here those windows are shorter.

    Where n and gamma are annealed, a window uses their values at the time of sampling, also for
    transitions that were stored before.

    Memory is reserved at once but used only as the buffer fills. A batch belongs to the caller for
    as long as anything refers to it.
    """

    def __init__(
        self,
        layout: TransitionLayout,
        *,
        capacity: int,
        nstep: int,
        discount: float,
        generator: np.random.Generator,
        device: torch.device | None = None,
        frames: FrameStore | None = None,
        annealing: Annealing | None = None,
        num_envs: int = 1,
    ):
        """Make an empty buffer.

        Args:
            device: the learner's; batches are copied there if it is a GPU.
            frames: keeps the frames; raw in memory by default.
            annealing: replaces `discount` and `nstep`, which is then the largest n.
            num_envs: number of envs, each with a buffer like this one and the same number of steps.
        """
        if capacity < nstep + layout.frame_stack + 1:
            raise ValueError(
                f"capacity: expected more than nstep + frame_stack = "
                f"{nstep + layout.frame_stack}, received {capacity}"
            )
        self.layout = layout
        self.capacity = capacity
        self.nstep = nstep
        self.annealing = annealing
        self.num_envs = num_envs
        self.generator = generator
        self.device = device or torch.device("cpu")
        self.frames = frames or RawFrameStore(capacity, layout.frame_shape, layout.frame_dtype)
        if layout.actions:
            self.actions = reserve((capacity, layout.actions), "float32")
        else:
            self.actions = reserve((capacity,), "int64")
        if layout.vector:
            self.vectors = reserve((capacity, layout.vector), "float32")
        self.rewards = reserve((capacity,), "float32")
        self.ages = reserve((capacity,), "int32")  # steps since the episode's first slot
        self.flags = reserve((capacity,), "uint8")
        self.ready = np.zeros(capacity, dtype=bool)  # slots at which a sample can start
        self.ready_count = 0
        self.added = 0  # slots ever written; the i-th of them is at index i % capacity
        self.steps = 0  # ever added
        self._age = 0  # of the newest slot
        self._discount = discount  # the gamma of `_powers`
        self._powers = self._powers_of(discount)
        self._batch_memory = BatchMemory()

    def __len__(self) -> int:
        """The number of transitions that can be sampled now."""
        return self.ready_count

    @property
    def agent_steps(self) -> int:
        """Steps taken so far by all envs, if each has taken as many as this one.

        On a vector env that resets in the next step they differ by a few.
        """
        return self.steps * self.num_envs

    # --- adding ---

    def begin_episode(self, obs: Observation) -> None:
        """Start an episode at its first observation (a stack; its newest frame is stored)."""
        self._age = 0
        self._write_slot(obs)

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: Observation,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add the step that was taken from the newest observation. action [A] or a number."""
        at = (self.added - 1) % self.capacity
        ends = terminated or truncated
        self.actions[at] = action
        self.rewards[at] = reward
        self.flags[at] = ENDS * ends | TERMINATES * terminated
        self.steps += 1
        self._age += 1
        self._write_slot(next_obs)
        newest = self.added - 1
        if ends:
            self.flags[newest % self.capacity] = LAST
        behind = range(min(self.nstep, self._age), 0, -1) if ends else (self.nstep,)
        for distance in behind:
            if self._age >= distance:
                self._make_ready(newest - distance)

    def clear(self) -> None:
        """Never sample again the transitions that are ready now."""
        self.ready[:] = False
        self.ready_count = 0

    def _write_slot(self, obs: Observation) -> None:
        at = self.added % self.capacity
        # Observations that contain the overwritten frame can no longer be sampled.
        for after in range(self.layout.frame_stack):
            i = (at + after) % self.capacity
            if self.ready[i] and (after == 0 or self.ages[i] >= after):
                self.ready[i] = False
                self.ready_count -= 1
        self.frames.write(at, self.layout.newest_frame(obs)[None])
        if self.layout.vector:
            self.vectors[at] = obs[VECTOR]
        self.actions[at] = 0
        self.rewards[at] = 0.0
        self.ages[at] = self._age
        self.flags[at] = 0
        self.added += 1

    def _make_ready(self, slot: int) -> None:
        """Let samples start at a slot, numbered from the first ever written."""
        at = slot % self.capacity
        reach = min(int(self.ages[at]), self.layout.frame_stack - 1)
        if slot - reach > self.added - 1 - self.capacity and not self.ready[at]:
            self.ready[at] = True
            self.ready_count += 1

    # --- sampling ---

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly with replacement, on the buffer's device.

        Raises:
            EmptyReplayBuffer: no transition is complete yet.
        """
        return self.gather(self.draw(batch_size))

    def draw(self, batch_size: int) -> np.ndarray:
        """Indices [B] at which the transitions of a batch start; raises as `sample` does."""
        if not self.ready_count:
            raise EmptyReplayBuffer("no transition is complete yet")
        stored = min(self.added, self.capacity)
        if self.ready_count * 8 < stored:  # sparse: list the ready slots instead of rejecting
            ready = np.flatnonzero(self.ready)
            return ready[self.generator.integers(len(ready), size=batch_size)]
        slots = self.generator.integers(stored, size=batch_size)
        while True:
            ready = self.ready.take(slots)
            if ready.all():
                return slots
            rejected = np.flatnonzero(~ready)
            slots[rejected] = self.generator.integers(stored, size=len(rejected))

    def gather(self, slots: np.ndarray) -> Batch:
        """The transitions that start at indices `slots` [B]."""
        return gather([(self, slots)])

    def windows(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n-step rewards [B], discounts [B], and the indices [B] of their next observations."""
        at, length = slots, 1
        nstep, powers = self._horizon()
        flags = self.flags.take(slots)
        reward = self.rewards.take(slots)
        for step in range(1, nstep):
            continues = flags & ENDS == 0
            at = at + continues  # stays at an episode's last step
            at[at == self.capacity] = 0
            flags = self.flags.take(at)
            reward += self.rewards.take(at) * powers[step] * continues
            length = length + continues
        end = at + 1
        end[end == self.capacity] = 0
        terminated = flags & TERMINATES > 0
        discount = np.where(terminated, np.float32(0.0), powers[length])
        return reward, discount, end

    def _horizon(self) -> tuple[int, np.ndarray]:
        """The current n, and gamma^0 .. gamma^n."""
        if self.annealing is None:
            return self.nstep, self._powers
        nstep, discount = self.annealing.at(self.agent_steps)
        if discount != self._discount:
            self._discount, self._powers = discount, self._powers_of(discount)
        return min(nstep, self.nstep), self._powers

    def _powers_of(self, discount: float) -> np.ndarray:
        return np.float32(discount) ** np.arange(self.nstep + 1, dtype=np.float32)

    def stacks(self, slots: np.ndarray) -> np.ndarray:
        """Indices [B * stack] of the frames of the observations at `slots`, oldest first."""
        stack = self.layout.frame_stack
        if stack == 1:
            return slots
        ages = self.ages.take(slots)
        indices = np.empty((len(slots), stack), np.int64)
        for back in range(stack):
            np.subtract(slots, np.minimum(ages, back), out=indices[:, stack - 1 - back])
        indices[indices < 0] += self.capacity
        return indices.ravel()

    def empty_frames(self, rows: int) -> torch.Tensor:
        """Memory to gather frames [rows, *F] into."""
        shape, dtype = (rows, *self.layout.frame_shape), self.layout.frame_dtype
        if isinstance(self.frames, DeviceFrameStore):
            return self.frames.empty(rows)
        if self.device.type == "cuda":  # pinned, so that the copy to the GPU is asynchronous
            return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)
        return self._batch_memory.take(shape, dtype)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the learner's device."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
            return tensor.to(self.device, non_blocking=True)
        return tensor

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """The whole buffer. The newest slot is kept out of the append-only log of slots, because
        the next step will change it."""
        newest = self._rows(self.added - 1, self.added)
        return {
            "layout": self._kind(),
            "capacity": self.capacity,
            "added": self.added,
            "age": self._age,
            "steps": self.steps,
            "generator": self.generator.bit_generator.state,
            "slots": AppendLog(
                max(0, self.added - self.capacity), max(0, self.added - 1), self._rows
            ),
            "newest": [{name: part.copy() for name, part in rows.items()} for _, rows in newest],
            "ready": np.packbits(self.ready),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the buffer.

        Raises:
            ValueError: the state has a different capacity or layout.
        """
        own = (self.capacity, self._kind())
        saved = (state["capacity"], state["layout"])
        if own != saved:
            raise ValueError(
                f"expected a replay of capacity and layout {own}, received one of {saved}"
            )
        for first, rows in state["slots"].chunks():
            self._load_rows(first, rows)
        for rows in state["newest"]:
            self._load_rows(state["added"] - 1, rows)
        self.ready[:] = np.unpackbits(state["ready"], count=self.capacity)
        self.ready_count = int(self.ready.sum())
        self.added = state["added"]
        self._age = state["age"]
        self.steps = state["steps"]
        self.generator.bit_generator.state = state["generator"]

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        """Begin with the newest transitions of another buffer, as many as fit.

        They are sampled with this buffer's n, gamma and frame stack. An episode that was still
        running there ends where it stood, as if it had been truncated. What was cleared there stays
        cleared.

        Args:
            nstep, frame_stack: of that buffer.

        Raises:
            Misfit: it holds other observations or actions.
        """
        names = ("frames", "dtype of frames", "vector")
        for name, one, other in zip(names, state["layout"], self._kind(), strict=True):
            if one != other:
                raise Misfit(f"the replay's {name} are {one} there and {other} here")
        first, end = state["slots"].first, state["added"]
        kept = min(end - first, self.capacity)
        if kept <= 0:
            return
        newest = [(end - 1, rows) for rows in state["newest"]]
        for number, rows in itertools.chain(state["slots"].chunks(), newest):
            self._check_actions(rows["actions"])
            skipped = max(0, end - kept - number)
            if skipped < len(rows["flags"]):
                at = number + skipped - (end - kept)
                self._load_rows(at, {name: part[skipped:] for name, part in rows.items()})
        ready = np.unpackbits(state["ready"], count=state["capacity"]).astype(bool)
        was_ready = ready[np.arange(end - kept, end) % state["capacity"]]
        ages, flags = self.ages[:kept], self.flags[:kept]
        before = end - kept - first  # slots of that buffer that are not kept
        cleared = _startable(ages, flags, nstep, frame_stack, before) & ~was_ready
        _end_cut_episodes(ages, flags)
        now = _startable(ages, flags, self.nstep, self.layout.frame_stack, 0)
        self.ready[:kept] = now & ~cleared
        self.ready_count = int(self.ready.sum())
        self.added = kept
        self._age = int(ages[-1])

    def _check_actions(self, there: np.ndarray) -> None:
        kinds = [f"{array.dtype} {list(array.shape[1:])}" for array in (there, self.actions)]
        if kinds[0] != kinds[1]:
            raise Misfit(f"the replay's actions are {kinds[0]} there and {kinds[1]} here")

    def _kind(self) -> list[Any]:
        """What a saved buffer must have in common with this one."""
        return [list(self.layout.frame_shape), self.layout.frame_dtype, self.layout.vector]

    def _rows(self, first: int, end: int) -> Iterator[LogChunk]:
        """Slots `first` to `end`, numbered from the first ever written, as views if possible."""
        for number, start, stop in self._spans(first, end):
            rows = {"frames": self.frames.read(start, stop)}
            yield number, rows | {k: getattr(self, k)[start:stop] for k in self.layout.fields}

    def _load_rows(self, first: int, rows: Mapping[str, np.ndarray]) -> None:
        for number, start, stop in self._spans(first, first + len(rows["frames"])):
            part = slice(number - first, number - first + stop - start)
            self.frames.write(start, rows["frames"][part])
            for name in self.layout.fields:
                getattr(self, name)[start:stop] = rows[name][part]

    def _spans(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Slots `first` to `end` as contiguous spans: (number of the first, start, stop)."""
        number = max(first, 0)
        while number < end:
            start = number % self.capacity
            stop = min(start + min(end - number, self.frames.chunk_rows), self.capacity)
            yield number, start, stop
            number += stop - start


def _last_slots(ages: np.ndarray) -> np.ndarray:
    """Of slots in order, the index of the last slot of each one's episode."""
    lasts = np.flatnonzero(np.append(ages[1:] == 0, True))
    return lasts[np.searchsorted(lasts, np.arange(len(ages)))]


def _startable(
    ages: np.ndarray, flags: np.ndarray, nstep: int, frame_stack: int, before: int
) -> np.ndarray:
    """Whether a sample can start at each of a buffer's slots in order, if none was cleared.

    `before`: slots that precede these, from which a stack may take frames.
    """
    at, last = np.arange(len(ages)), _last_slots(ages)
    complete = (flags[last] & LAST > 0) | (last - at >= nstep)
    reach = np.minimum(ages, frame_stack - 1)
    return (flags & LAST == 0) & (at < last) & complete & (at + before >= reach)


def _end_cut_episodes(ages: np.ndarray, flags: np.ndarray) -> None:
    """Mark episodes that stop without an end as truncated there, in place."""
    cut = np.unique(_last_slots(ages))
    cut = cut[flags[cut] & LAST == 0]
    flags[cut] = LAST
    stepped = cut[(ages[cut] > 0) & (cut > 0)]
    flags[stepped - 1] |= ENDS


Draw = list[tuple[ReplayBuffer, np.ndarray]]
"""The transitions of a batch: buffers, each with the indices at which its transitions start."""


class VectorReplayBuffer:
    """The replay of several envs: one buffer each, sampled as if they were one.

    Every transition that is ready in any buffer is equally likely. With a single buffer the samples
    are that buffer's, draw for draw. The buffers share one generator.
    """

    def __init__(self, buffers: Sequence[ReplayBuffer], generator: np.random.Generator):
        self.buffers = list(buffers)
        self.generator = generator

    def __len__(self) -> int:
        """The number of transitions that can be sampled now."""
        return sum(map(len, self.buffers))

    def begin_episode(self, obs: Observation, *, env_index: int) -> None:
        self.buffers[env_index].begin_episode(obs)

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
        self.buffers[env_index].add(
            action, reward, next_obs, terminated=terminated, truncated=truncated
        )

    def skip(self, *, env_index: int) -> None:
        """Does nothing: a step that was not taken leaves no trace."""

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly with replacement, grouped by buffer.

        Raises:
            EmptyReplayBuffer: no transition is complete yet.
        """
        return gather(self.draw(batch_size))

    def draw(self, batch_size: int) -> Draw:
        """Choose the transitions of a batch, for `gather`; raises as `sample` does."""
        if len(self.buffers) == 1:
            return [(self.buffers[0], self.buffers[0].draw(batch_size))]
        ready = np.array([len(buffer) for buffer in self.buffers])
        if not ready.any():
            raise EmptyReplayBuffer("no transition is complete yet")
        counts = self.generator.multinomial(batch_size, ready / ready.sum())
        return [
            (buffer, buffer.draw(count))
            for buffer, count in zip(self.buffers, counts.tolist(), strict=True)
            if count
        ]

    def clear(self) -> None:
        """Never sample again the transitions that are ready now."""
        for buffer in self.buffers:
            buffer.clear()

    def metrics(self) -> Mapping[str, float]:
        """The current n and gamma, if they are annealed."""
        first = self.buffers[0]
        if first.annealing is None:
            return {}
        nstep, discount = first.annealing.at(first.agent_steps)
        return {"replay/nstep": nstep, "replay/discount": discount}

    def close(self) -> None:
        for buffer in self.buffers:
            buffer.frames.close()

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": [buffer.state_dict() for buffer in self.buffers]}

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        """As `Memory.take_over`."""
        there, here = len(state["buffers"]), len(self.buffers)
        if there != here:
            raise Misfit(f"the replay is of {there} envs there and of {here} here (num_envs)")
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.take_over(saved, nstep=nstep, frame_stack=frame_stack)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.load_state_dict(saved)


def gather(drawn: Draw) -> Batch:
    """The drawn transitions as one batch; the buffers must be alike."""
    first, layout = drawn[0][0], drawn[0][0].layout
    size, stack = sum(len(slots) for _, slots in drawn), layout.frame_stack
    obs, next_obs = first.empty_frames(size * stack), first.empty_frames(size * stack)
    columns: list[tuple[np.ndarray, ...]] = []
    vectors: list[tuple[np.ndarray, np.ndarray]] = []
    start = 0
    for buffer, slots in drawn:
        reward, discount, end = buffer.windows(slots)
        columns.append((buffer.actions.take(slots, axis=0), reward[:, None], discount[:, None]))
        stop = start + len(slots) * stack
        buffer.frames.gather(buffer.stacks(slots), obs[start:stop])
        buffer.frames.gather(buffer.stacks(end), next_obs[start:stop])
        if layout.vector:
            vectors.append((buffer.vectors.take(slots, axis=0), buffer.vectors.take(end, axis=0)))
        start = stop
    action, reward, discount = (
        columns[0] if len(columns) == 1 else map(np.concatenate, zip(*columns, strict=True))
    )
    shape = (size, stack * layout.frame_shape[0], *layout.frame_shape[1:])
    observed: list[Any] = [first.to_device(frames.view(shape)) for frames in (obs, next_obs)]
    if layout.vector:
        both = map(np.concatenate, zip(*vectors, strict=True))
        observed = [
            {PIXELS: frames, VECTOR: first.to_device(torch.from_numpy(vector))}
            for frames, vector in zip(observed, both, strict=True)
        ]
    return Batch(
        obs=observed[0],
        action=first.to_device(torch.from_numpy(action)),
        reward=first.to_device(torch.from_numpy(reward)),
        discount=first.to_device(torch.from_numpy(discount)),
        next_obs=observed[1],
    )
