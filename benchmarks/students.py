"""TD3, SAC and PPO compared with Stable-Baselines3: same env, same hyper-parameters.

    python benchmarks/students.py agent=sac env=Hopper-v5 steps=30000 seeds=5

For each seed both sides train for `steps` agent steps on one CPU thread, then play the same
episodes with their mean action. Every finished seed of a side is a row of `out`; rows that exist
are not run again, so an interrupted comparison continues where it stopped.

Both sides step the env that rlearly makes: float32 states, actions in [-1, 1]. Where the two
libraries differ, Stable-Baselines3 is set to do what rlearly (and CleanRL) does:

- SAC: it has one learning rate for everything; here its critic and entropy weight get their own, by
  setting the optimizers' rates and disabling their updates. It updates the actor at every update;
  rlearly updates it twice at every second one.
- PPO: its value loss lacks CleanRL's factor 1/2, so the loss weight is halved. Its annealing reads
  the steps after a rollout, not before it, so its schedule is shifted by one rollout. Steps are
  rounded down to whole rollouts on both sides, because it would round them up.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from rlearly.config import resolve
from rlearly.config.fields import setting
from rlearly.config.help import KEYS, key_lines
from rlearly.config.schema import RunConfig
from rlearly.config.structured import from_overrides
from rlearly.core.errors import ConfigError
from rlearly.system.seeding import Seeds
from rlearly.training import builder
from rlearly.training.evaluation import evaluate
from rlearly.training.sinks import JsonLines, Sinks

SIDES = ("rlearly", "sb3")


@dataclass(frozen=True)
class StudentsConfig:
    """Settings of the comparison."""

    agent: str = setting("sac", "agent to train", choices=("td3", "sac", "ppo"))
    env: str = setting("Hopper-v5", "gymnasium id of the env")
    steps: int = setting(30_000, "agent steps of training", at_least=1)
    seeds: int = setting(5, "runs of each side, with seeds 0, 1, ...", at_least=1)
    episodes: int = setting(10, "episodes played after training", at_least=1)
    learning_starts_steps: int | None = setting(
        None,
        "td3 and sac: uniform random steps before learning; null: the agent's default",
        at_least=0,
    )
    out: str = setting("students.csv", "CSV file; rows of finished seeds are appended to it")


@dataclass(frozen=True)
class Result:
    """One seed of one side."""

    agent: str
    env: str
    steps: int
    learning_starts_steps: int
    episodes: int
    side: str
    seed: int
    mean_return: float
    std_return: float
    steps_per_second: float

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same run, as text, since a file keeps text."""
        own = ("mean_return", "std_return", "steps_per_second")
        return tuple(str(value) for name, value in asdict(self).items() if name not in own)


class Silent:
    """A watcher that says nothing."""

    def on_progress(self, at: Any, updates: int, latest: Any) -> None: ...

    def message(self, text: str) -> None: ...


class Predicting:
    """A Stable-Baselines3 model as `rlearly.loop.evaluate` plays it."""

    def __init__(self, model: Any, normal: Any):
        self.model = model
        self.normal = normal

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        return np.clip(self.model.predict(self.normal(obs), deterministic=True)[0], -1.0, 1.0)


def run_config(config: StudentsConfig, seed: int) -> RunConfig:
    """The config of rlearly's side; the other side reads its hyper-parameters there too."""
    overrides = [
        f"agent={config.agent}",
        f"env={config.env}",
        f"seed={seed}",
        f"train_frames={config.steps}",
        "env.action_repeat=1",
        "obs=state",
        "eval_every_frames=0",
        "checkpoint_every_frames=0",
        "threads=1",
        "device=cpu",
    ]
    if config.learning_starts_steps is not None:
        overrides.append(f"agent.learning_starts_steps={config.learning_starts_steps}")
    run = resolve.compose(overrides)
    if config.agent != "ppo":
        return run
    return replace(run, agent=run.agent.for_actions(Box(-1, 1)))


