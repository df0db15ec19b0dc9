"""The trainer: env steps become transitions, and transitions updates. It sees only Protocols."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.spaces import Observation, clip_actions, stack_observations
from rlearly.core.types import Agent, Memory, Metrics, Progress, Stateful, UpdateSchedule
from rlearly.system.seeding import Seeds
from rlearly.training import failure
from rlearly.training.callbacks.callback import Episode
from rlearly.training.callbacks.calls import Callbacks, Named
from rlearly.training.callbacks.training_envs import TrainingEnvs
from rlearly.training.checkpoint import (
    BEST,
    Checkpoints,
    DamagedCheckpoint,
    delete_unneeded_best,
    list_checkpoints,
    refuse_other_spaces,
    verify,
)
from rlearly.training.continuing.start_from import Ancestor
from rlearly.training.continuing.stop_rules import StopRules
from rlearly.training.evaluation import (
    LONG_EPISODE_STEPS,
    Evaluation,
    checked_reset,
    checked_step,
    close_env,
    episode_success,
    evaluate,
)
from rlearly.training.executors import EnvExecutor
from rlearly.training.metrics import MetricMeans
from rlearly.training.sinks import Sinks
from rlearly.training.video import Video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig:
    """How long a run is, and how often each thing happens. An interval of 0 means never."""

    frames_per_step: int
    train_frames: int
    seed_frames: int
    batch_size: int
    update_last: bool
    """On-policy agents update as soon as a rollout is full, so that the next action uses it."""

    log_every_frames: int
    eval_every_frames: int
    eval_episodes: int
    video_size: int
    checkpoint_every_frames: int
    keep_checkpoints: int
    keep_best: str | None = None
    """The metric of evaluations whose highest value decides which checkpoint is kept as the best
    one; of equal values the earliest. None: no best one is kept."""

    clear_replay_at_steps: int | None = None
    """The agent step at which everything stored so far is removed from the replay; None: never."""


class ProgressDisplay(Protocol):
    """What shows a run to its user. Nothing it does affects training."""

    def on_progress(self, at: Progress, updates: int, latest: Mapping[str, Any]) -> None:
        """Called after every round of env steps and during evaluations, with the newest metrics."""
        ...

    def message(self, text: str) -> None:
        """Called with one line for the user."""
        ...


class Interrupted(Exception):
    """The run was asked to stop."""


EVERY = 1_000_000
"""More checkpoints than a run has."""

STATE = (
    "steps", "updates", "episodes", "elapsed_seconds", "episode_returns", "episode_steps",
    "last_due_frames", "at_last_row",
)  # fmt: skip
"""Attributes of a trainer that a checkpoint holds."""


@dataclass(eq=False, kw_only=True)
class Trainer:
    """Trains one agent.

    The final policy is evaluated, whatever the interval of evaluations is.

    `run()` trains to the end, or until it is asked to stop; after either, it can be resumed.

    The order of a step is DrQ-v2's:

    1. act on the newest observation of every env (resetting those whose episode has ended);
    2. step the envs, which step together; an env with a thread of its own steps during 3;
    3. update from what the memory holds;
    4. store the transitions, in the order of the envs.

    An env for which `is_resetting` takes no part in a step: it resets itself meanwhile, which is no
    transition and no agent step.

    With `update_last` (on-policy agents) 3 comes after 4. Because transitions are stored after the
    update and in env order, results do not depend on which thread is faster. `steps` counts the
    steps of all envs; the last round may overshoot the end by fewer steps than there are envs.

    Evaluation uses its own env, its own seeds and no noise: switching it or any logging on or off
    changes nothing in training.
    """

    config: TrainerConfig
    agent: Agent
    envs: list[gymnasium.Env]
    executors: list[EnvExecutor]
    """What runs the calls of each env."""
    make_eval_env: Callable[[], gymnasium.Env]
    frame_renderer: Callable[[gymnasium.Env], Callable[[int], np.ndarray]]
    memory: Memory
    update_schedule: UpdateSchedule
    sinks: Sinks
    display: ProgressDisplay
    seeds: Seeds
    folder: Path
    stop_requested: Callable[[], bool]
    fixed_config: Mapping[str, Any]
    """Settings, as plain values, that may not change when the run is resumed."""
    is_resetting: Callable[[int], bool] = lambda env_index: False
    """Whether an env can neither act nor be reset, because it resets itself while the others take
    their next step (some vector envs do)."""

    training_envs: TrainingEnvs
    """The envs, as callbacks see them."""
    named_callbacks: Sequence[Named] = ()
    stop_rules: StopRules = field(default_factory=StopRules)
    ancestor: Ancestor | None = None
    """The run that a new one begins from."""
    spaces: Mapping[str, str] = field(default_factory=dict)
    """The observations and actions in words, for runs that begin from this one."""

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.config.keep_checkpoints)
        self.best_checkpoints = Checkpoints(self.checkpoints.folder / BEST, keep=EVERY)
        self.best: dict[str, Any] | None = None
        """The best evaluation that a checkpoint was kept of: its metric, value and frames."""
        self.callbacks = Callbacks(self.named_callbacks, self)
        self._ended_episodes: list[Episode] = []  # in this round, for callbacks
        self._done_updates: list[Metrics] = []
        self.stop_reason: str | None = None
        """Why the run ends, or ended, before its `train_frames`."""
        self.steps = 0
        self.updates = 0
        self.episodes = 0
        self.elapsed_seconds = 0.0
        self.obs: list[Observation | None] = [None] * len(self.envs)  # None: between episodes
        self.episode_returns = [0.0] * len(self.envs)  # of the running episodes
        self.episode_steps = [0] * len(self.envs)
        self.last_due_frames = {"log": 0, "eval": 0, "checkpoint": 0}
        self.at_last_row = {"steps": 0, "updates": 0}
        self.means = MetricMeans()
        self.latest: dict[str, Any] = {}
        self._eval_env: gymnasium.Env | None = None
        self._clock = time.monotonic()
        self._row_start = (self._clock, 0, 0)  # time, steps, updates: for the speeds of a row
        self._saving_seconds = 0.0  # since the last row
        self._evaluated_since_saving = False
        self._said_long_episode = False
        self._said_no_metric = False
        self._closed = False
        self._begun = False

    @property
    def at(self) -> Progress:
        return Progress(frames=self.steps * self.config.frames_per_step, steps=self.steps)

    def try_evaluation(self) -> None:
        """Make the evaluation env and render a frame, so that neither can fail hours later."""
        if not self.config.eval_every_frames:
            return
        self._eval_env = self.make_eval_env()
        if self.config.video_size:
            checked_reset(self._eval_env, "its first reset", seed=0)
            self.frame_renderer(self._eval_env)(self.config.video_size)

    def begin(self) -> None:
        """Take over what a new run begins with from another one; `run` does so otherwise.

        Raises:
            ConfigError: it does not fit.
        """
        if self.ancestor is not None and not self._begun:
            self.ancestor.take_over(self.agent, self.memory)
        self._begun = True

    # --- running ---

    def run(self) -> bool:
        """Train; True if the end was reached, False if stopped. A checkpoint is saved either way.

        The end is `train_frames`, or earlier for a `stop_reason`.

        Raises:
            RunFailed: the env or learning failed; the last checkpoint is from before it.
        """
        self._clock = time.monotonic()
        self._row_start = (self._clock, self.steps, self.updates)
        self.begin()
        self.callbacks.start()
        if self.ancestor is not None and not list_checkpoints(self.checkpoints.folder):
            self.save()  # from now on the run can be resumed without its ancestor
        try:
            while True:
                self._do_what_is_due()
                if self._is_over():
                    break
                if self.stop_requested():
                    raise Interrupted
                self._step()
        except Interrupted:
            self.save()
            return False
        if self.means.counts:  # updates since the last row; in a short run, all of them
            self._write_row()
        self.save()
        return True

    def _is_over(self) -> bool:
        return self.stop_reason is not None or self.at.frames >= self.config.train_frames

    def stop(self, reason: str) -> None:
        """End the run before its next step; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.display.message(f"ends early at {self.at.frames:,} frames: {reason}")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Write a callback's row of metrics."""
        self.latest.update(metrics)
        self._write(metrics)

    def message(self, text: str) -> None:
        """Show a callback's line to the user."""
        self.display.message(text)

    def close(self) -> None:
        """Close what is still open: the envs, each in its own thread, the memory and the sinks."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as last_to_first:  # all, even if one of them raises
            last_to_first.callback(self.sinks.close)
            last_to_first.callback(self.memory.close)
            if self._eval_env:
                last_to_first.callback(close_env, self._eval_env)
            for env, executor in zip(self.envs, self.executors, strict=True):
                last_to_first.callback(executor.close)
                last_to_first.callback(executor.run, close_env, env)

    def _step(self) -> None:
        """One agent step in every env that does not reset itself."""
        first_step = self.steps
        resetting, acting = [], []
        for env_index in range(len(self.envs)):
            (resetting if self.is_resetting(env_index) else acting).append(env_index)
        obs = [self._current_obs(env_index) for env_index in acting]
        actions = self.agent.act(stack_observations(obs), step=first_step, explore=True)
        results = [
            self.executors[env_index].submit(
                checked_step, self.envs[env_index], action, "a training step"
            )
            for env_index, action in zip(acting, clip_actions(actions), strict=True)
        ]
        for env_index in resetting:
            self.memory.skip(env_index=env_index)
            self.update_schedule.skip()
        if not self.config.update_last:
            self._update(first_step, len(acting))
        for env_index, action, result in zip(acting, actions, results, strict=True):
            self._store(env_index, action, result())
        clear_at = self.config.clear_replay_at_steps
        if clear_at is not None and first_step < clear_at <= self.steps:
            self.memory.clear()
        if self.config.update_last:
            self._update(first_step, len(acting))
        if self.callbacks:
            self._tell_callbacks()
        self.display.on_progress(self.at, self.updates, self.latest)

    def _tell_callbacks(self) -> None:
        """Tell the callbacks what happened in this round, now that no env is stepping."""
        updates, self._done_updates = self._done_updates, []
        for metrics in updates:
            self.callbacks.call("on_update", metrics)
        episodes, self._ended_episodes = self._ended_episodes, []
        for episode in episodes:
            self.callbacks.call("on_episode", episode)
        self.callbacks.call("on_step")

    def _current_obs(self, env_index: int) -> Observation:
        """The newest observation of an env's episode; resets the env if its episode has ended."""
        obs = self.obs[env_index]
        if obs is None:
            self.training_envs.begin_episode(env_index)
            obs = self.executors[env_index].run(checked_reset, self.envs[env_index], "a reset")
            self.memory.begin_episode(obs, env_index=env_index)
        return obs

    def _store(self, env_index: int, action: np.ndarray, result: tuple[Any, ...]) -> None:
        """Add a transition to memory and count it."""
        obs, reward, terminated, truncated, info = result
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

    def _update(self, first_step: int, steps: int) -> None:
        """Do the updates that are due in this round; the schedule is called once per env step."""
        for step in range(first_step, first_step + steps):
            if step * self.config.frames_per_step < self.config.seed_frames:
                continue
            due = self.update_schedule.updates_due(step)
            for _ in range(due if len(self.memory) else 0):
                batch = self.memory.sample(self.config.batch_size)
                metrics: Metrics = self.agent.update(batch, step=step)
                self.update_schedule.observe(metrics)
                self._record(metrics)
                self.updates += 1
                if self.callbacks:
                    self._done_updates.append(metrics)
            self._record(self.update_schedule.events())

    def _record(self, metrics: Metrics) -> None:
        """Average metrics until the next row; write `event/...` and `now/...` at once."""
        if not metrics:
            return
        at_once = {k: float(v) for k, v in metrics.items() if k.startswith(("event/", "now/"))}
        averaged = {k: v for k, v in metrics.items() if k not in at_once}
        self.means.add(averaged)
        self.latest.update(averaged)
        if not at_once:
            return
        row = {name.removeprefix("now/"): value for name, value in at_once.items()}
        if not all(map(math.isfinite, row.values())):
            self._refuse_not_finite(self.agent.state_dict())
            row = {name: value for name, value in row.items() if math.isfinite(value)}
        self.latest.update(row)
        self._write(row)
        events = [
            f"{name.removeprefix('event/').replace('_', ' ')} {value:.4g}"
            for name, value in row.items()
            if name.startswith("event/") and name != "event/recycled_units"  # ReDo's: too frequent
        ]
        if events:
            self.display.message(f"at {self.at.frames} frames: {', '.join(events)}")

    def _write(self, row: Mapping[str, float]) -> None:
        self.stop_rules.observe(row)
        self.sinks.write(self.at, row)

    def _end_episode(self, env_index: int, info: Mapping[str, Any]) -> None:
        """Write an episode's row.

        Episodes that began at a snapshot or with a teacher's steps have metrics of their own.
        """
        self.episodes += 1
        self.update_schedule.end_episode()
        self._record(self.update_schedule.events())
        kind = "snapshot_episode" if "snapshot" in info else "episode"
        kind = "guided_episode" if info.get("guide_steps") else kind
        row = {
            f"train/{kind}_return": self.episode_returns[env_index],
            f"train/{kind}_length_steps": self.episode_steps[env_index],
            "train/episodes": self.episodes,
        }
        if "game_return" in info:
            row["train/game_return"] = info["game_return"]
        if "guide_steps" in info:
            row["train/guide_steps"] = info["guide_steps"] + info["guide_dropped_steps"]
        success = episode_success(info)
        if success is not None:
            row[f"train/{kind}_success"] = float(success)
        self.latest["train/episode_return"] = self.episode_returns[env_index]
        self._write(row)
        if self.callbacks:
            total, length = self.episode_returns[env_index], self.episode_steps[env_index]
            self._ended_episodes.append(Episode(env_index, total, length, success, kind, info))
        self._clear_episode(env_index)

    def _clear_episode(self, env_index: int) -> None:
        self.obs[env_index] = None
        self.episode_returns[env_index] = 0.0
        self.episode_steps[env_index] = 0

    # --- logging, evaluation and checkpoints, at intervals ---

    def _do_what_is_due(self) -> None:
        frames = self.at.frames
        at_end = self._is_over()
        if self._is_due("log", self.config.log_every_frames, frames):
            self._write_row()
            self.last_due_frames["log"] = frames
        if self._is_due("eval", self.config.eval_every_frames, frames, at_end=at_end):
            try:
                self._evaluate()
            except RunFailed as failed:
                if at_end and not failed.diverged:  # the training itself is complete
                    with contextlib.suppress(OSError):  # the failure is what is to be said
                        self.save()
                raise
            self.last_due_frames["eval"] = frames
            self._evaluated_since_saving = True
        if self._is_due("checkpoint", self.config.checkpoint_every_frames, frames):
            self.last_due_frames["checkpoint"] = frames
            try:
                self.save()
            except OSError as error:
                self.display.message(f"could not save a checkpoint ({error}); training continues")

    def _is_due(self, what: str, every_frames: int, frames: int, *, at_end: bool = False) -> bool:
        """Whether a multiple of `every_frames` was passed since the last time, or, `at_end`, any
        frames were; never if `every_frames` is 0."""
        last = self.last_due_frames[what]
        if every_frames == 0:
            return False
        return frames > last if at_end else frames // every_frames > last // every_frames

    def _write_row(self) -> None:
        """Write the means of the update metrics, counters and speeds since the last row.

        Raises:
            RunFailed: a mean is not finite.
        """
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
        if not self.config.update_last and self.steps > self.at_last_row["steps"]:
            new = {name: getattr(self, name) - done for name, done in self.at_last_row.items()}
            row["train/replay_ratio"] = new["updates"] / new["steps"]
        self.at_last_row = {"steps": self.steps, "updates": self.updates}
        frames = (self.steps - steps) * self.config.frames_per_step
        row["speed/frames_per_second"] = frames / seconds
        row["speed/updates_per_second"] = (self.updates - updates) / seconds
        row["speed/elapsed_seconds"] = self.elapsed_seconds
        if self._saving_seconds:
            row["speed/checkpoint_seconds"] = self._saving_seconds
            self._saving_seconds = 0.0
        self._write(row)
        self._row_start = (now, self.steps, self.updates)

    def _tick(self, now: float) -> None:
        self.elapsed_seconds += now - self._clock
        self._clock = now

    def _evaluate(self) -> None:
        began = time.monotonic()
        result = self._play_and_film()
        mean = float(np.mean(result.returns))
        row = {
            "eval/episode_return": mean,
            "eval/episode_return_std": float(np.std(result.returns)),
            "eval/episode_length_steps": float(np.mean(result.lengths_steps)),
            "eval/episodes": len(result.returns),
            "eval/seconds": time.monotonic() - began,
        }
        success = ""
        if result.success_rate is not None:
            row["eval/success_rate"] = self.latest["eval/success_rate"] = result.success_rate
            success = f", success in {result.success_rate:.0%}"
        self.latest["eval/episode_return"] = mean
        self._write(row)
        returns = ", ".join(f"{r:.1f}" for r in result.returns)
        self.display.message(
            f"evaluation at {self.at.frames} frames: mean {mean:.1f} ({returns}){success}"
        )
        self.display.on_progress(self.at, self.updates, self.latest)
        self._keep_if_best(row)
        reason = self.stop_rules.judge()
        if reason:
            self.stop(f"stop_when: {reason}")
        self.callbacks.call("on_evaluation", row)
        paused = time.monotonic() - began  # the next row's speeds are of training alone
        since, steps, updates = self._row_start
        self._row_start = (since + paused, steps, updates)

    def _play_and_film(self) -> Evaluation:
        """Evaluate, and film the first episode if there is a `video_size`."""
        env = self._eval_env = self._eval_env or self.make_eval_env()
        size = self.config.video_size

        def on_step(episode: int, length: int) -> None:
            if self.stop_requested():
                raise Interrupted
            if length == LONG_EPISODE_STEPS and not self._said_long_episode:
                self._said_long_episode = True
                self.display.message(
                    f"an episode of this evaluation has taken {length:,} steps and is still "
                    "running; if the env never ends it, stop the run, then resume it with "
                    "eval_every_frames=0 or start a new one with env.max_episode_steps=N"
                )
            status = {"evaluating": f"{episode + 1}/{self.config.eval_episodes}, step {length}"}
            self.display.on_progress(self.at, self.updates, self.latest | status)

        def play(record_frame: Callable[[], None] | None) -> Evaluation:
            return evaluate(
                self.agent,
                env,
                episodes=self.config.eval_episodes,
                seeds=self.seeds.sequence("evaluation", self.steps),
                step=self.steps,
                record_frame=record_frame,
                on_step=on_step,
            )

        if not size:
            return play(None)
        render = self.frame_renderer(env)
        path = self.folder / "videos" / f"eval_{self.at.frames:012d}.mp4"
        with Video(path) as video:
            result = play(lambda: video.add(render(size)))
        self.sinks.video(self.at, str(path))
        return result

    def _keep_if_best(self, row: Mapping[str, float]) -> None:
        """Keep a checkpoint of the agent if this evaluation is better than all before it.

        Raises:
            RunFailed: weights or moments are not finite.
        """
        metric, best = self.config.keep_best, self.best
        if metric is None:
            return
        if metric not in row:
            if not self._said_no_metric:
                self._said_no_metric = True
                self.display.message(f"keep_best: evaluations of this env report no {metric}")
            return
        if best and best["metric"] == metric and row[metric] <= best["value"]:
            return
        found = {"metric": metric, "value": row[metric], "frames": self.at.frames}
        envs: list[Any] = self.envs
        state = {
            "trainer": self._counters(),
            "fixed_config": dict(self.fixed_config),
            "spaces": dict(self.spaces),
            "agent": self.agent.state_dict(),
            "env": [{"kept": self.executors[0].run(envs[0].kept_state)}],
            "env_attributes": self.training_envs.state_dict(),
            "best": found,
        }
        self._refuse_not_finite(state["agent"])
        try:
            self.best_checkpoints.save(self.at.frames, state)
        except OSError as error:
            self.display.message(f"could not save the best checkpoint ({error})")
            return
        self.best = found

    # --- state ---

    def dump_failure(self, failed: RunFailed) -> None:
        """Write why the run failed into its folder; see `failure.dump`."""
        progress = {
            "frames": self.at.frames,
            "steps": self.steps,
            "updates": self.updates,
            "episode_steps": self.episode_steps,
            "latest": {name: str(value) for name, value in self.latest.items()},
        }
        failure.dump(self.folder, failed, progress, self.agent.state_dict())

    def save(self) -> Path:
        """Write a checkpoint of everything.

        Raises:
            OSError: it cannot be written.
            RunFailed: weights or moments are not finite; no checkpoint ever holds such values.
        """
        self._tick(time.monotonic())
        state = self.state_dict()
        self._refuse_not_finite(state["agent"])
        began = time.monotonic()
        path = self.checkpoints.save(self.at.frames, state, replace=self._evaluated_since_saving)
        self._evaluated_since_saving = False
        if self.best:
            delete_unneeded_best(self.checkpoints.folder, self.at.frames)
        self._saving_seconds += time.monotonic() - began
        return path

    def _refuse_not_finite(self, state: Mapping[str, Any]) -> None:
        bad = failure.not_finite(state)
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            names = ", ".join([*bad][:3])
            raise RunFailed(f"learning diverged: {names}{more} are not finite", diverged=True)

    def resume(self) -> int:
        """Load the newest undamaged checkpoint and return its frames; 0 if there are none at all.

        Raises:
            ConfigError: all checkpoints are damaged, or the run began with a different config.
        """
        if not list_checkpoints(self.checkpoints.folder):
            self.sinks.load_state_dict({"record": {"bytes": 0}})
            self.begin()
            return 0
        self._begun = True
        frames, state = self.checkpoints.load_newest()
        then, now = state["fixed_config"], self.fixed_config
        changed = [key for key in then | now if _given(then.get(key)) != _given(now.get(key))]
        if changed:
            both = [f"{key} {then.get(key)}, now {now.get(key)}" for key in changed[:3]]
            raise ConfigError(
                f"{self.folder} was trained with {'; '.join(both)}: put its config.yaml back, or "
                "start another run with these settings."
            )
        refuse_other_spaces(state, self.spaces, str(now.get("env.name", "")))
        self.load_state_dict(state)
        self._find_best()
        return frames

    def _find_best(self) -> None:
        """Forget the best checkpoint if it is gone or damaged: the next evaluation is the best."""
        if self.best is None:
            return
        path = self.best_checkpoints.folder / f"{self.best['frames']:012d}"
        try:
            verify(path)
            delete_unneeded_best(self.checkpoints.folder, self.at.frames)
        except DamagedCheckpoint as error:
            log.warning("%s The next evaluation is taken for the best one.", error)
            self.best = None

    def _parts(self) -> dict[str, Stateful]:
        return {
            "means": self.means,
            "agent": self.agent,
            "update_schedule": self.update_schedule,
            "replay": self.memory,
            "sinks": self.sinks,
            "stop_rules": self.stop_rules,
            "callbacks": self.callbacks,
            "env_attributes": self.training_envs,
        }

    def _stop_settings(self) -> dict[str, Any]:
        """The settings with which a run that ended early would end again."""
        rules = [rule.text for rule in self.stop_rules.rules]
        return {"train_frames": self.config.train_frames, "rules": rules}

    def _counters(self) -> dict[str, Any]:
        return {name: copy.copy(getattr(self, name)) for name in STATE}

    def state_dict(self) -> dict[str, Any]:
        envs: list[Any] = self.envs
        return {
            "trainer": self._counters(),
            "best": self.best,
            "stop": {"reason": self.stop_reason, **self._stop_settings()},
            "fixed_config": dict(self.fixed_config),
            "spaces": dict(self.spaces),
            "in_episode": [obs is not None for obs in self.obs],
            "env": [
                executor.run(env.state_dict)
                for executor, env in zip(self.executors, envs, strict=True)
            ],
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, copy.copy(state["trainer"][name]))
        self.best, stop = state.get("best"), state.get("stop", {})
        going_on = any(stop.get(key) != value for key, value in self._stop_settings().items())
        self.stop_reason = None if going_on else stop["reason"]
        for name, part in self._parts().items():
            if name in state:  # not in old checkpoints
                part.load_state_dict(state[name])
        envs: list[Any] = self.envs
        for env_index, env in enumerate(envs):
            self.executors[env_index].run(env.load_state_dict, state["env"][env_index])
            self.obs[env_index] = env.obs if state["in_episode"][env_index] else None
            if self.obs[env_index] is None:  # between episodes, or the env cannot restore this one
                self._clear_episode(env_index)


def _given(setting: Any) -> Any:
    """A setting's value; an empty dict counts as a setting that an older version did not have."""
    return None if setting == {} else setting
