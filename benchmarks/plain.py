"""Plain baselines of the agents' updates: the published operations, written straightforwardly.

They have the architecture, sizes and order of operations of the official code (DrQ-v2, DrM,
DrQ(eps)) and of the usual single-file implementations (TD3, SAC), and none of what rlearly does to
be faster: images as floats in NCHW, bilinear augmentation (DrQ(eps): crops), a forward pass
wherever a value is wanted, gradients of whatever backward reaches, one optimizer a network
(DrQ(eps): one for both), losses read out at every update.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.core.types import Batch


def heads(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )


def trunk(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.Tanh())


def bilinear_shift(images: Tensor, pad: int) -> Tensor:
    """Random shifts through a sampling grid (arXiv 2107.09645, section 3.1)."""
    count, _, size, _ = images.shape
    padded = F.pad(images, (pad,) * 4, "replicate")
    step = 2.0 / (size + 2 * pad)
    line = torch.linspace(-1.0 + step / 2, 1.0 - step / 2, size + 2 * pad)[:size]
    grid = torch.stack([line[None].expand(size, -1), line[:, None].expand(-1, size)], dim=-1)
    shift = torch.randint(0, 2 * pad + 1, (count, 1, 1, 2)) * step
    return F.grid_sample(padded, grid[None] + shift, padding_mode="zeros", align_corners=False)


class Encoder(nn.Module):
    def __init__(self, channels: int = 9):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, stride in ((channels, 2), (32, 1), (32, 1), (32, 1)):
            layers += [nn.Conv2d(inputs, 32, 3, stride=stride), nn.ReLU()]
        self.convnet = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        return self.convnet(obs / 255.0 - 0.5).flatten(1)


class Actor(nn.Module):
    def __init__(self, features: int, actions: int, feature_dim: int, hidden: int):
        super().__init__()
        self.trunk = trunk(features, feature_dim)
        self.policy = heads(feature_dim, hidden, actions)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.policy(self.trunk(features)))


class Critic(nn.Module):
    def __init__(self, features: int, actions: int, feature_dim: int, hidden: int):
        super().__init__()
        self.trunk = trunk(features, feature_dim)
        self.q1 = heads(feature_dim + actions, hidden, 1)
        self.q2 = heads(feature_dim + actions, hidden, 1)

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.trunk(features), action], dim=-1)
        return self.q1(joined), self.q2(joined)


class Visual:
    """DrQ-v2 and, with `drm`, its dormancy, value net and mixed target."""

    def __init__(self, *, drm: bool, actions: int = 38, feature_dim: int = 100, hidden: int = 1024):
        self.drm = drm
        features = 32 * 35 * 35
        self.encoder = Encoder()
        self.actor = Actor(features, actions, feature_dim, hidden)
        self.critic = Critic(features, actions, feature_dim, hidden)
        self.target = copy.deepcopy(self.critic)
        self.value = nn.Sequential(trunk(features, feature_dim), heads(feature_dim, hidden, 1))
        nets = (self.encoder, self.actor, self.critic, self.value)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=1e-4) for net in nets]

    def dormant_ratio(self, features: Tensor) -> float:
        """A forward pass of its own, watched by hooks."""
        outputs: list[Tensor] = []
        linears = [layer for layer in self.actor.modules() if isinstance(layer, nn.Linear)]

        def note(module: nn.Module, given: Any, output: Any) -> None:
            outputs.append(output)

        hooks = [layer.register_forward_hook(note) for layer in linears]
        with torch.no_grad():
            self.actor(features)
        for hook in hooks:
            hook.remove()
        dormant = total = 0
        for output in outputs:
            score = output.abs().mean(0)
            dormant += int((score / score.mean() < 0.025).sum().item())
            total += score.numel()
        return dormant / total

    @staticmethod
    def sample(mean: Tensor, std: float) -> Tensor:
        noise = (torch.randn_like(mean) * std).clamp(-0.3, 0.3)
        action = mean + noise
        return action - action.detach() + action.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    def update(self, batch: Batch) -> dict[str, Any]:
        encoder_step, actor_step, critic_step, value_step = self.optimizers
        metrics: dict[str, float] = {"batch_reward": batch.reward.mean().item()}
        obs = self.encoder(bilinear_shift(batch.obs.float(), 4))
        with torch.no_grad():
            next_obs = self.encoder(bilinear_shift(batch.next_obs.float(), 4))
        std, share = 0.2, 0.0
        if self.drm:
            dormancy = self.dormant_ratio(obs.detach())
            share = 0.6 * float(torch.sigmoid(torch.tensor(-50 * (dormancy - 0.2))))
            metrics |= {"dormancy": dormancy, **self.fit_value(obs.detach(), batch, value_step)}
        with torch.no_grad():
            next_action = self.sample(self.actor(next_obs), std)
            goal = torch.min(*self.target(next_obs, next_action))
            if self.drm:
                goal = share * self.value(next_obs) + (1 - share) * goal
            goal = batch.reward + batch.discount * goal
        q1, q2 = self.critic(obs, batch.action)
        loss = F.mse_loss(q1, goal) + F.mse_loss(q2, goal)
        metrics |= {"q1": q1.mean().item(), "q2": q2.mean().item(), "critic": loss.item()}
        encoder_step.zero_grad(set_to_none=True)
        critic_step.zero_grad(set_to_none=True)
        loss.backward()
        critic_step.step()
        encoder_step.step()
        seen = obs.detach()
        action = self.sample(self.actor(seen), std)
        actor_loss = -torch.min(*self.critic(seen, action)).mean()
        actor_step.zero_grad(set_to_none=True)
        actor_loss.backward()
        actor_step.step()
        metrics["actor"] = actor_loss.item()
        follow(self.critic, self.target, 0.01)
        return metrics

    def fit_value(self, obs: Tensor, batch: Batch, optimizer: Any) -> dict[str, float]:
        with torch.no_grad():
            q = torch.min(*self.critic(obs, batch.action))
        error = q - self.value(obs)
        loss = (torch.where(error > 0, 0.9, 0.1) * error**2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"value": loss.item()}


def follow(leader: nn.Module, follower: nn.Module, tau: float) -> None:
    for theirs, own in zip(leader.parameters(), follower.parameters(), strict=True):
        own.data.copy_(tau * theirs.data + (1 - tau) * own.data)


class TD3:
    """With CleanRL's sizes: 256 x 256, batch 256, the actor in every second update."""

    def __init__(self, state: int = 17, actions: int = 6):
        self.actor = nn.Sequential(heads(state, 256, actions), nn.Tanh())
        self.q = nn.ModuleList([heads(state + actions, 256, 1) for _ in range(2)])
        self.actor_target, self.q_target = copy.deepcopy(self.actor), copy.deepcopy(self.q)
        self.actor_step = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.q_step = torch.optim.Adam(self.q.parameters(), lr=3e-4)
        self.turns = itertools.count()

    def update(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            noise = (torch.randn_like(batch.action) * 0.2).clamp(-0.5, 0.5)
            action = (self.actor_target(batch.next_obs) + noise).clamp(-1, 1)
            both = [q(torch.cat([batch.next_obs, action], 1)) for q in self.q_target]
            goal = batch.reward + batch.discount * torch.min(*both)
        values = [q(torch.cat([batch.obs, batch.action], 1)) for q in self.q]
        loss = F.mse_loss(values[0], goal) + F.mse_loss(values[1], goal)
        self.q_step.zero_grad()
        loss.backward()
        self.q_step.step()
        if next(self.turns) % 2 == 0:
            actor_loss = -self.q[0](torch.cat([batch.obs, self.actor(batch.obs)], 1)).mean()
            self.actor_step.zero_grad()
            actor_loss.backward()
            self.actor_step.step()
            follow(self.actor, self.actor_target, 0.005)
            follow(self.q, self.q_target, 0.005)
        return {"loss": loss.detach()}  # read out now and then


class SAC:
    """With CleanRL's sizes: 256 x 256, batch 256, two actor steps in every second update."""

    def __init__(self, state: int = 17, actions: int = 6):
        self.body = nn.Sequential(nn.Linear(state, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mean, self.log_std = nn.Linear(256, actions), nn.Linear(256, actions)
        self.q = nn.ModuleList([heads(state + actions, 256, 1) for _ in range(2)])
        self.q_target = copy.deepcopy(self.q)
        self.log_alpha = nn.Parameter(torch.zeros(1))
        own = [*self.body.parameters(), *self.mean.parameters(), *self.log_std.parameters()]
        self.actor_step = torch.optim.Adam(own, lr=3e-4)
        self.q_step = torch.optim.Adam(self.q.parameters(), lr=1e-3)
        self.alpha_step = torch.optim.Adam([self.log_alpha], lr=1e-3)
        self.turns = itertools.count()

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(obs)
        log_std = -5 + 0.5 * 7 * (torch.tanh(self.log_std(hidden)) + 1)
        normal = torch.distributions.Normal(self.mean(hidden), log_std.exp())
        raw = normal.rsample()
        action = torch.tanh(raw)
        density = normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)
        return action, density.sum(1, keepdim=True)

    def update(self, batch: Batch) -> dict[str, Any]:
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            action, density = self.act(batch.next_obs)
            both = [q(torch.cat([batch.next_obs, action], 1)) for q in self.q_target]
            goal = batch.reward + batch.discount * (torch.min(*both) - alpha * density)
        values = [q(torch.cat([batch.obs, batch.action], 1)) for q in self.q]
        loss = F.mse_loss(values[0], goal) + F.mse_loss(values[1], goal)
        self.q_step.zero_grad()
        loss.backward()
        self.q_step.step()
        if next(self.turns) % 2 == 0:
            for _ in range(2):
                action, density = self.act(batch.obs)
                both = [q(torch.cat([batch.obs, action], 1)) for q in self.q]
                actor_loss = (alpha * density - torch.min(*both)).mean()
                self.actor_step.zero_grad()
                actor_loss.backward()
                self.actor_step.step()
                with torch.no_grad():
                    _, density = self.act(batch.obs)
                alpha_loss = (-self.log_alpha.exp() * (density - batch.action.shape[1])).mean()
                self.alpha_step.zero_grad()
                alpha_loss.backward()
                self.alpha_step.step()
                alpha = self.log_alpha.exp().item()
        follow(self.q, self.q_target, 0.005)
        return {"loss": loss.detach()}


# --- discrete actions ---


def atari_convnet(channels: int = 4) -> nn.Sequential:
    """Dopamine's convolutions with SAME padding: [B, C, 84, 84] -> [B, 64 * 11 * 11]."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4, padding=2),
        nn.ReLU(),
        nn.ZeroPad2d((1, 2, 1, 2)),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )


def random_crop(images: Tensor, pad: int) -> Tensor:
    """Crops of padded images, at offsets below 2 * pad."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pad,) * 4, "replicate")
    offsets = torch.randint(0, 2 * pad, (len(images), 2)).tolist()
    crops = [
        image[:, y : y + height, x : x + width]
        for image, (x, y) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(crops)


class DuelingQ(nn.Module):
    def __init__(self, shape: tuple[int, ...], actions: int, hidden: int):
        super().__init__()
        if len(shape) == 3:
            self.hidden = nn.Sequential(atari_convnet(), nn.Linear(64 * 11 * 11, hidden), nn.ReLU())
        else:
            layers = (nn.Linear(shape[0], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            self.hidden = nn.Sequential(*layers)
        self.value, self.advantage = nn.Linear(hidden, 1), nn.Linear(hidden, actions)

    def forward(self, obs: Tensor) -> Tensor:
        hidden = self.hidden(obs)
        advantage = self.advantage(hidden)
        return self.value(hidden) + advantage - advantage.mean(1, keepdim=True)


class DrQEps:
    """Dopamine's DrQ(eps) from images, or from states without augmentation.

    config: drq_eps's. shape: of an observation.
    """

    def __init__(self, config: Any, shape: tuple[int, ...], actions: int):
        self.images, self.target_every_updates = len(shape) == 3, config.target_every_updates
        self.online = DuelingQ(shape, actions, config.hidden_dim)
        self.target = copy.deepcopy(self.online)
        self.step = torch.optim.Adam(self.online.parameters(), lr=config.lr, eps=config.adam_eps)
        self.turns = itertools.count(1)

    def augment(self, obs: Tensor) -> Tensor:
        if not self.images:
            return obs
        factors = 1 + 0.05 * torch.randn(len(obs), 1, 1, 1).clamp(-2, 2)
        return random_crop(obs.float() / 255.0, 4) * factors

    def act(self, obs: Tensor) -> Tensor:
        """The best actions [B] for observations [B, *O]."""
        return self.online(obs / 255.0 if self.images else obs).argmax(1)

    def update(self, batch: Batch) -> dict[str, Any]:
        obs, next_obs = self.augment(batch.obs), self.augment(batch.next_obs)
        with torch.no_grad():
            best = self.online(next_obs).argmax(1, keepdim=True)
            goal = batch.reward + batch.discount * self.target(next_obs).gather(1, best)
        loss = F.huber_loss(self.online(obs).gather(1, batch.action[:, None]), goal)
        self.step.zero_grad()
        loss.backward()
        self.step.step()
        if next(self.turns) % self.target_every_updates == 0:
            self.target.load_state_dict(self.online.state_dict())
        return {"loss": loss.detach()}  # read out now and then


BASELINES = {
    "drqv2": lambda: Visual(drm=False),
    "drm": lambda: Visual(drm=True),
    "td3": TD3,
    "sac": SAC,
}
