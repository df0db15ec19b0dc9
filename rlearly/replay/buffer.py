"""Off-policy memory: a ring of single frames, from which stacks and n-step sums are gathered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlearly.core.append_log import AppendLog, LogChunk
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


@dataclass(frozen=True)
class TransitionLayout:
    """What one transition looks like: a stack of `frame_stack` frames, and an action.

    `frame_shape` is one frame of the observation: [C, H, W] with the stack on C, or [D]. `vector`:
    numbers that are observed beside an image, of the newest frame alone; 0: none, and observations
    are no dicts.
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
        """Bytes that one more transition costs: a frame, an action, and 10 of bookkeeping."""
        return self.frame_bytes + 4 * (self.actions + self.vector) + 4 + 4 + 1 + 1

    def newest(self, obs: Observation) -> np.ndarray:
        """The last frame of a stacked observation."""
        pixels = obs[PIXELS] if self.vector else obs
        return pixels[-self.frame_shape[0] :]

    @property
    def rows(self) -> tuple[str, ...]:
        """What a slot holds that never changes once the next slot is begun."""
        return (*ROWS, "vectors") if self.vector else ROWS


Draw = list[tuple["ReplayBuffer", np.ndarray]]
"""Whose transitions, and at which places of that ring they start."""

ENDS, TERMINATES, LAST = 1, 2, 4
"""Flags of a slot: its transition ends the episode, by termination; it is a final observation."""


class EmptyReplayBuffer(Exception):
    """Nothing can be sampled yet."""


