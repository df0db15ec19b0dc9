"""Plain whole loops, as the usual single-file implementations write them, an env step a `next`.

TD3, SAC and PPO follow CleanRL's documented order of operations: gymnasium's vector env of one copy
with recorded episode statistics, Stable-Baselines3's replay buffer, torch's Adam, nothing compiled,
TensorBoard's scalars every 100 steps. DrM and DrQ-v2 follow the official loop: dm_control stepped
and rendered directly, frames stacked before they are stored, batches put together sample by sample
from whole episodes. DrQ(eps) acts, stores, samples and updates at every step, with
Stable-Baselines3's n-step replay buffer. The learners are those of plain.py; PPO's is here.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import discrete
import gymnasium
import numpy as np
import plain
import torch
from torch import Tensor, nn

from rlearly.core.types import Batch

DISCOUNT = 0.99
LOG_EVERY_STEPS = 100


# --- off policy, from states ---


def vector_env(env_id: str, *, normalised: bool = False) -> Any:
    """One copy, which starts again in the step that ends an episode, as gymnasium used to."""

    def make() -> gymnasium.Env:
        env = gymnasium.make(env_id)
        if normalised:
            env = gymnasium.wrappers.FlattenObservation(env)
        env = gymnasium.wrappers.RecordEpisodeStatistics(env)
        if not normalised:
            return env
        env = gymnasium.wrappers.ClipAction(env)
        env = gymnasium.wrappers.NormalizeObservation(env)
        env = gymnasium.wrappers.TransformObservation(
            env, lambda obs: np.clip(obs, -10, 10), env.observation_space
        )
        env = gymnasium.wrappers.NormalizeReward(env, gamma=DISCOUNT)
        return gymnasium.wrappers.TransformReward(
            env, lambda reward: float(np.clip(float(reward), -10, 10))
        )

    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    return gymnasium.vector.SyncVectorEnv([make], autoreset_mode=same_step)


def off_policy(agent: str, env_id: str, *, starts_steps: int, folder: Path) -> Iterator[None]:
    """TD3's or SAC's loop: act, step, store, sample 256, update, at every step."""
    from stable_baselines3.common.buffers import ReplayBuffer
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))
    envs = vector_env(env_id)
    space, actions = envs.single_observation_space, envs.single_action_space
    space.dtype = np.float32
    sizes = (math.prod(space.shape), math.prod(actions.shape))
    learner: Any = {"td3": plain.TD3, "sac": plain.SAC}[agent](*sizes)
    bound = torch.tensor(actions.high)
    replay = ReplayBuffer(10**6, space, actions, "cpu", handle_timeout_termination=False)
    obs, _ = envs.reset(seed=0)
    step = 0
    while True:
        if step < starts_steps:
            action = np.array([actions.sample()])
        else:
            with torch.no_grad():
                seen = torch.Tensor(obs)
                if agent == "td3":
                    played = learner.actor(seen) * bound
                    played += torch.normal(0, bound * 0.1)
                else:
                    played = learner.act(seen)[0] * bound
            action = played.numpy().clip(actions.low, actions.high)
        next_obs, reward, terminated, truncated, infos = envs.step(action)
        stored = next_obs.copy()
        for env_index, over in enumerate(truncated):
            if over:
                stored[env_index] = infos["final_obs"][env_index]
        replay.add(obs, stored, action, reward, terminated, [{}])
        obs = next_obs
        if step >= starts_steps:
            rows = replay.sample(256)
            goes_on = (1 - rows.dones) * DISCOUNT
            batch = Batch(
                rows.observations, rows.actions, rows.rewards, goes_on, rows.next_observations
            )
            metrics = learner.update(batch)
            if step % LOG_EVERY_STEPS == 0:
                for name, value in metrics.items():
                    writer.add_scalar(f"losses/{name}", value.item(), step)
        step += 1
        yield


# --- discrete actions ---


def q_learning(case: str, env_id: str, *, starts_steps: int, folder: Path) -> Iterator[None]:
    """drq_eps's loop: act, step, store, sample, update, at every step."""
    from stable_baselines3.common.buffers import NStepReplayBuffer
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))
    env, config = discrete.make_env(env_id), discrete.agent_config(case, env_id)
    actions: Any = env.action_space
    learner = plain.DrQEps(config, env.observation_space.shape or (), int(actions.n))
    replay = NStepReplayBuffer(
        discrete.CAPACITY,
        env.observation_space,
        actions,
        "cpu",
        n_steps=config.nstep,
        gamma=config.discount,
    )
    obs, _ = env.reset(seed=0)
    step = 0
    while True:
        if step < starts_steps or random.random() < discrete.EPSILON:
            action = actions.sample()
        else:
            with torch.no_grad():
                action = learner.act(torch.as_tensor(obs).unsqueeze(0)).numpy()[0]
        next_obs, reward, terminated, truncated, _ = env.step(action)
        is_over, info = terminated or truncated, {"TimeLimit.truncated": truncated}
        row = (np.array([action]), np.array([reward]), np.array([is_over]))
        replay.add(obs, next_obs, *row, [info])
        obs = env.reset()[0] if is_over else next_obs
        if step >= starts_steps:
            rows = replay.sample(config.batch_size)
            goes_on = (1 - rows.dones) * torch.as_tensor(rows.discounts)
            action = rows.actions.flatten()
            metrics = learner.update(
                Batch(rows.observations, action, rows.rewards, goes_on, rows.next_observations)
            )
            if step % LOG_EVERY_STEPS == 0:
                for name, value in metrics.items():
                    writer.add_scalar(f"losses/{name}", value.item(), step)
        step += 1
        yield


