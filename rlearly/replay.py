"""Off-policy memory: a ring of single frames, from which stacks and n-step sums are gathered."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from rlearly.tape import Piece, Tape
from rlearly.types import Batch


@dataclass(frozen=True)
class Layout:
    """What one transition looks like: a stack of `frame_stack` frames, and an action.

    `frame_shape` is one frame of the observation: [C, H, W] with the stack on C, or [D].
    """

    frame_shape: tuple[int, ...]
    frame_dtype: str
    frame_stack: int
    actions: int

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.frame_shape)) * np.dtype(self.frame_dtype).itemsize

    @property
    def transition_bytes(self) -> int:
        """Bytes that one more transition costs: a frame, an action, and 10 of bookkeeping."""
        return self.frame_bytes + 4 * self.actions + 4 + 4 + 1 + 1

    def newest(self, obs: np.ndarray) -> np.ndarray:
        """The last frame of a stacked observation."""
        return obs[-self.frame_shape[0] :]


ENDS, TERMINATES, LAST = 1, 2, 4
"""Flags of a slot: its transition ends the episode, by termination; it is a final observation."""


NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""mmap's MAP_NORESERVE, which Python 3.11 does not name."""


class EmptyReplay(Exception):
    """Nothing can be sampled yet."""


class Replay:
    """The last `capacity` slots of one env's experience, sampled uniformly.

    A slot holds one frame, and the action, reward and ending that followed it. An episode of T
    transitions takes T + 1 slots: the last one holds only the final frame. Slot t's observation is
    the frames max(first, t - stack + 1) .. t, the first frame repeated at an episode's start.

    A sample starts at slot t and takes k = min(n, steps to the episode's end) steps:
    reward = sum over i < k of gamma^i r[t + i]; discount = gamma^k, 0 if the last of them
    terminated; next_obs is slot t + k's. Windows of a running episode are sampled once all n steps
    are there. Deviation: the official loader never starts a window in the last n - 1 steps of an
    episode, and so loses every episode shorter than n; here those windows are shorter.

    Memory is reserved at once but taken by the system only as it fills.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        capacity: int,
        nstep: int,
        discount: float,
        generator: np.random.Generator,
        device: torch.device | None = None,
    ):
        if capacity < nstep + layout.frame_stack + 1:
            raise ValueError(
                f"capacity: expected more than nstep + frame_stack = "
                f"{nstep + layout.frame_stack}, received {capacity}"
            )
        self.layout = layout
        self.capacity = capacity
        self.nstep = nstep
        self.discount = discount
        self.generator = generator
        self.device = device or torch.device("cpu")
        self.frames = _reserve((capacity, *layout.frame_shape), layout.frame_dtype)
        self.actions = _reserve((capacity, layout.actions), "float32")
        self.rewards = _reserve((capacity,), "float32")
        self.ages = _reserve((capacity,), "int32")
        self.flags = _reserve((capacity,), "uint8")
        self.ready = np.zeros(capacity, dtype=bool)
        self.ready_count = 0
        self.added = 0  # slots ever written; slot i of them lies at i % capacity
        self._age = 0  # steps since the running episode's first slot

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return self.ready_count

    def begin(self, obs: np.ndarray) -> None:
        """Start an episode at its first observation (a stack; its newest frame is stored)."""
        self._age = 0
        self._write_frame(obs)

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: np.ndarray,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Append the step taken from the newest observation. action [A]."""
        at = (self.added - 1) % self.capacity
        ends = terminated or truncated
        self.actions[at] = action
        self.rewards[at] = reward
        self.flags[at] = ENDS * ends | TERMINATES * terminated
        self._age += 1
        self._write_frame(next_obs)
        newest = self.added - 1
        if ends:
            self.flags[newest % self.capacity] = LAST
        behind = range(min(self.nstep, self._age), 0, -1) if ends else (self.nstep,)
        for distance in behind:
            if self._age >= distance:
                self._make_ready(newest - distance)

    def _write_frame(self, obs: np.ndarray) -> None:
        at = self.added % self.capacity
        # The slots whose stacks reach back to the overwritten frame can no longer be sampled.
        for after in range(self.layout.frame_stack):
            i = (at + after) % self.capacity
            if self.ready[i] and (after == 0 or self.ages[i] >= after):
                self.ready[i] = False
                self.ready_count -= 1
        self.frames[at] = self.layout.newest(obs)
        self.actions[at] = 0.0
        self.rewards[at] = 0.0
        self.ages[at] = self._age
        self.flags[at] = 0
        self.added += 1

    def _make_ready(self, slot: int) -> None:
        at = slot % self.capacity
        reach = min(int(self.ages[at]), self.layout.frame_stack - 1)
        if slot - reach > self.added - 1 - self.capacity and not self.ready[at]:
            self.ready[at] = True
            self.ready_count += 1

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly with replacement, on the replay's device.

        Raises:
            EmptyReplay: no transition is complete yet.
        """
        if not self.ready_count:
            raise EmptyReplay("no transition is complete yet")
        return self.gather(self._draw(batch_size))

    def forget(self) -> None:
        """No transition that is ready now is sampled again."""
        self.ready[:] = False
        self.ready_count = 0

    def _draw(self, batch_size: int) -> np.ndarray:
        stored = min(self.added, self.capacity)
        if self.ready_count * 8 < stored:  # sparse: list the ready slots rather than reject
            ready = np.flatnonzero(self.ready)
            return ready[self.generator.integers(len(ready), size=batch_size)]
        slots = self.generator.integers(stored, size=batch_size)
        while True:
            rejected = np.flatnonzero(~self.ready[slots])
            if not len(rejected):
                return slots
            slots[rejected] = self.generator.integers(stored, size=len(rejected))

    def gather(self, slots: np.ndarray) -> Batch:
        """The transitions that start at ring positions `slots` [B]."""
        steps = np.arange(self.nstep)
        window = (slots[:, None] + steps) % self.capacity  # [B, n]
        flags = self.flags[window]
        ended_before = np.zeros(window.shape, dtype=bool)
        ended_before[:, 1:] = np.logical_or.accumulate(flags[:, :-1] & ENDS > 0, axis=1)
        taken = ~ended_before
        length = taken.sum(1)
        powers = np.float32(self.discount) ** np.arange(self.nstep + 1, dtype=np.float32)
        reward = (self.rewards[window] * powers[:-1] * taken).sum(1)
        terminated = ((flags & TERMINATES > 0) & taken).any(1)
        discount = np.where(terminated, np.float32(0.0), powers[length])
        return Batch(
            obs=self._stacks(slots),
            action=self._tensor(self.actions[slots]),
            reward=self._tensor(reward[:, None].astype(np.float32)),
            discount=self._tensor(discount[:, None].astype(np.float32)),
            next_obs=self._stacks((slots + length) % self.capacity),
        )

    def _stacks(self, slots: np.ndarray) -> torch.Tensor:
        """Observations [B, stack * C, H, W] (or [B, D]) whose newest frames are at `slots`."""
        stack = self.layout.frame_stack
        back = np.arange(stack - 1, -1, -1)
        back = np.minimum(back[None], self.ages[slots][:, None])
        index = torch.from_numpy(((slots[:, None] - back) % self.capacity).ravel())
        frames = torch.from_numpy(self.frames).index_select(0, index)
        shape = self.layout.frame_shape
        return self._to_device(frames.view(len(slots), stack * shape[0], *shape[1:]))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return self._to_device(torch.from_numpy(array))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def state_dict(self) -> dict[str, Any]:
        """Everything. The slots are a tape, but for the newest one: the next step completes it."""
        newest = self._rows(self.added - 1, self.added)
        return {
            "layout": [list(self.layout.frame_shape), self.layout.frame_dtype],
            "capacity": self.capacity,
            "added": self.added,
            "age": self._age,
            "generator": self.generator.bit_generator.state,
            "slots": Tape(max(0, self.added - self.capacity), max(0, self.added - 1), self._rows),
            "newest": [{name: array.copy() for name, array in rows.items()} for _, rows in newest],
            "ready": np.packbits(self.ready),
        }

    def _rows(self, first: int, end: int) -> Iterator[Piece]:
        """Slots by their numbers since the beginning, as views of the ring."""
        at = max(first, 0)
        while at < end:
            start = at % self.capacity
            stop = min(start + end - at, self.capacity)
            yield at, {name: getattr(self, name)[start:stop] for name in ROWS}
            at += stop - start

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mine = (self.capacity, [list(self.layout.frame_shape), self.layout.frame_dtype])
        theirs = (state["capacity"], state["layout"])
        if mine != theirs:
            raise ValueError(f"expected a replay of {mine}, received one of {theirs}")
        for first, rows in state["slots"].pieces():
            self._put(first, rows)
        for rows in state["newest"]:
            self._put(state["added"] - 1, rows)
        self.ready[:] = np.unpackbits(state["ready"], count=self.capacity)
        self.ready_count = int(self.ready.sum())
        self.added = state["added"]
        self._age = state["age"]
        self.generator.bit_generator.state = state["generator"]

    def _put(self, first: int, rows: Mapping[str, np.ndarray]) -> None:
        count = len(rows[ROWS[0]])
        for at, places in self._rows(first, first + count):
            for name, place in places.items():
                place[:] = rows[name][at - first : at - first + len(place)]


class Replays:
    """One memory of several copies of an env: a ring each, sampled as if they were one.

    Every transition that is ready in any ring is equally likely. With a single ring this is that
    ring, draw for draw. The rings share one generator.
    """

    def __init__(self, rings: Sequence[Replay], generator: np.random.Generator):
        self.rings = list(rings)
        self.generator = generator

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return sum(map(len, self.rings))

    def begin(self, obs: np.ndarray, *, copy: int) -> None:
        self.rings[copy].begin(obs)

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: np.ndarray,
        *,
        terminated: bool,
        truncated: bool,
        copy: int,
    ) -> None:
        self.rings[copy].add(action, reward, next_obs, terminated=terminated, truncated=truncated)

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly with replacement, those of one ring beside each other.

        Raises:
            EmptyReplay: no transition is complete yet.
        """
        if len(self.rings) == 1:
            return self.rings[0].sample(batch_size)
        ready = np.array([len(ring) for ring in self.rings])
        if not ready.sum():
            raise EmptyReplay("no transition is complete yet")
        counts = self.generator.multinomial(batch_size, ready / ready.sum())
        parts = [
            ring.sample(count)
            for ring, count in zip(self.rings, counts.tolist(), strict=True)
            if count
        ]
        return Batch(
            *(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(Batch))
        )

    def forget(self) -> None:
        """No transition that is ready now is sampled again."""
        for ring in self.rings:
            ring.forget()

    def state_dict(self) -> dict[str, Any]:
        return {"rings": [ring.state_dict() for ring in self.rings]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for ring, saved in zip(self.rings, state["rings"], strict=True):
            ring.load_state_dict(saved)


ROWS = ("frames", "actions", "rewards", "ages", "flags")
"""What a slot holds that never changes once the next slot is begun."""


def _reserve(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros that take memory only when written, and give it back when freed."""
    count = int(np.prod(shape))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=flags)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
