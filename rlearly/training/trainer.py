"""The training loop: steps become transitions, transitions become updates. Knows Protocols only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.spaces import Observation, clip_actions, stack_observations
from rlearly.core.types import Agent, Memory, Metrics, Progress, UpdateSchedule
from rlearly.system.seeding import Seeds
from rlearly.training.checkpoint import Checkpoints, found
from rlearly.training.evaluation import (
    Evaluation,
    checked_reset,
    checked_step,
    episode_success,
    evaluate,
)
from rlearly.training.executors import EnvExecutor, InlineExecutor, ThreadExecutor
from rlearly.training.failure import not_finite
from rlearly.training.metrics import MetricMeans
from rlearly.training.sinks import Sinks
from rlearly.training.video import Video


@dataclass(frozen=True)
class TrainerConfig:
    """How long, and how often what. 0 means never."""

    frames_per_step: int
    train_frames: int
    seed_frames: int
    batch_size: int
    update_last: bool
    """On-policy agents learn as soon as a rollout is full, and take the next step by the result."""

    log_every_frames: int
    eval_every_frames: int
    eval_episodes: int
    video_size: int
    checkpoint_every_frames: int
    keep_checkpoints: int
    clear_replay_at_steps: int | None = None
    """When all that was stored before is to be forgotten."""

    eval_workers: int = 1
    """Episodes of an evaluation played side by side, each in an env and a thread of its own."""


class Callback(Protocol):
    """Somebody who looks on. Nothing it does reaches training."""

    def on_progress(self, at: Progress, updates: int, latest: Mapping[str, Any]) -> None:
        """Called at every step and as evaluations advance."""
        ...

    def message(self, text: str) -> None:
        """A line worth reading."""
        ...


class Interrupted(Exception):
    """The run was asked to stop."""


class Trainer:
    """One run. `run()` trains to the end, or until asked to stop, and is resumable either way.

    The order of a step is DrQ-v2's: act; update with what is in memory; step the env; store (or,
    with `update_last`, update last). All envs step together; `steps` counts the steps of all of
    them, and the last round may overshoot the end by fewer steps than there are envs. An env whose
    episode has ended begins another at its next step.

    A copy in a place of its own steps there while the update goes on here: neither needs the
    other, and its step is stored after the update and in the order of the copies all the same, so
    that nothing depends on who is faster. Between two steps no place does anything.

    Evaluation happens in an env of its own, on seeds of its own, with no noise: switching it, or
    any logging, on or off changes nothing in training.
    """

    def __init__(
        self,
        config: TrainerConfig,
        *,
        agent: Agent,
        envs: Sequence[gymnasium.Env],
        make_eval_env: Callable[[], gymnasium.Env],
        frame_renderer: Callable[[gymnasium.Env], Callable[[int], np.ndarray]],
        memory: Memory,
        update_schedule: UpdateSchedule,
        sinks: Sinks,
        callback: Callback,
        seeds: Seeds,
        folder: Path,
        stop_requested: Callable[[], bool],
        settings: Mapping[str, Any] | None = None,
        executors: Sequence[EnvExecutor] = (),
    ):
        """`settings`: what may not change when the run is resumed, as plain values.

        `places`: where each copy of the env lives; default: here.
        """
        self.config = config
        self.agent = agent
        self.envs = list(envs)
        self.executors = list(executors) or [InlineExecutor() for _ in envs]
        self.make_eval_env = make_eval_env
        self.frame_renderer = frame_renderer
        self.memory = memory
        self.update_schedule = update_schedule
        self.sinks = sinks
        self.callback = callback
        self.seeds = seeds
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        self.stop_requested = stop_requested
        self.settings = dict(settings or {})

        self.steps = 0
        self.updates = 0
        self.episodes = 0
        self.episode_returns = [0.0] * len(self.envs)  # of each copy's running episode
        self.episode_steps = [0] * len(self.envs)
        self.elapsed_seconds = 0.0
        self.marks = {"log": 0, "eval": 0, "checkpoint": 0}  # frames at the last of each
        self.at_last_row = {"steps": 0, "updates": 0}  # at the last row
        self.means = MetricMeans()
        self.latest: dict[str, Any] = {}
        self.obs: list[Observation | None] = [None] * len(self.envs)  # None: between episodes
        self._eval_envs: list[gymnasium.Env] = []
        self._eval_executors: list[EnvExecutor] = []
        self._clock = time.monotonic()
        self._row_start = (self._clock, 0, 0)
        self._saving_seconds = 0.0  # since the last row

    @property
    def at(self) -> Progress:
        return Progress(frames=self.steps * self.config.frames_per_step, steps=self.steps)

    def try_evaluation(self) -> None:
        """Make the evaluation env and take a picture of it, so that it cannot fail hours later."""
        if not self.config.eval_every_frames:
            return
        self._make_eval_envs()
        env, executor = self._eval_envs[0], self._eval_executors[0]
        if self.config.video_size:
            executor.run(checked_reset, env, "its first reset", seed=0)
            executor.run(self.frame_renderer(env), self.config.video_size)

    def _make_eval_envs(self) -> None:
        count = min(self.config.eval_workers, self.config.eval_episodes)
        self._eval_executors = [
            ThreadExecutor() if count > 1 else InlineExecutor() for _ in range(count)
        ]
        for executor in self._eval_executors:
            self._eval_envs.append(executor.run(self.make_eval_env))

    # --- running ---

    def run(self) -> bool:
        """Train; True if the end was reached, False if stopped. The state is saved either way.

        Raises:
            RunFailed: the env or learning failed; the last checkpoint is of a time before it.
        """
        self._clock = time.monotonic()
        self._row_start = (self._clock, self.steps, self.updates)
        try:
            while True:
                self._do_what_is_due()
                if self.steps * self.config.frames_per_step >= self.config.train_frames:
                    break
                if self.stop_requested():
                    raise Interrupted
                self._step()
        except Interrupted:
            self.save()
            return False
        if self.means.counts:  # updates since the last row: a short run has them all here
            self._write_row()
        self.save()
        return True

    def close(self) -> None:
        """Free the envs and flush the sinks."""
        for env, executor in zip(
            [*self.envs, *self._eval_envs], [*self.executors, *self._eval_executors], strict=False
        ):
            executor.run(env.close)
            executor.close()
        self.sinks.close()

    def _step(self) -> None:
        """One agent step of every copy."""
        seen = [self._observed(env_index) for env_index in range(len(self.envs))]
        actions = self.agent.act(stack_observations(seen), step=self.steps, explore=True)
        steps = [
            executor.submit(checked_step, env, action, "a training step")
            for executor, env, action in zip(
                self.executors, self.envs, clip_actions(actions), strict=True
            )
        ]
        if not self.config.update_last:
            self._update(self.steps)
        before = self.steps
        for env_index, answer in enumerate(steps):
            self._store(env_index, actions[env_index], answer())
        forget_at = self.config.clear_replay_at_steps
        if forget_at is not None and before < forget_at <= self.steps:
            self.memory.clear()
        if self.config.update_last:
            self._update(self.steps - len(self.envs))
        self.callback.on_progress(self.at, self.updates, self.latest)

    def _observed(self, env_index: int) -> Observation:
        """What a copy's agent sees now: its episode's newest observation, or a new one's first."""
        obs = self.obs[env_index]
        if obs is None:
            obs = self.executors[env_index].run(checked_reset, self.envs[env_index], "a reset")
            self.memory.begin_episode(obs, env_index=env_index)
        return obs

    def _store(self, env_index: int, action: np.ndarray, step: tuple[Any, ...]) -> None:
        """Take note of what a copy's step with `action` led to."""
        obs, reward, terminated, truncated, info = step
        self.memory.add(
            action,
            float(reward),
            obs,
            terminated=terminated,
            truncated=truncated,
            env_index=env_index,
        )
        self.obs[env_index] = obs
        self.episode_returns[env_index] += float(reward)
        self.episode_steps[env_index] += 1
        self.steps += 1
        if terminated or truncated:
            self._end_episode(env_index, info)

    def _update(self, first_step: int) -> None:
        """The updates that this round's steps pay for; each copy's step is asked about once."""
        for step in range(first_step, first_step + len(self.envs)):
            if step * self.config.frames_per_step < self.config.seed_frames:
                continue
            due = self.update_schedule.updates_due(step)
            for _ in range(due if len(self.memory) else 0):
                batch = self.memory.sample(self.config.batch_size)
                metrics: Metrics = self.agent.update(batch, step=step)
                self.update_schedule.observe(metrics)
                self._note(metrics)
                self.updates += 1
            events = self.update_schedule.events()
            if events:
                self._note(events)

    def _note(self, metrics: Metrics) -> None:
        """Keep metrics for the next row; events, and what is told of now, have a row at once."""
        at_once = {k: float(v) for k, v in metrics.items() if k.startswith(("event/", "now/"))}
        rest = {k: v for k, v in metrics.items() if k not in at_once}
        self.means.add(rest)
        self.latest.update(rest)
        if at_once:
            row = {name.removeprefix("now/"): value for name, value in at_once.items()}
            if not all(map(math.isfinite, row.values())):
                self._refuse_not_finite(self.agent.state_dict())
                row = {name: value for name, value in row.items() if math.isfinite(value)}
            self.latest.update(row)
            self.sinks.write(self.at, row)
            self._say_what_happened(row)

    def _say_what_happened(self, row: Mapping[str, float]) -> None:
        """A line for what a person watching would want to know; ReDo would say it all the time."""
        said = [
            f"{name.removeprefix('event/').replace('_', ' ')} {value:.4g}"
            for name, value in row.items()
            if name.startswith("event/") and name != "event/recycled_units"
        ]
        if said:
            self.callback.message(f"at {self.at.frames} frames: {', '.join(said)}")

    def _end_episode(self, env_index: int, info: Mapping[str, Any]) -> None:
        """Write a copy's episode down; one that began at a snapshot under names of its own."""
        self.episodes += 1
        self.update_schedule.end_episode()
        self._note(self.update_schedule.events())
        kind = "snapshot_episode" if "snapshot" in info else "episode"
        row = {
            f"train/{kind}_return": self.episode_returns[env_index],
            f"train/{kind}_length_steps": self.episode_steps[env_index],
            "train/episodes": self.episodes,
        }
        success = episode_success(info)
        if success is not None:
            row[f"train/{kind}_success"] = float(success)
        self.latest["train/episode_return"] = self.episode_returns[env_index]
        self.sinks.write(self.at, row)
        self._forget_episode(env_index)

    def _forget_episode(self, env_index: int) -> None:
        self.obs[env_index], self.episode_returns[env_index], self.episode_steps[env_index] = (
            None,
            0.0,
            0,
        )

    # --- what happens every so many frames ---

    def _do_what_is_due(self) -> None:
        frames = self.steps * self.config.frames_per_step
        if self._is_due("log", self.config.log_every_frames, frames):
            self._write_row()
            self.marks["log"] = frames
        if self._is_due("eval", self.config.eval_every_frames, frames):
            self._evaluate()
            self.marks["eval"] = frames
        if self._is_due("checkpoint", self.config.checkpoint_every_frames, frames):
            self.marks["checkpoint"] = frames
            try:
                self.save()
            except OSError as error:
                self.callback.message(f"no checkpoint could be written ({error}); training goes on")

    def _is_due(self, what: str, every_frames: int, frames: int) -> bool:
        """Whether a multiple of `every_frames` lies between the last time and `frames`, now."""
        return every_frames > 0 and frames // every_frames > self.marks[what] // every_frames

    def _write_row(self) -> None:
        now = time.monotonic()
        since, steps, updates = self._row_start
        seconds = max(now - since, 1e-9)
        self._tick(now)
        row = self.means.take()
        bad = sorted(name for name, value in row.items() if not math.isfinite(value))
        if bad:
            names = ", ".join(f"{name} {row[name]}" for name in bad)
            raise RunFailed(f"learning diverged: {names}", diverged=True, means=row)
        row["train/updates"] = self.updates
        row["replay/transitions"] = len(self.memory)
        row |= self.memory.metrics()
        frames = (self.steps - steps) * self.config.frames_per_step
        if not self.config.update_last and self.steps > self.at_last_row["steps"]:
            new = {name: getattr(self, name) - done for name, done in self.at_last_row.items()}
            row["train/replay_ratio"] = new["updates"] / new["steps"]
        self.at_last_row = {"steps": self.steps, "updates": self.updates}
        row["speed/frames_per_second"] = frames / seconds
        row["speed/updates_per_second"] = (self.updates - updates) / seconds
        row["speed/elapsed_seconds"] = self.elapsed_seconds
        if self._saving_seconds:
            row["speed/checkpoint_seconds"] = self._saving_seconds
            self._saving_seconds = 0.0
        self.sinks.write(self.at, row)
        self._row_start = (now, self.steps, self.updates)

    def _tick(self, now: float) -> None:
        self.elapsed_seconds += now - self._clock
        self._clock = now

    def _evaluate(self) -> None:
        if not self._eval_envs:
            self._make_eval_envs()
        began = time.monotonic()
        result = self._film_and_evaluate()
        mean = float(np.mean(result.returns))
        row = {
            "eval/episode_return": mean,
            "eval/episode_return_std": float(np.std(result.returns)),
            "eval/episode_length_steps": float(np.mean(result.lengths_steps)),
            "eval/episodes": len(result.returns),
            "eval/seconds": time.monotonic() - began,
        }
        rate, said = result.success_rate, ""
        if rate is not None:
            row["eval/success_rate"] = self.latest["eval/success_rate"] = rate
            said = f", success in {rate:.0%}"
        self.latest["eval/episode_return"] = mean
        self.sinks.write(self.at, row)
        returns = ", ".join(f"{r:.1f}" for r in result.returns)
        self.callback.message(
            f"evaluation at {self.at.frames} frames: mean {mean:.1f} ({returns}){said}"
        )
        self.callback.on_progress(self.at, self.updates, self.latest)
        paused = time.monotonic() - began  # the next row's speeds are of training alone
        since, steps, updates = self._row_start
        self._row_start = (since + paused, steps, updates)

    def _film_and_evaluate(self) -> Evaluation:
        def on_step(episode: int, length: int) -> None:
            if self.stop_requested():
                raise Interrupted
            note = {"evaluating": f"{episode + 1}/{self.config.eval_episodes}, step {length}"}
            self.callback.on_progress(self.at, self.updates, self.latest | note)

        def play(film: Callable[[], None] | None) -> Evaluation:
            return evaluate(
                self.agent,
                *self._eval_envs,
                executors=self._eval_executors,
                episodes=self.config.eval_episodes,
                seeds=self.seeds.sequence("evaluation", self.steps),
                step=self.steps,
                film=film,
                on_step=on_step,
            )

        if not self.config.video_size:
            return play(None)
        picture = self.frame_renderer(self._eval_envs[0])
        path = self.folder / "videos" / f"eval_{self.at.frames:012d}.mp4"
        with Video(path) as video:
            result = play(lambda: video.add(picture(self.config.video_size)))
        self.sinks.video(self.at, str(path))
        return result

    # --- state ---

    def save(self) -> Path:
        """Write a checkpoint of everything.

        Raises:
            OSError: it cannot be written.
            RunFailed: weights or moments are not finite; a checkpoint never holds such.
        """
        self._tick(time.monotonic())
        state = self.state_dict()
        self._refuse_not_finite(state["agent"])
        began = time.monotonic()
        path = self.checkpoints.save(self.at.frames, state)
        self._saving_seconds += time.monotonic() - began
        return path

    def _refuse_not_finite(self, state: Mapping[str, Any]) -> None:
        bad = not_finite(state)
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            names = ", ".join([*bad][:3])
            raise RunFailed(f"learning diverged: {names}{more} are not finite", diverged=True)

    def resume(self) -> int:
        """Go on from the newest whole checkpoint, or anew if there is none at all.

        Returns the frames that it is of.

        Raises:
            ConfigError: none of them is whole, or it is of a run with other settings.
        """
        if not found(self.checkpoints.folder):
            self.sinks.load_state_dict({"record": {"bytes": 0}})
            return 0
        frames, state = self.checkpoints.load_newest()
        then, now = state["settings"], self.settings
        changed = [key for key in then | now if then.get(key) != now.get(key)]
        if changed:
            both = [f"{key} {then.get(key)}, now {now.get(key)}" for key in changed[:3]]
            raise ConfigError(
                f"{self.folder} was trained with {'; '.join(both)}: put its config.yaml back, or "
                "start another run with these settings."
            )
        self.load_state_dict(state)
        return frames

    def state_dict(self) -> dict[str, Any]:
        envs: list[Any] = self.envs
        return {
            "trainer": {name: getattr(self, name) for name in COUNTERS}
            | {
                "marks": dict(self.marks),
                "in_rows": dict(self.at_last_row),
                "episode_returns": list(self.episode_returns),
                "episode_steps": list(self.episode_steps),
            },
            "in_episode": [obs is not None for obs in self.obs],
            "means": self.means.state_dict(),
            "agent": self.agent.state_dict(),
            "update_schedule": self.update_schedule.state_dict(),
            "env": [
                executor.run(env.state_dict)
                for executor, env in zip(self.executors, envs, strict=True)
            ],
            "replay": self.memory.state_dict(),
            "sinks": self.sinks.state_dict(),
            "settings": dict(self.settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in COUNTERS:
            setattr(self, name, state["trainer"][name])
        self.marks = dict(state["trainer"]["marks"])
        self.at_last_row = dict(state["trainer"]["in_rows"])
        self.episode_returns = list(state["trainer"]["episode_returns"])
        self.episode_steps = list(state["trainer"]["episode_steps"])
        self.means.load_state_dict(state["means"])
        self.agent.load_state_dict(state["agent"])
        self.update_schedule.load_state_dict(state["update_schedule"])
        self.memory.load_state_dict(state["replay"])
        self.sinks.load_state_dict(state["sinks"])
        envs: list[Any] = self.envs
        for env_index, env in enumerate(envs):
            self.executors[env_index].run(env.load_state_dict, state["env"][env_index])
            self.obs[env_index] = env.obs if state["in_episode"][env_index] else None
            if (
                self.obs[env_index] is None
            ):  # between episodes, or the env could not return to this one
                self._forget_episode(env_index)


COUNTERS = ("steps", "updates", "episodes", "elapsed_seconds")
