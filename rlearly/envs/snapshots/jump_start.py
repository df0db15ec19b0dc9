"""Jump-start (JSRL, arXiv 2204.02372): a teacher's policy plays the first steps of each episode.

No state is restored, so it works for every env, a real robot included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import as_float
from rlearly.envs.snapshots.dataset import require_at_least
from rlearly.envs.state.action_replay import require_one_env
from rlearly.envs.state.generators import as_generator

TRIAL_EPISODES = 5
"""Whole episodes that the teacher plays to measure their mean length and return."""
MOST_TRIAL_STEPS = 100_000


class GuideSchedule(Protocol):
    """Decides how many steps the teacher plays; several envs may share one."""

    @property
    def is_prepared(self) -> bool:
        """Whether the teacher's episodes are known, so that `prepare` need not be called."""
        ...

    def prepare(self, episode_steps: int, episode_return: float) -> None:
        """Called once: mean length and mean return of the teacher's own episodes."""
        ...

    def choose(self, random: np.random.Generator) -> int:
        """The number of steps that the teacher plays in the next episode."""
        ...

    def report(self, episode_return: float) -> None:
        """The undiscounted return of an episode, the teacher's part included."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GuideCurriculum:
    """Shortens the teacher's part in stages, as the returns come near the best so far.

    In stage k = 0, 1, ..., n - 1 of n the teacher plays episode_steps * (n - 1 - k) / n steps,
    rounded down; none in the last stage. A stage ends when the mean of the last `episodes` returns
    in it is at least `best - tolerance * |best|`; `best` is the highest such mean so far, and the
    teacher's own mean return at first.

    >>> curriculum = GuideCurriculum(stages=4, episodes=1, episode_steps=100, teacher_return=10.0)
    >>> curriculum.report(9.8)
    >>> curriculum.stage, curriculum.guide_steps
    (1, 50)

    Args:
        stages: number of stages.
        tolerance: share of `best` by which the mean may be lower.
        episodes: number of newest returns in that mean.
        episode_steps: length of the teacher's episodes.
        teacher_return: their mean return. `JumpStart` measures what is None.

    Raises:
        ConfigError: an argument is out of range.

    Deviations from the paper: its first stage leaves the whole episode to the teacher, which
    leaves nothing to learn from; a stage's mean contains only returns of that stage.
    """

    def __init__(
        self,
        stages: int = 10,
        tolerance: float = 0.05,
        episodes: int = 5,
        episode_steps: int | None = None,
        teacher_return: float | None = None,
    ):
        require_at_least(1, stages=stages, episodes=episodes, episode_steps=episode_steps)
        require_at_least(0, tolerance=tolerance)
        self.stages = stages
        self.tolerance = tolerance
        self.episodes = episodes
        self.episode_steps = episode_steps
        self.best = teacher_return
        self.stage = 0
        self.recent: list[float] = []

    @property
    def is_prepared(self) -> bool:
        return self.episode_steps is not None and self.best is not None

    def prepare(self, episode_steps: int, episode_return: float) -> None:
        if self.episode_steps is None:
            self.episode_steps = episode_steps
        if self.best is None:
            self.best = episode_return

    @property
    def guide_steps(self) -> int:
        """How many steps the teacher plays in the present stage."""
        return (self.episode_steps or 0) * (self.stages - 1 - self.stage) // self.stages

    def choose(self, random: np.random.Generator) -> int:
        return self.guide_steps

    def report(self, episode_return: float) -> None:
        if not math.isfinite(episode_return):
            raise ConfigError(
                f"episode_return: expected a finite number, received {episode_return}."
            )
        if self.stage == self.stages - 1:
            return
        self.recent.append(float(episode_return))
        del self.recent[: -self.episodes]
        if len(self.recent) < self.episodes:
            return
        mean = float(np.mean(self.recent))
        best = mean if self.best is None else self.best
        if mean >= best - self.tolerance * abs(best):
            self.best = max(best, mean)
            self.stage += 1
            self.recent.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_steps": self.episode_steps,
            "best": self.best,
            "stage": self.stage,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode_steps = state["episode_steps"]
        self.best = state["best"]
        self.stage = state["stage"]
        self.recent = list(state["recent"])


class RandomGuide:
    """Draws the length of the teacher's part uniformly from 0 to its episodes' length - 1.

    Args:
        episode_steps: length of the teacher's episodes; None: `JumpStart` measures it.
    """

    def __init__(self, episode_steps: int | None = None):
        require_at_least(1, episode_steps=episode_steps)
        self.episode_steps = episode_steps

    @property
    def is_prepared(self) -> bool:
        return self.episode_steps is not None

    def prepare(self, episode_steps: int, episode_return: float) -> None:
        self.episode_steps = episode_steps

    def choose(self, random: np.random.Generator) -> int:
        return int(random.integers(self.episode_steps or 1))

    def report(self, episode_return: float) -> None:
        """Returns are ignored."""

    def state_dict(self) -> dict[str, Any]:
        return {"episode_steps": self.episode_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode_steps = state["episode_steps"]


class JumpStart(gymnasium.Wrapper, RecordConstructorArgs):
    """Let a teacher's policy play the first steps of each episode, inside `reset`.

    >>> import gymnasium
    >>> from rlearly import GuideCurriculum, JumpStart
    >>> swing = lambda obs: [2.0 if obs[2] > 0 else -2.0]
    >>> env = JumpStart(gymnasium.make("Pendulum-v1"), swing, GuideCurriculum(stages=4))
    >>> obs, info = env.reset(seed=0)
    >>> info["guide_steps"]  # three quarters of an episode of 200 steps
    150

    The learner's episode begins where the teacher stopped: it sees neither the teacher's steps nor
    their rewards. The info of a reset is that of the env's last step or reset, and has in addition

    - "guide_steps", the number of steps that the teacher played, and "guide_return", their return;
    - "guide_dropped_steps", of other episodes that the teacher played in this reset.

    The info of an episode's last step has these too. If the env's episode ends in the teacher's
    part, another ordinary reset follows and the teacher plays half as many steps as that episode
    had; at the latest when none is left, the episode is the learner's. At the first reset the
    teacher plays five whole episodes, unless the schedule knows their length and return. A reset
    with a seed always leads to the same start, given the schedule's state.

    A TimeLimit inside this wrapper, as gymnasium.make adds, counts the teacher's steps too. Outside
    it, it gives the learner a whole episode (make the env with max_episode_steps=-1). An episode
    that is reset before its end counts with its return so far. Wrappers that keep statistics belong
    outside, where they see the learner's part only.

    Args:
        env: one gymnasium env; it need not be restorable.
        policy: obs -> action, from the observations of `env`. If it has a memory, give it a method
            `reset()`, which is called before it plays. It must be deterministic for resumed runs to
            equal uninterrupted ones.
        schedule: how many steps the teacher plays; None: `GuideCurriculum()`.
        follow_training: report each training episode's return (the teacher's part plus the
            learner's) to the schedule. False: call `report` yourself with returns of evaluations.

    Raises:
        ConfigError: `env` is no single gymnasium env, `policy` is not callable, or the teacher's
            episodes do not end.

    Deviation from the paper: there the teacher's part shrinks as evaluations come near the best so
    far; here it follows the training episodes by default, so that switching evaluation on or off
    changes nothing in training.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        policy: Callable[[Any], Any],
        schedule: GuideSchedule | None = None,
        follow_training: bool = True,
    ):
        RecordConstructorArgs.__init__(
            self,
            policy=policy,
            schedule=schedule,
            follow_training=follow_training,
            _disable_deepcopy=True,
        )
        require_one_env(env)
        if not callable(policy):
            raise ConfigError(
                f"policy: expected a function from an observation to an action, received "
                f"{policy!r}; for a model of Stable-Baselines3, "
                "lambda obs: model.predict(obs, deterministic=True)[0]."
            )
        gymnasium.Wrapper.__init__(self, env)
        self.policy = policy
        self.schedule: GuideSchedule = GuideCurriculum() if schedule is None else schedule
        self.follow_training = follow_training
        self.guide_steps = 0
        self.guide_return = 0.0
        self.guide_dropped_steps = 0
        self._return = 0.0  # of the learner's part
        self._is_running = False  # the learner has taken a step, and the episode is not over

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self._is_running:
            self._end_episode()
        self._return, self.guide_dropped_steps = 0.0, 0
        if not self.schedule.is_prepared:
            self._measure_teacher(seed, options)
        start = self.env.reset(seed=seed, options=options)
        steps = self.schedule.choose(as_generator(self.np_random))
        (obs, info), over = self._guide(start, steps)
        while over:
            self.guide_dropped_steps += self.guide_steps
            start = self.env.reset(options=options)
            (obs, info), over = self._guide(start, self.guide_steps // 2)
        return obs, {**info, **self._guide_info()}

    def _guide(
        self, start: tuple[Any, dict[str, Any]], most_steps: int
    ) -> tuple[tuple[Any, dict[str, Any]], bool]:
        """Let the teacher play: ((observation, info), whether the env's episode is over)."""
        obs, info = start
        over = False
        self.guide_steps, self.guide_return = 0, 0.0
        if most_steps and hasattr(self.policy, "reset"):
            self.policy.reset()  # type: ignore[attr-defined]
        while self.guide_steps < most_steps and not over:
            obs, reward, terminated, truncated, info = self.env.step(self.policy(obs))
            self.guide_steps += 1
            self.guide_return += as_float(reward)
            over = terminated or truncated
        return (obs, info), over

    def _measure_teacher(self, seed: int | None, options: dict[str, Any] | None) -> None:
        """Let the teacher play whole episodes, and prepare the schedule with their means."""
        lengths, returns = [], []
        for episode in range(TRIAL_EPISODES):
            start = self.env.reset(seed=None if episode else seed, options=options)
            _, over = self._guide(start, MOST_TRIAL_STEPS)
            if not over:
                raise ConfigError(
                    f"The teacher's episode did not end within {MOST_TRIAL_STEPS} steps: put a "
                    "TimeLimit around the env inside JumpStart (in a run: env.max_episode_steps=N),"
                    " or give the schedule the teacher's episode_steps and teacher_return."
                )
            self.guide_dropped_steps += self.guide_steps
            lengths.append(self.guide_steps)
            returns.append(self.guide_return)
        self.schedule.prepare(max(round(float(np.mean(lengths))), 1), float(np.mean(returns)))

    def _guide_info(self) -> dict[str, Any]:
        return {
            "guide_steps": self.guide_steps,
            "guide_return": self.guide_return,
            "guide_dropped_steps": self.guide_dropped_steps,
        }

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._is_running = True
        self._return += as_float(reward)
        if terminated or truncated:
            self._end_episode()
            info = {**info, **self._guide_info()}
        return obs, reward, terminated, truncated, info

    def _end_episode(self) -> None:
        self._is_running = False
        if self.follow_training:
            self.report(self.guide_return + self._return)

    def report(self, episode_return: float) -> None:
        """Pass the return of a whole episode, such as an evaluation's, to the schedule."""
        self.schedule.report(episode_return)

    def forget_episode(self) -> None:
        """Do not report the running episode: the env has lost it."""
        self._is_running = False

    def state_dict(self) -> dict[str, Any]:
        """The state of the running episode and of the schedule."""
        return {
            **self._guide_info(),
            "return": self._return,
            "is_running": self._is_running,
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._guide_info():
            setattr(self, name, state[name])
        self._return = state["return"]
        self._is_running = state["is_running"]
        self.schedule.load_state_dict(state["schedule"])
