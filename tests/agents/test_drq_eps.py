"""DrQ(eps) against Dopamine's own numbers, and against literal formulas."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete
from reference import REFERENCE, needs_reference

from rlearly.agents import drq_eps
from rlearly.core.errors import ConfigError
from rlearly.core.types import Batch, EnvSpec
from rlearly.nn.augmentation import intensity_factors, shift
from rlearly.nn.precision import ComputeOptions
from rlearly.system.seeding import Seeds

CPU = torch.device("cpu")
GAMMA_N = 0.9043820750088044
PIXELS = EnvSpec(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), 4)
SMALL = EnvSpec(Box(0, 255, (4, 20, 24), np.uint8), Discrete(3), 4)
STATES = EnvSpec(Box(-np.inf, np.inf, (5,), np.float32), Discrete(3), 1)


def make(spec, *, kernels=True, seed=0, **settings):
    return drq_eps.SPEC.make(
        drq_eps.Config(**settings),
        spec,
        seeds=Seeds(seed),
        device=CPU,
        compute=ComputeOptions(kernels=kernels),
    )


def nchw(images):
    """Official [B, H, W, C] as our [B, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def official():
    return np.load(Path(REFERENCE) / "drq_eps_update.npz")


# --- three updates ---


def official_weights(meta, seed):
    """The test weights that the reference's `weight_formula` describes."""
    generator = np.random.default_rng(seed)
    found = []
    for name, shape in zip(meta["param_order"], meta["param_shapes"], strict=True):
        if name.endswith("kernel"):
            field = int(np.prod(shape[:-2]))
            bound = np.sqrt(6 / (field * shape[-2] + field * shape[-1]))
            found.append(generator.uniform(-bound, bound, shape).astype(np.float32))
        else:
            found.append(generator.normal(0, 0.05, shape).astype(np.float32))
    return found


def parameters(agent, suffix=""):
    """Our tensors, as views in the official layout and order: HWIO, [in, out], advantage, value."""
    encoder, critic = agent.networks[f"encoder{suffix}"], agent.networks[f"critic{suffix}"]
    found = []
    for layer in encoder.convolutions[::2]:
        found += [layer.weight.detach().permute(2, 3, 1, 0), layer.bias.detach()]
    hidden, output = critic.q[0], critic.q[2]
    found += [hidden.weight.detach().T, hidden.bias.detach()]
    for rows in (slice(1, None), slice(0, 1)):
        found += [output.weight.detach()[rows].T, output.bias.detach()[rows]]
    return found


def gradients(agent):
    encoder, critic = agent.networks["encoder"], agent.networks["critic"]
    found = []
    for layer in encoder.convolutions[::2]:
        found += [layer.weight.grad.permute(2, 3, 1, 0), layer.bias.grad]
    hidden, output = critic.q[0], critic.q[2]
    found += [hidden.weight.grad.T, hidden.bias.grad]
    for rows in (slice(1, None), slice(0, 1)):
        found += [output.weight.grad[rows].T, output.bias.grad[rows]]
    return found


def check_summary(own, wanted, *, rtol, atol):
    """Sums and first values of each tensor against the reference's summary of it."""
    for number, (tensor, summary) in enumerate(zip(own, wanted, strict=True)):
        values = tensor.double().reshape(-1)
        size = float(values.abs().sum())
        assert abs(float(values.sum()) - summary[0]) < rtol * size + 1e-7, number
        sums = [values.abs().sum(), values.square().sum()]
        np.testing.assert_allclose(sums, summary[1:3], rtol=10 * rtol, err_msg=str(number))
        first = summary[3:][~np.isnan(summary[3:])]
        np.testing.assert_allclose(values[: len(first)], first, atol=atol, err_msg=str(number))


@needs_reference
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("run", ["a", "b"])
def test_three_updates_equal_the_official_code(official, run, kernels):
    """Run a is the official one; in run b the target is another network, never synced."""
    meta = json.loads(bytes(official["meta"]))
    own_target = {"target_every_updates": 10**9} if run == "b" else {}
    agent = make(PIXELS, kernels=kernels, shift_pixels=0, intensity=0.0, **own_target)
    networks = [("online", "")] + [("target", "_target")] * (run == "b")
    for network, suffix in networks:
        weights = official_weights(meta, meta["seeds"][f"{run}_{network}"])
        for own, value in zip(parameters(agent, suffix), weights, strict=True):
            own.copy_(torch.from_numpy(value))
    check_summary(parameters(agent), official[f"{run}_weights"][0], rtol=1e-6, atol=1e-7)

    for i in range(3):
        obs, next_obs = (nchw(official[f"batch_{key}"][i]) for key in ("state", "next_state"))
        action = torch.from_numpy(official["batch_action"][i]).long()
        reward = torch.from_numpy(official["batch_reward"][i])[:, None]
        ends = torch.from_numpy(official["batch_terminal"][i])[:, None]
        batch = Batch(obs, action, reward, GAMMA_N * (1.0 - ends.float()), next_obs)
        with torch.no_grad():
            for images, key in ((obs, "online_state"), (next_obs, "online_next")):
                q = agent.critic(agent.encoder(images))
                np.testing.assert_allclose(q, official[f"{run}_q_{key}"][i], atol=1e-5)
            target = agent._target_q(batch, agent._augment(next_obs))[:, 0]
        np.testing.assert_allclose(target, official[f"{run}_target"][i], atol=1e-5)
        metrics = agent.update(batch, step=2000 + i)
        wanted = float(official[f"{run}_loss_mean"][i])
        assert float(metrics["loss/critic"]) == pytest.approx(wanted, rel=1e-5)
        check_summary(gradients(agent), official[f"{run}_grads"][i], rtol=2e-5, atol=2e-5)
        check_summary(parameters(agent), official[f"{run}_weights"][i + 1], rtol=2e-5, atol=2e-6)


@needs_reference
def test_epsilon_equals_the_official_schedule(official):
    agent = make(STATES)
    for step, wanted in zip(official["eps_step"], official["eps_value"], strict=True):
        assert agent.epsilon(int(step) - 1600) == pytest.approx(wanted, abs=1e-6)


# --- augmentation ---


@needs_reference
def test_augmentation_with_given_numbers_equals_the_official_code(official):
    def shifted(kind):
        offsets = np.stack([official[f"{kind}_col"], official[f"{kind}_row"]], 1).astype(np.int64)
        return shift(nchw(official[f"{kind}_in"]), torch.from_numpy(offsets), 4)

    np.testing.assert_allclose(shifted("shift") / 255.0, nchw(official["shift_out"]), atol=1e-6)
    noise = torch.from_numpy(official["intensity_r"]).flatten()
    brighter = nchw(official["intensity_in"]) / 255.0 * intensity_factors(noise, 0.05)
    np.testing.assert_allclose(brighter, nchw(official["intensity_out"]), atol=1e-6)
    noise = torch.from_numpy(official["full_r"]).flatten()
    both = shifted("full") / 255.0 * intensity_factors(noise, 0.05)
    np.testing.assert_allclose(both, nchw(official["full_out"]), atol=1e-6)
    assert not np.array_equal(shifted("full"), nchw(official["full_in"]))


@needs_reference
def test_offsets_are_drawn_from_the_official_range(official, monkeypatch):
    """0 to 7: an offset of 8, the largest that the padding allows, is never drawn."""
    seen = []

    def spy(images, offsets, pad):
        seen.append(offsets)
        return shift(images, offsets, pad)

    monkeypatch.setattr(drq_eps, "shift", spy)
    agent = make(EnvSpec(Box(0, 255, (4, 8, 8), np.uint8), Discrete(2), 1), encoder_channels=2)
    for _ in range(20):
        agent._augment(torch.zeros((64, 4, 8, 8), dtype=torch.uint8))
    drawn = torch.cat(seen)
    assert [int(drawn.min()), int(drawn.max())] == official["offset_range"].tolist()
    assert set(drawn.flatten().tolist()) == set(range(8))


def test_an_image_and_its_next_are_augmented_apart_and_all_frames_of_a_stack_alike():
    agent = make(SMALL, encoder_channels=2)
    frame = torch.randint(256, (1, 20, 24), dtype=torch.uint8, generator=torch.manual_seed(0))
    stacks = frame.repeat(4, 1, 1)[None].repeat(8, 1, 1, 1)
    one, other = agent._augment(stacks), agent._augment(stacks)
    assert (one == one[:, :1]).all()
    assert (one[1:] != one[:1]).any() and (one != other).any()


# --- literal formulas ---


def test_padding_is_same_as_dopamines():
    """One extra zero at the end where the number is odd: 84 -> 21 -> 11 -> 11."""
    agent = make(PIXELS, kernels=False, hidden_dim=4)
    x = torch.rand(2, 4, 84, 84, generator=torch.manual_seed(0))
    first, second, third = agent.encoder.convolutions[::2]
    y = F.relu(F.conv2d(F.pad(x, (2, 2, 2, 2)), first.weight, first.bias, 4))
    assert y.shape[2:] == (21, 21)
    y = F.relu(F.conv2d(F.pad(y, (1, 2, 1, 2)), second.weight, second.bias, 2))
    y = F.relu(F.conv2d(F.pad(y, (1, 1, 1, 1)), third.weight, third.bias, 1))
    assert y.shape == (2, 64, 11, 11)
    wanted = y.permute(0, 2, 3, 1).reshape(2, 7744)
    with torch.no_grad():
        np.testing.assert_allclose(agent.encoder(x), wanted.detach(), atol=1e-6)


def test_weights_are_xavier_uniform_with_value_and_advantage_apart():
    agent = make(EnvSpec(PIXELS.observation, Discrete(18), 4), seed=3)
    first, hidden, output = agent.encoder.convolutions[0], agent.critic.q[0], agent.critic.q[2]
    bounds = {
        first.weight: (6 / (64 * 4 + 64 * 32)) ** 0.5,
        hidden.weight: (6 / (7744 + 512)) ** 0.5,
        output.weight[:1]: (6 / (512 + 1)) ** 0.5,
        output.weight[1:]: (6 / (512 + 18)) ** 0.5,
    }
    for weight, bound in bounds.items():
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound * (1 + 1e-6)
    for layer in (first, hidden, output):
        assert not layer.bias.any()


@pytest.mark.parametrize("every", [1, 2])
def test_targets_are_copied_every_so_many_updates(every):
    agent = make(STATES, hidden_dim=8, target_every_updates=every)
    generator = torch.manual_seed(1)
    online = agent.networks["critic"]
    assert ("critic_target" in agent.networks) == (every > 1)
    for update in range(1, 5):
        before = {k: v.clone() for k, v in online.state_dict().items()}
        obs = torch.randn(16, 5, generator=generator)
        batch = Batch(obs, torch.zeros(16, dtype=torch.int64), obs[:, :1], obs[:, :1] * 0, obs)
        agent.update(batch, step=update)
        assert any((v != before[k]).any() for k, v in online.state_dict().items())
        if every > 1:
            target = agent.networks["critic_target"].state_dict()
            equal = all((v == target[k]).all() for k, v in online.state_dict().items())
            assert equal == (update % every == 0)


def test_double_q_learning_takes_the_online_best_action_at_the_targets_value():
    agent = make(STATES, hidden_dim=8, target_every_updates=100)
    for parameter in agent.networks["critic_target"].parameters():
        parameter.mul_(-1.0)  # its best action is another one
    obs = torch.randn(32, 5, generator=torch.manual_seed(2))
    reward, discount = torch.rand(32, 1), torch.rand(32, 1)
    batch = Batch(obs, torch.zeros(32, dtype=torch.int64), reward, discount, obs)
    with torch.no_grad():
        online, target = agent.critic(obs), agent.networks["critic_target"](obs)
    best = online.argmax(1)
    assert (best != target.argmax(1)).any()
    wanted = reward[:, 0] + discount[:, 0] * target[torch.arange(32), best]
    np.testing.assert_allclose(agent._target_q(batch, obs)[:, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("spec", [SMALL, STATES], ids=["images", "states"])
def test_actions_are_random_with_probability_epsilon_and_else_the_best(spec):
    agent = make(spec, hidden_dim=16, encoder_channels=2, epsilon_end=0.25, epsilon_steps=10)
    generator = np.random.default_rng(0)
    if spec is SMALL:
        obs = generator.integers(256, size=(1, *spec.observation.shape), dtype=np.uint8)
    else:
        obs = generator.normal(size=(1, 5)).astype(np.float32)
    many = np.repeat(obs, 6000, axis=0) if spec is STATES else np.repeat(obs, 600, axis=0)
    (best,) = agent.act(obs, step=0, explore=False)
    assert best.dtype == np.int64
    for step, chance in ((0, 1.0), (1600, 1.0), (1605, 0.625), (1610, 0.25), (9999, 0.25)):
        actions = agent.act(many, step=step, explore=True)
        assert actions.dtype == np.int64 and set(actions.tolist()) <= {0, 1, 2}
        share = float((actions == best).mean())
        spread = 4 * (0.25 / len(many)) ** 0.5
        assert abs(share - (1 - chance * 2 / 3)) < spread


def test_acting_without_exploring_draws_nothing_and_equals_the_networks_best():
    agent = make(STATES, hidden_dim=16)
    obs = np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)
    before = agent.generators["exploration"].get_state()
    actions = agent.act(obs, step=10**6, explore=False)
    with torch.no_grad():
        q = agent.critic(torch.from_numpy(obs)).numpy()
    assert actions.tolist() == q.argmax(1).tolist()
    np.testing.assert_allclose(agent.value(obs), q.max(1), atol=1e-5)
    assert (before == agent.generators["exploration"].get_state()).all()


def test_the_kernels_gradients_equal_autograds():
    """Of images whose sides need an uneven padding; also with an unscaled batch of 3."""
    batch = Batch(
        torch.randint(256, (3, 4, 20, 24), dtype=torch.uint8, generator=torch.manual_seed(3)),
        torch.tensor([0, 2, 1]),
        torch.ones(3, 1),
        torch.full((3, 1), 0.9),
        torch.randint(256, (3, 4, 20, 24), dtype=torch.uint8, generator=torch.manual_seed(4)),
    )
    fast, plain = (make(SMALL, kernels=kernels, hidden_dim=16) for kernels in (True, False))
    for agent in (fast, plain):
        agent.update(batch, step=5000)
    for own, wanted in zip(gradients(fast), gradients(plain), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-6)


def test_observations_of_images_and_numbers_are_refused_with_a_sentence():
    both = Dict(pixels=SMALL.observation, vector=Box(-1, 1, (3,)))
    with pytest.raises(ConfigError, match="expected observations that are images or states"):
        make(EnvSpec(both, Discrete(2), 1))