def train_rlearly(run: RunConfig) -> tuple[Any, float]:
    """The trained agent, and agent steps a second without evaluation and checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = builder.build(
            run,
            folder,
            make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
            display=Silent(),
            device=torch.device("cpu"),
        )
        loop.run()
        loop.close()
        return loop.agent, loop.steps / loop.elapsed_seconds


def train_sb3(run: RunConfig) -> tuple[Any, float]:
    """The same of Stable-Baselines3."""
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    venv: Any = DummyVecEnv([lambda: builder.make_env(run)])
    own = run.agent
    common = {"gamma": own.discount, "seed": run.seed, "device": "cpu"}
    if run.agent_name == "ppo":
        venv = VecNormalize(venv, gamma=own.discount)
        model: Any = stable_baselines3.PPO("MlpPolicy", venv, **common, **ppo_settings(run))
    else:
        cls = {"td3": stable_baselines3.TD3, "sac": stable_baselines3.SAC}[run.agent_name]
        model = cls("MlpPolicy", venv, **common, **off_policy_settings(run))
    if run.agent_name == "sac":
        own_rates = {
            model.actor.optimizer: own.policy_lr,
            model.critic.optimizer: own.q_lr,
            model.ent_coef_optimizer: own.q_lr,
        }
        for optimizer, rate in own_rates.items():
            optimizer.param_groups[0]["lr"] = rate
        model._update_learning_rate = lambda optimizers: None
    began = time.monotonic()
    model.learn(run.train_frames)
    seconds = time.monotonic() - began
    normal = venv.normalize_obs if run.agent_name == "ppo" else lambda obs: obs
    return Predicting(model, normal), model.num_timesteps / seconds


def ppo_settings(run: RunConfig) -> dict[str, Any]:
    own = run.agent
    rollout = own.rollout_steps / run.train_frames
    return {
        "learning_rate": lambda left: own.lr * min(1.0, left + rollout),
        "n_steps": own.rollout_steps,
        "batch_size": own.rollout_steps // own.minibatches,
        "n_epochs": own.epochs,
        "gae_lambda": own.gae_lambda,
        "clip_range": own.clip,
        "clip_range_vf": own.clip,
        "ent_coef": own.entropy_weight,
        "vf_coef": own.value_weight / 2,
        "max_grad_norm": own.max_grad_norm,
        "policy_kwargs": {
            "net_arch": {"pi": [own.hidden_dim] * 2, "vf": [own.hidden_dim] * 2},
            "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": 1e-5},
        },
    }


def off_policy_settings(run: RunConfig) -> dict[str, Any]:
    from stable_baselines3.common.noise import NormalActionNoise

    own = run.agent
    settings = {
        "learning_starts": own.learning_starts_steps,
        "buffer_size": min(run.replay.capacity, run.train_frames),
        "batch_size": own.batch_size,
        "tau": own.target_tau,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [own.hidden_dim] * 2},
    }
    if run.agent_name == "sac":
        return settings | {"ent_coef": "auto" if own.alpha is None else own.alpha}
    actions = int(np.prod(builder.make_env(run).action_space.shape or ()))
    noise = NormalActionNoise(np.zeros(actions), np.full(actions, own.exploration_noise))
    return settings | {
        "learning_rate": own.lr,
        "policy_delay": own.policy_every_updates,
        "target_policy_noise": own.policy_noise,
        "target_noise_clip": own.noise_clip,
        "action_noise": noise,
    }


def play(agent: Any, run: RunConfig, episodes: int) -> list[float]:
    """Returns of episodes that follow from the run's seed alone."""
    env = builder.make_env(run)
    seeds = Seeds(run.seed).sequence("evaluation")
    returns = evaluate(agent, env, episodes=episodes, seeds=seeds, step=run.train_frames).returns
    env.close()
    return returns