# --- PPO ---


def tanh_layers(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64, orthogonal weights of gain sqrt(2), the last one's of `gain`."""
    layers: list[nn.Module] = []
    for before, after, scale in ((inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, gain)):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, scale)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class PPO(nn.Module):
    """With CleanRL's sizes."""

    def __init__(self, state: int = 17, actions: int = 6):
        super().__init__()
        self.critic = tanh_layers(state, 1, 1.0)
        self.mean = tanh_layers(state, actions, 0.01)
        self.log_std = nn.Parameter(torch.zeros(1, actions))

    def judge(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        """An action (drawn unless given), its log-probability, the entropy and the value."""
        mean = self.mean(obs)
        normal = torch.distributions.Normal(mean, self.log_std.expand_as(mean).exp())
        if action is None:
            action = normal.sample()
        density, entropy = normal.log_prob(action).sum(1), normal.entropy().sum(1)
        return action, density, entropy, self.critic(obs)


def ppo(env_id: str, *, folder: Path, train_steps: int) -> Iterator[None]:
    """2048 steps of one copy, ten epochs of 32 minibatches, a rate that falls to 0."""
    from tensorboardX import SummaryWriter

    steps, epochs, size = 2048, 10, 64
    writer = SummaryWriter(str(folder))
    envs = vector_env(env_id, normalised=True)
    shape = (envs.single_observation_space.shape, envs.single_action_space.shape)
    learner = PPO(math.prod(shape[0]), math.prod(shape[1]))
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4, eps=1e-5)
    obs, actions = (torch.zeros((steps, 1, *one)) for one in shape)
    densities, rewards, overs, values = (torch.zeros((steps, 1)) for _ in range(4))
    first, _ = envs.reset(seed=0)
    seen, over = torch.Tensor(first), torch.zeros(1)
    for rollout in range(10**9):
        optimizer.param_groups[0]["lr"] = 3e-4 * max(0.0, 1 - rollout * steps / train_steps)
        for step in range(steps):
            obs[step], overs[step] = seen, over
            with torch.no_grad():
                action, density, _, value = learner.judge(seen)
                values[step] = value.flatten()
            actions[step], densities[step] = action, density
            after, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[step] = torch.tensor(reward).view(-1)
            seen, over = torch.Tensor(after), torch.Tensor(np.logical_or(terminated, truncated))
            if step < steps - 1:
                yield
        with torch.no_grad():
            next_value = learner.critic(seen).reshape(1, -1)
            advantages, last = torch.zeros_like(rewards), torch.zeros(1)
            for t in reversed(range(steps)):
                more = 1.0 - (over if t == steps - 1 else overs[t + 1])
                following = next_value if t == steps - 1 else values[t + 1]
                error = rewards[t] + DISCOUNT * following * more - values[t]
                last = error + DISCOUNT * 0.95 * more * last
                advantages[t] = last
            returns = advantages + values
        flat = [x.reshape(-1, *x.shape[2:]) for x in (obs, actions, densities, advantages, returns)]
        told = minibatches(learner, optimizer, flat, values.reshape(-1), epochs, size)
        for name, number in told.items():
            writer.add_scalar(f"losses/{name}", number, rollout * steps)
        yield


