"""The agents against the official code's own numbers (three updates each, float32, CPU)."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from reference import REFERENCE, needs_reference

from rlearly.agents import drm, drqv2
from rlearly.core.types import Batch, EnvSpec
from rlearly.nn.augmentation import shift
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

pytestmark = needs_reference

METRIC = {
    "batch_reward": "replay/batch_reward",
    "actor_dormant_ratio": "plasticity/dormant_ratio",
    "predictor_loss": "loss/value",
    "critic_target_q": "critic/target_q",
    "critic_q1": "critic/q1",
    "critic_q2": "critic/q2",
    "critic_loss": "loss/critic",
    "actor_loss": "loss/actor",
    "stddev": "exploration/std",
    "FAU_Encoder": "now/plasticity/fau_encoder",
    "FAU_Actor": "now/plasticity/fau_actor",
    "FAU_Critic": "now/plasticity/fau_critic",
}


def agent_for(name, hyper, *, compiled):
    module = drm if name.startswith("drm") else drqv2
    values = {
        "lr": hyper["lr"],
        "feature_dim": hyper["feature_dim"],
        "hidden_dim": hyper["hidden_dim"],
        "batch_size": hyper["batch"],
        "target_tau": hyper["critic_target_tau"],
        "shift_pixels": 0,
        "std_clip": hyper["stddev_clip"],
    }
    if module is drm:
        values |= {
            "dormant_threshold": hyper["dormant_threshold"],
            "lambda_max": hyper["target_lambda"],
            "lambda_slope": hyper["lambda_temp"],
            "dormancy_slope": hyper["dormant_temp"],
            "expectile": hyper["expectile"],
            "exploration_steps": hyper["num_expl_steps"],
            "perturb_every_steps": 10**9,
        }
    spec = EnvSpec(
        Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (hyper["action_dim"],), np.float32), 2
    )
    config = module.Config(**values)
    return module.make(
        config,
        spec,
        seeds=Seeds(0),
        device=torch.device("cpu"),
        monitor=PlasticityMonitor(every_steps=1),
        compute=ComputeOptions("fp32", compiled),
    )


def parameter(agent, network, official):
    """Our tensor for an official parameter name such as critic/Q1.2.weight."""
    position = {"conv1": 0, "conv2": 2, "conv3": 4, "conv4": 6}
    part, *rest = official.split(".")
    if part in position:
        rest = [str(position[part]), *rest]
        part = "convnet"
    ours = {"convnet": "convolutions", "Q1": "q1", "Q2": "q2", "V": "v"}.get(part, part)
    found = agent.networks[network].get_parameter(".".join([ours, *rest])).detach()
    if official != "trunk.0.weight":
        return found
    side, channels = 35, agent.encoder.convolutions[-2].out_channels
    return found.view(len(found), side, side, channels).permute(0, 3, 1, 2)  # as official features


def flat(tensor):
    return tensor.double().flatten()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["drqv2_update", "drm_update_asleep", "drm_update_awaken"])
def test_three_updates_equal_the_official_code(name, compiled):
    data = np.load(REFERENCE / f"{name}.npz")
    meta = json.loads(bytes(data["meta"]))
    agent = agent_for(name, meta["hyper"], compiled=compiled)
    for key in data.files:
        if key.startswith("init/"):
            _, network, official = key.split("/")
            own = parameter(agent, network, official)
            own.copy_(torch.from_numpy(data[key]).view(own.shape))

    for i, wanted in enumerate(meta["metrics"]):
        batch = Batch(
            **{
                k: torch.from_numpy(data[f"batch{i}/{k}"])
                for k in ("obs", "next_obs", "action", "reward", "discount")
            }
        )
        got = agent.update(batch, step=wanted["step"])
        for official, ours in METRIC.items():
            if official in wanted:
                assert float(got[ours]) == pytest.approx(wanted[official], rel=2e-4, abs=2e-6), (
                    i,
                    official,
                )
        if "lambda_" in wanted:
            share = agent.target.share(agent.dormancy)
            assert float(share) == pytest.approx(wanted["lambda_"], rel=1e-4)
            awake = int(agent.exploration.awaken_step)
            assert (None if awake < 0 else awake) == wanted["awaken_step"]
        checked = 0
        for key in data.files:
            if key.startswith(f"after{i + 1}/"):
                _, network, official = key.split("/")
                values = flat(parameter(agent, network, official))
                sums = [values.sum(), values.abs().sum(), values.square().sum()]
                wanted_sums, entries = data[key][:3], data[key][3:]
                size = float(values.abs().sum()) + 1e-9
                assert abs(float(sums[0]) - wanted_sums[0]) < 2e-4 * size + 1e-6, (i, key)
                np.testing.assert_allclose(sums[1:], wanted_sums[1:], rtol=2e-4, err_msg=key)
                np.testing.assert_allclose(
                    values[: len(entries)], entries, atol=3 * meta["hyper"]["lr"], err_msg=key
                )
                checked += 1
        assert checked == sum(key.startswith("init/") for key in data.files)


def test_random_shift_equals_the_bilinear_reference():
    data = np.load(REFERENCE / "random_shift.npz")
    got = shift(torch.from_numpy(data["x"]), torch.from_numpy(data["shift_xy"]), int(data["pad"]))
    np.testing.assert_allclose(got.numpy(), data["y"], atol=1e-5)