class ReplayBuffer:
    """The last `capacity` slots of one env's experience, sampled uniformly.

    A slot holds one frame, and the action, reward and ending that followed it. An episode of T
    transitions takes T + 1 slots: the last one holds only the final frame. Slot t's observation is
    the frames max(first, t - stack + 1) .. t, the first frame repeated at an episode's start.

    A sample starts at slot t and takes k = min(n, steps to the episode's end) steps:
    reward = sum over i < k of gamma^i r[t + i]; discount = gamma^k, 0 if the last of them
    terminated; next_obs is slot t + k's. Windows of a running episode are sampled once all n steps
    are there. Deviation: the official loader never starts a window in the last n - 1 steps of an
    episode, and so loses every episode shorter than n; here those windows are shorter.

    Where n and gamma are annealed, a window has those of the time at which it is sampled: whatever
    was stored before is seen with them, too.

    Memory is reserved at once but taken by the system only as it fills. A batch is the caller's for
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
        """`device`: the learner's; `frames`: where they are kept, in memory as they are if None.

        `annealing`: gives n and gamma in the place of `nstep`, which is the most that n can be, and
        `discount`; `copies`: of the env, each of which has such a ring and as many steps.
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
        self.actions = reserve((capacity, layout.actions), "float32")
        if layout.vector:
            self.vectors = reserve((capacity, layout.vector), "float32")
        self.rewards = reserve((capacity,), "float32")
        self.ages = reserve((capacity,), "int32")
        self.flags = reserve((capacity,), "uint8")
        self.ready = np.zeros(capacity, dtype=bool)
        self.ready_count = 0
        self.added = 0  # slots ever written; slot i of them lies at i % capacity
        self.steps = 0  # ever added
        self._age = 0  # steps since the running episode's first slot
        self._discount = discount  # that `_powers` are of
        self._powers = self._powers_of(discount)
        self._buffers = BatchMemory()

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
        return self.ready_count

    def begin_episode(self, obs: Observation) -> None:
        """Start an episode at its first observation (a stack; its newest frame is stored)."""
        self._age = 0
        self._write_frame(obs)

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: Observation,
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
        self.steps += 1
        self._age += 1
        self._write_frame(next_obs)
        newest = self.added - 1
        if ends:
            self.flags[newest % self.capacity] = LAST
        behind = range(min(self.nstep, self._age), 0, -1) if ends else (self.nstep,)
        for distance in behind:
            if self._age >= distance:
                self._make_ready(newest - distance)

    def _write_frame(self, obs: Observation) -> None:
        at = self.added % self.capacity
        # The slots whose stacks reach back to the overwritten frame can no longer be sampled.
        for after in range(self.layout.frame_stack):
            i = (at + after) % self.capacity
            if self.ready[i] and (after == 0 or self.ages[i] >= after):
                self.ready[i] = False
                self.ready_count -= 1
        self.frames.write(at, self.layout.newest(obs)[None])
        if self.layout.vector:
            self.vectors[at] = obs[VECTOR]
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
            EmptyReplayBuffer: no transition is complete yet.
        """
        if not self.ready_count:
            raise EmptyReplayBuffer("no transition is complete yet")
        return self.gather(self.draw(batch_size))

    def clear(self) -> None:
        """No transition that is ready now is sampled again."""
        self.ready[:] = False
        self.ready_count = 0

    def draw(self, batch_size: int) -> np.ndarray:
        """Ring positions [B] at which the transitions of a batch start; some must be ready."""
        stored = min(self.added, self.capacity)
        if self.ready_count * 8 < stored:  # sparse: list the ready slots rather than reject
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
        """The transitions that start at ring positions `slots` [B]."""
        return gather([(self, slots)])

    def _windows(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The discounted sums [B], discounts [B] and ends (places of `next_obs`) [B] of windows."""
        place, length = slots, 1
        nstep, powers = self._horizon()
        flags = self.flags.take(slots)
        reward = self.rewards.take(slots)
        for step in range(1, nstep):
            goes_on = flags & ENDS == 0
            place = place + goes_on  # stays at an episode's last step
            place[place == self.capacity] = 0
            flags = self.flags.take(place)
            reward += self.rewards.take(place) * powers[step] * goes_on
            length = length + goes_on
        end = place + 1
        end[end == self.capacity] = 0
        terminated = flags & TERMINATES > 0
        discount = np.where(terminated, np.float32(0.0), powers[length])
        return reward, discount, end

    def _horizon(self) -> tuple[int, np.ndarray]:
        """n now, and gamma^0 .. gamma^n."""
        if self.annealing is None:
            return self.nstep, self._powers
        nstep, discount = self.annealing.at(self.agent_steps)
        if discount != self._discount:
            self._discount, self._powers = discount, self._powers_of(discount)
        return min(nstep, self.nstep), self._powers

    @property
    def agent_steps(self) -> int:
        """Taken so far, by all copies."""
        return self.steps * self.num_envs

    def _powers_of(self, discount: float) -> np.ndarray:
        return np.float32(discount) ** np.arange(self.nstep + 1, dtype=np.float32)

    def _stacks(self, slots: np.ndarray) -> np.ndarray:
        """Places [B * stack] of the frames of observations whose newest ones are at `slots`."""
        stack = self.layout.frame_stack
        if stack == 1:
            return slots
        ages = self.ages.take(slots)
        places = np.empty((len(slots), stack), np.int64)
        for back in range(stack):
            np.subtract(slots, np.minimum(ages, back), out=places[:, stack - 1 - back])
        places[places < 0] += self.capacity
        return places.ravel()

    def _empty(self, rows: int) -> torch.Tensor:
        """Memory for frames [rows, *F], where they are gathered."""
        shape, dtype = (rows, *self.layout.frame_shape), self.layout.frame_dtype
        if isinstance(self.frames, DeviceFrameStore):
            return self.frames.empty(rows)
        if self.device.type == "cuda":  # from where the GPU fetches it while we go on
            return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)
        return self._buffers.take(shape, dtype)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
            return tensor.to(self.device, non_blocking=True)
        return tensor

    def state_dict(self) -> dict[str, Any]:
        """Everything. The slots are a tape, but for the newest one: the next step completes it."""
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

    def _rows(self, first: int, end: int) -> Iterator[LogChunk]:
        """Slots by their numbers since the beginning, as views of the ring where it has such."""
        for at, start, stop in self._places(first, end):
            rows = {"frames": self.frames.read(start, stop)}
            others = self.layout.rows[1:]
            yield at, rows | {name: getattr(self, name)[start:stop] for name in others}

    def _kind(self) -> list[Any]:
        """What slots of another replay must be like to be loaded here."""
        return [list(self.layout.frame_shape), self.layout.frame_dtype, self.layout.vector]

    def _places(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Slots by their numbers: (the first of them, its place, the end of their places)."""
        at = max(first, 0)
        while at < end:
            start = at % self.capacity
            stop = min(start + min(end - at, self.frames.chunk_rows), self.capacity)
            yield at, start, stop
            at += stop - start

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mine = (self.capacity, self._kind())
        theirs = (state["capacity"], state["layout"])
        if mine != theirs:
            raise ValueError(f"expected a replay of {mine}, received one of {theirs}")
        for first, rows in state["slots"].chunks():
            self._put(first, rows)
        for rows in state["newest"]:
            self._put(state["added"] - 1, rows)
        self.ready[:] = np.unpackbits(state["ready"], count=self.capacity)
        self.ready_count = int(self.ready.sum())
        self.added = state["added"]
        self._age = state["age"]
        self.steps = state["steps"]
        self.generator.bit_generator.state = state["generator"]

    def _put(self, first: int, rows: Mapping[str, np.ndarray]) -> None:
        for at, start, stop in self._places(first, first + len(rows["frames"])):
            part = slice(at - first, at - first + stop - start)
            self.frames.write(start, rows["frames"][part])
            for name in self.layout.rows[1:]:
                getattr(self, name)[start:stop] = rows[name][part]


class VectorReplayBuffer:
    """One memory of several copies of an env: a ring each, sampled as if they were one.

    Every transition that is ready in any ring is equally likely. With a single ring this is that
    ring, draw for draw. The rings share one generator.
    """

    def __init__(self, buffers: Sequence[ReplayBuffer], generator: np.random.Generator):
        self.buffers = list(buffers)
        self.generator = generator

    def __len__(self) -> int:
        """Transitions that can be sampled now."""
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

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly with replacement, those of one ring beside each other.

        Raises:
            EmptyReplayBuffer: no transition is complete yet.
        """
        return gather(self.draw(batch_size))

    def draw(self, batch_size: int) -> Draw:
        """Which transitions a batch is to have; `gather` gives them. Raises as `sample` does."""
        ready = np.array([len(ring) for ring in self.buffers])
        if not ready.sum():
            raise EmptyReplayBuffer("no transition is complete yet")
        if len(self.buffers) == 1:
            return [(self.buffers[0], self.buffers[0].draw(batch_size))]
        counts = self.generator.multinomial(batch_size, ready / ready.sum())
        return [
            (ring, ring.draw(count))
            for ring, count in zip(self.buffers, counts.tolist(), strict=True)
            if count
        ]

    def clear(self) -> None:
        """No transition that is ready now is sampled again."""
        for ring in self.buffers:
            ring.clear()

    def metrics(self) -> Mapping[str, float]:
        """n and gamma as they are now, if they are annealed."""
        first = self.buffers[0]
        if first.annealing is None:
            return {}
        nstep, discount = first.annealing.at(first.agent_steps)
        return {"replay/nstep": nstep, "replay/discount": discount}

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": [ring.state_dict() for ring in self.buffers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for ring, saved in zip(self.buffers, state["buffers"], strict=True):
            ring.load_state_dict(saved)


def gather(drawn: Draw) -> Batch:
    """The transitions that were drawn, of rings that are alike, on their device."""
    first, layout = drawn[0][0], drawn[0][0].layout
    size = sum(len(slots) for _, slots in drawn)
    obs, next_obs = first._empty(size * layout.frame_stack), first._empty(size * layout.frame_stack)
    found: list[tuple[np.ndarray, ...]] = []
    vectors: list[tuple[np.ndarray, np.ndarray]] = []
    at = 0
    for ring, slots in drawn:
        reward, discount, end = ring._windows(slots)
        found.append((ring.actions.take(slots, axis=0), reward[:, None], discount[:, None]))
        stop = at + len(slots) * layout.frame_stack
        ring.frames.gather(ring._stacks(slots), obs[at:stop])
        ring.frames.gather(ring._stacks(end), next_obs[at:stop])
        if layout.vector:
            vectors.append((ring.vectors.take(slots, axis=0), ring.vectors.take(end, axis=0)))
        at = stop
    action, reward, discount = (
        found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    )
    shape = (size, layout.frame_stack * layout.frame_shape[0], *layout.frame_shape[1:])
    observed = [first._to_device(frames.view(shape)) for frames in (obs, next_obs)]
    if layout.vector:
        both = map(np.concatenate, zip(*vectors, strict=True))
        observed = [
            {PIXELS: frames, VECTOR: first._to_device(torch.from_numpy(vector))}
            for frames, vector in zip(observed, both, strict=True)
        ]
    return Batch(
        obs=observed[0],
        action=first._to_device(torch.from_numpy(action)),
        reward=first._to_device(torch.from_numpy(reward)),
        discount=first._to_device(torch.from_numpy(discount)),
        next_obs=observed[1],
    )


ROWS = ("frames", "actions", "rewards", "ages", "flags")
"""What a slot holds of every layout."""