def read(path: Path) -> list[Result]:
    """The finished seeds in a file, none if there is no file.

    Raises:
        ConfigError: it is not a file of this benchmark.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    types = {"int": int, "float": float, "str": str}
    try:
        return [
            Result(**{f.name: types[str(f.type)](row[f.name]) for f in fields(Result)})
            for row in rows
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"out: {path} is no file of this benchmark ({error}).") from None


def append(path: Path, result: Result) -> None:
    """Add one finished seed; the row is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Result)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(result))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Where the mean of such seeds lies with 95 %, by the bootstrap."""
    generator = np.random.default_rng(0)
    means = generator.choice(values, size=(10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def report(results: Sequence[Result]) -> str:
    """A line a seed, and how far the two sides overlap."""
    sides = {s: sorted((r for r in results if r.side == s), key=lambda r: r.seed) for s in SIDES}
    lines = []
    for ours, theirs in zip(*sides.values(), strict=True):
        lines.append(
            f"seed {ours.seed}: rlearly {ours.mean_return:8.1f}   sb3 {theirs.mean_return:8.1f}"
        )
    returns = {s: np.array([r.mean_return for r in found]) for s, found in sides.items()}
    ends = {s: interval(values) for s, values in returns.items()}
    for side, values in returns.items():
        speed = np.median([r.steps_per_second for r in sides[side]])
        low, high = ends[side]
        spread = f"95 % interval {low:.1f} to {high:.1f}" if len(values) > 1 else "one seed only"
        lines.append(f"{side:8} mean {values.mean():8.1f}, {spread}; {speed:.0f} steps/s")
    if len(returns["rlearly"]) == 1:
        return "\n".join(lines)
    ours, theirs = returns["rlearly"][:, None], returns["sb3"][None]
    better = float((ours > theirs).mean() + (ours == theirs).mean() / 2)
    shared = min(e[1] for e in ends.values()) - max(e[0] for e in ends.values())
    lines.append(
        f"the intervals {'overlap' if shared >= 0 else 'do not overlap'}; a seed of rlearly is "
        f"above one of sb3 in {better:.0%} of pairs (50 % when alike)"
    )
    return "\n".join(lines)


def compare(config: StudentsConfig) -> list[Result]:
    """Run what is not in `out` yet, and return all that was asked for."""
    torch.set_num_threads(1)
    path = Path(config.out)
    done = {result.key: result for result in read(path)}
    wanted = []
    for seed in range(config.seeds):
        run = run_config(config, seed)
        if config.agent == "ppo":
            rollout = run.agent.rollout_steps
            run = replace(run, train_frames=max(1, config.steps // rollout) * rollout)
        for side, train in zip(SIDES, (train_rlearly, train_sb3), strict=True):
            begun = Result(
                agent=config.agent,
                env=config.env,
                steps=run.train_frames,
                learning_starts_steps=run.agent.seed_frames(1),
                episodes=config.episodes,
                side=side,
                seed=seed,
                mean_return=0.0,
                std_return=0.0,
                steps_per_second=0.0,
            )
            if begun.key not in done:
                agent, speed = train(run)
                returns = play(agent, run, config.episodes)
                done[begun.key] = replace(
                    begun,
                    mean_return=round(float(np.mean(returns)), 3),
                    std_return=round(float(np.std(returns)), 3),
                    steps_per_second=round(speed, 1),
                )
                append(path, done[begun.key])
            wanted.append(done[begun.key])
            print(
                f"{side:8} seed {seed}: return {wanted[-1].mean_return:.1f} over "
                f"{config.episodes} episodes, {wanted[-1].steps_per_second:.0f} steps/s",
                flush=True,
            )
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in overrides or "-h" in overrides:
        print(f"{__doc__}\n{KEYS}", *key_lines(StudentsConfig), sep="\n")
        return 0
    try:
        results = compare(from_overrides(StudentsConfig(), overrides))
    except ConfigError as error:
        print(f"students: {error}", file=sys.stderr)
        return 2
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