def minibatches(
    learner: PPO, optimizer: Any, flat: list[Tensor], values: Tensor, epochs: int, size: int
) -> dict[str, float]:
    """The gradient steps of one rollout."""
    obs, actions, densities, advantages, returns = flat
    rows, clipped = np.arange(len(obs)), []
    told: dict[str, float] = {}
    for _ in range(epochs):
        np.random.shuffle(rows)  # noqa: NPY002
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            _, density, entropy, value = learner.judge(obs[part], actions[part])
            log_ratio = density - densities[part]
            ratio = log_ratio.exp()
            with torch.no_grad():
                kl = ((ratio - 1) - log_ratio).mean()
                clipped.append(((ratio - 1.0).abs() > 0.2).float().mean().item())
            scaled = advantages[part]
            scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
            policy = torch.max(-scaled * ratio, -scaled * torch.clamp(ratio, 0.8, 1.2)).mean()
            value, old = value.view(-1), values[part]
            near = old + torch.clamp(value - old, -0.2, 0.2)
            both = torch.max((value - returns[part]) ** 2, (near - returns[part]) ** 2)
            value_loss = 0.5 * both.mean()
            loss = policy - 0.0 * entropy.mean() + value_loss * 0.5
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), 0.5)
            optimizer.step()
            told = {"policy": policy.item(), "value": value_loss.item(), "kl": kl.item()}
    return told | {"clipped": float(np.mean(clipped))}


# --- from images ---


class Suite:
    """A dm_control task, each action taken twice, seen as three stacked pictures of 84 x 84."""

    def __init__(self, name: str):
        from rlearly.envs.dm_control import suite_tasks

        domain, task = suite_tasks()[name]
        from dm_control import suite

        self.env: Any = suite.load(domain, task, task_kwargs={"random": 0})
        self.camera = 2 if domain == "quadruped" else 0
        self.actions = self.env.action_spec().shape[0]
        self.frames: deque[np.ndarray] = deque(maxlen=3)

    def _stack(self, num_envs: int) -> np.ndarray:
        picture = self.env.physics.render(84, 84, camera_id=self.camera)
        for _ in range(num_envs):
            self.frames.append(picture.transpose(2, 0, 1).copy())
        return np.concatenate(list(self.frames), axis=0)

    def reset(self) -> np.ndarray:
        self.env.reset()
        return self._stack(3)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        reward, over = 0.0, False
        for _ in range(2):
            time_step = self.env.step(action)
            reward += time_step.reward or 0.0
            over = time_step.last()
            if over:
                break
        return self._stack(1), reward, over


class OfficialReplay:
    """Episodes whole, each observation a stack; a batch is put together sample by sample."""

    def __init__(self, nstep: int = 3):
        self.nstep = nstep
        self.episodes: list[dict[str, np.ndarray]] = []
        self.running: dict[str, list[Any]] = {}

    def begin(self, obs: np.ndarray, actions: int) -> None:
        self.running = {
            "obs": [obs],
            "action": [np.zeros(actions, np.float32)],
            "reward": [np.zeros(1, np.float32)],
        }

    def add(self, action: np.ndarray, reward: float, obs: np.ndarray) -> None:
        self.running["obs"].append(obs)
        self.running["action"].append(action)
        self.running["reward"].append(np.full(1, reward, np.float32))

    def end(self) -> None:
        self.episodes.append({name: np.array(rows) for name, rows in self.running.items()})

    def one(self) -> tuple[np.ndarray, ...]:
        episode = random.choice(self.episodes)
        at = random.randrange(1, len(episode["obs"]) - self.nstep + 1)
        reward, discount = np.zeros(1, np.float32), np.ones(1, np.float32)
        for ahead in range(self.nstep):
            reward += discount * episode["reward"][at + ahead]
            discount *= np.float32(DISCOUNT)
        next_obs = episode["obs"][at + self.nstep - 1]
        return episode["obs"][at - 1], episode["action"][at], reward, discount, next_obs

    def sample(self, size: int) -> Batch:
        columns = zip(*(self.one() for _ in range(size)), strict=True)
        return Batch(*(torch.from_numpy(np.stack(column)) for column in columns))


def visual(
    agent: str, task: str, *, starts_steps: int, feature_dim: int, folder: Path
) -> Iterator[None]:
    """The official loop: an update of 256 in every second step."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))
    env, replay = Suite(task), OfficialReplay()
    drm = agent == "drm"
    learner = plain.Visual(drm=drm, actions=env.actions, feature_dim=feature_dim)
    obs = env.reset()
    replay.begin(obs, env.actions)
    step = 0
    while True:
        if step < starts_steps:
            action = np.random.uniform(-1, 1, env.actions).astype(np.float32)  # noqa: NPY002
        else:
            with torch.no_grad():
                features = learner.encoder(torch.as_tensor(obs).unsqueeze(0))
                action = learner.sample(learner.actor(features), 0.2).numpy()[0]
        if step >= starts_steps and step % 2 == 0:
            metrics = learner.update(replay.sample(256))
            for name, value in metrics.items():
                writer.add_scalar(name, value, 2 * step)
        obs, reward, over = env.step(action)
        replay.add(action, reward, obs)
        step += 1
        if over or step == starts_steps:  # the first episode is cut short, so that there is one
            replay.end()
            obs = env.reset()
            replay.begin(obs, env.actions)
        yield
