"""The training loop: steps become transitions, transitions become updates. Knows Protocols only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from rlearly import checkpoint
from rlearly.metrics import Means
from rlearly.replay import Replay
from rlearly.seeding import Seeds, episode_seed
from rlearly.sinks import Sinks
from rlearly.types import Agent, Cadence, Metrics, Progress
from rlearly.video import Video


@dataclass(frozen=True)
class Plan:
    """How long, and how often what. 0 means never."""

    frames_per_step: int
    train_frames: int
    seed_frames: int
    batch_size: int
    log_every_frames: int
    eval_every_frames: int
    eval_episodes: int
    video_size: int
    checkpoint_every_frames: int
    keep_checkpoints: int


class Watcher(Protocol):
    """Somebody who looks on. Nothing it does reaches training."""

    def look(self, at: Progress, updates: int, latest: Mapping[str, Any]) -> None:
        """Called at every step and as evaluations advance."""
        ...

    def say(self, text: str) -> None:
        """A line worth reading."""
        ...


class Interrupted(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths in agent steps, an entry an episode."""

    returns: list[float]
    lengths_steps: list[int]


def evaluate(
    agent: Agent,
    env: gymnasium.Env,
    *,
    episodes: int,
    seeds: np.random.SeedSequence,
    step: int,
    film: Callable[[], None] | None = None,
    on_step: Callable[[int, int], None] = lambda episode, step: None,
) -> Evaluation:
    """Play whole episodes with the mean action; `film` is called at each step of the first one.

    The episodes follow from `seeds` alone, and nothing outside `env` changes.
    """
    generator = np.random.Generator(np.random.PCG64(seeds))
    returns, lengths = [], []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode_seed(generator))
        total, length, done = 0.0, 0, False
        while not done:
            if film and episode == 0:
                film()
            action = agent.act(obs[None], step=step, explore=False)[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            length += 1
            done = terminated or truncated
            on_step(episode, length)
        returns.append(total)
        lengths.append(length)
    return Evaluation(returns, lengths)


class Loop:
    """One run. `run()` trains to the end, or until asked to stop, and is resumable either way.

    The order of a step is DrQ-v2's: act; update with what is in memory; step the env; store.
    Evaluation happens in an env of its own, on seeds of its own, with no noise: switching it, or
    any logging, on or off changes nothing in training.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        agent: Agent,
        env: gymnasium.Env,
        make_eval_env: Callable[[], gymnasium.Env],
        picture_of: Callable[[gymnasium.Env], Callable[[int], np.ndarray]],
        replay: Replay,
        cadence: Cadence,
        sinks: Sinks,
        watcher: Watcher,
        seeds: Seeds,
        folder: Path,
        stop_requested: Callable[[], bool],
    ):
        self.plan = plan
        self.agent = agent
        self.env = env
        self.make_eval_env = make_eval_env
        self.picture_of = picture_of
        self.replay = replay
        self.cadence = cadence
        self.sinks = sinks
        self.watcher = watcher
        self.seeds = seeds
        self.folder = folder
        self.stop_requested = stop_requested

        self.steps = 0
        self.updates = 0
        self.episodes = 0
        self.episode_return = 0.0
        self.episode_steps = 0
        self.elapsed_seconds = 0.0
        self.marks = {"log": 0, "eval": 0, "checkpoint": 0}  # frames at the last of each
        self.means = Means()
        self.latest: dict[str, Any] = {}
        self.obs: np.ndarray | None = None
        self._eval_env: gymnasium.Env | None = None
        self._clock = time.monotonic()
        self._row_start = (self._clock, 0, 0)

    @property
    def at(self) -> Progress:
        return Progress(frames=self.steps * self.plan.frames_per_step, steps=self.steps)

    def try_evaluation(self) -> None:
        """Make the evaluation env and take a picture of it, so that it cannot fail hours later."""
        if self.plan.eval_every_frames:
            self._eval_env = self.make_eval_env()
            if self.plan.video_size:
                self._eval_env.reset(seed=0)
                self.picture_of(self._eval_env)(self.plan.video_size)

    # --- running ---

    def run(self) -> bool:
        """Train; True if the end was reached, False if stopped. The state is saved either way."""
        self._clock = time.monotonic()
        self._row_start = (self._clock, self.steps, self.updates)
        try:
            while True:
                self._do_what_is_due()
                if self.at.frames >= self.plan.train_frames:
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
        self.env.close()
        if self._eval_env is not None:
            self._eval_env.close()
        self.sinks.close()

    def _step(self) -> None:
        obs = self.obs
        if obs is None:
            obs, _ = self.env.reset()
            self.replay.begin(obs)
        action = self.agent.act(obs[None], step=self.steps, explore=True)[0]
        if self.steps * self.plan.frames_per_step >= self.plan.seed_frames:
            self._update()
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self.replay.add(action, float(reward), obs, terminated=terminated, truncated=truncated)
        self.obs = obs
        self.episode_return += float(reward)
        self.episode_steps += 1
        self.steps += 1
        if terminated or truncated:
            self._end_episode()
        self.watcher.look(self.at, self.updates, self.latest)

    def _update(self) -> None:
        due = self.cadence.updates_due(self.steps)
        for _ in range(due if len(self.replay) else 0):
            batch = self.replay.sample(self.plan.batch_size)
            metrics: Metrics = self.agent.update(batch, step=self.steps)
            self.cadence.observe(metrics)
            self.means.add(metrics)
            self.latest.update(metrics)
            self.updates += 1

    def _end_episode(self) -> None:
        self.episodes += 1
        self.cadence.end_episode()
        row = {
            "train/episode_return": self.episode_return,
            "train/episode_length_steps": self.episode_steps,
            "train/episodes": self.episodes,
        }
        self.latest["train/episode_return"] = self.episode_return
        self.sinks.write(self.at, row)
        self.obs, self.episode_return, self.episode_steps = None, 0.0, 0

    # --- what happens every so many frames ---

    def _do_what_is_due(self) -> None:
        if self._is_due("log", self.plan.log_every_frames):
            self._write_row()
            self.marks["log"] = self.at.frames
        if self._is_due("eval", self.plan.eval_every_frames):
            self._evaluate()
            self.marks["eval"] = self.at.frames
        if self._is_due("checkpoint", self.plan.checkpoint_every_frames):
            self.marks["checkpoint"] = self.at.frames
            try:
                self.save()
            except OSError as error:
                self.watcher.say(f"no checkpoint could be written ({error}); training goes on")

    def _is_due(self, what: str, every_frames: int) -> bool:
        """Whether a multiple of `every_frames` lies between the last time and now."""
        return (
            every_frames > 0 and self.at.frames // every_frames > self.marks[what] // every_frames
        )

    def _write_row(self) -> None:
        now = time.monotonic()
        since, steps, updates = self._row_start
        seconds = max(now - since, 1e-9)
        self._tick(now)
        row = self.means.take()
        row["train/updates"] = self.updates
        row["replay/transitions"] = len(self.replay)
        frames = (self.steps - steps) * self.plan.frames_per_step
        row["speed/frames_per_second"] = frames / seconds
        row["speed/updates_per_second"] = (self.updates - updates) / seconds
        row["speed/elapsed_seconds"] = self.elapsed_seconds
        self.sinks.write(self.at, row)
        self._row_start = (now, self.steps, self.updates)

    def _tick(self, now: float) -> None:
        self.elapsed_seconds += now - self._clock
        self._clock = now

    def _evaluate(self) -> None:
        if self._eval_env is None:
            self._eval_env = self.make_eval_env()
        began = time.monotonic()
        result = self._film_and_evaluate(self._eval_env)
        mean = float(np.mean(result.returns))
        row = {
            "eval/episode_return": mean,
            "eval/episode_return_std": float(np.std(result.returns)),
            "eval/episode_length_steps": float(np.mean(result.lengths_steps)),
            "eval/episodes": len(result.returns),
            "eval/seconds": time.monotonic() - began,
        }
        self.latest["eval/episode_return"] = mean
        self.sinks.write(self.at, row)
        returns = ", ".join(f"{r:.1f}" for r in result.returns)
        self.watcher.say(f"evaluation at {self.at.frames} frames: mean {mean:.1f} ({returns})")
        self.watcher.look(self.at, self.updates, self.latest)
        paused = time.monotonic() - began  # the next row's speeds are of training alone
        since, steps, updates = self._row_start
        self._row_start = (since + paused, steps, updates)

    def _film_and_evaluate(self, env: gymnasium.Env) -> Evaluation:
        def on_step(episode: int, length: int) -> None:
            if self.stop_requested():
                raise Interrupted
            note = {"evaluating": f"{episode + 1}/{self.plan.eval_episodes}, step {length}"}
            self.watcher.look(self.at, self.updates, self.latest | note)

        def play(film: Callable[[], None] | None) -> Evaluation:
            return evaluate(
                self.agent,
                env,
                episodes=self.plan.eval_episodes,
                seeds=self.seeds.sequence("evaluation", self.steps),
                step=self.steps,
                film=film,
                on_step=on_step,
            )

        if not self.plan.video_size:
            return play(None)
        picture = self.picture_of(env)
        path = self.folder / "videos" / f"eval_{self.at.frames:012d}.mp4"
        with Video(path) as video:
            result = play(lambda: video.add(picture(self.plan.video_size)))
        self.sinks.video(self.at, str(path))
        return result

    # --- state ---

    def save(self) -> Path:
        """Write a checkpoint of everything."""
        self._tick(time.monotonic())
        return checkpoint.save(
            self.folder / "checkpoints",
            self.at.frames,
            self.state_dict(),
            self.plan.keep_checkpoints,
        )

    def state_dict(self) -> dict[str, Any]:
        env: Any = self.env
        return {
            "loop": {name: getattr(self, name) for name in COUNTERS} | {"marks": dict(self.marks)},
            "in_episode": self.obs is not None,
            "means": self.means.state_dict(),
            "agent": self.agent.state_dict(),
            "cadence": self.cadence.state_dict(),
            "env": env.state_dict(),
            "replay": self.replay.state_dict(),
            "sinks": self.sinks.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in COUNTERS:
            setattr(self, name, state["loop"][name])
        self.marks = dict(state["loop"]["marks"])
        self.means.load_state_dict(state["means"])
        self.agent.load_state_dict(state["agent"])
        self.cadence.load_state_dict(state["cadence"])
        self.replay.load_state_dict(state["replay"])
        self.sinks.load_state_dict(state["sinks"])
        env: Any = self.env
        env.load_state_dict(state["env"])
        self.obs = env.obs if state["in_episode"] else None
        if self.obs is None:  # between episodes, or the env could not return to this one
            self.episode_return, self.episode_steps = 0.0, 0


COUNTERS = (
    "steps",
    "updates",
    "episodes",
    "episode_return",
    "episode_steps",
    "elapsed_seconds",
)
