"""What an agent begins with when it takes over parts of another run's, and what stays its own."""

import numpy as np
import pytest
import torch
from conftest import random_batch, random_rollout, with_actions_for
from saved import equal, plain

from rlearly.agents import agent_spec
from rlearly.config import resolve
from rlearly.core.errors import Misfit
from rlearly.core.types import BeginsFromAnother
from rlearly.plasticity.interventions import registry
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

AGENTS = ("td3", "sac", "ppo", "drq_eps", "drqv2", "drm")
ENVS = {"drq_eps": "tiny_envs:StepReach-v0"}


def make(name, spec, seed, *words):
    config = resolve.compose(
        [
            f"agent={name}",
            f"env={ENVS.get(name, 'tiny_envs:StateReach-v0')}",
            "obs=state",
            "agent.hidden_dim=16",
            *(["agent.rollout_steps=40", "agent.minibatches=4"] if name == "ppo" else []),
            *words,
        ]
    )
    settings = config.agent
    if name == "ppo":
        settings = settings.for_actions(spec.action)
    return agent_spec(name).make(
        settings,
        spec,
        seeds=Seeds(seed),
        device=torch.device("cpu"),
        monitor=PlasticityMonitor(1, 0.025),
        interventions=registry.build_interventions(config, Seeds(seed)),
    )


def learn(agent, name, spec, updates=3, first=0):
    for at in range(first, first + updates):
        batch = random_rollout(agent, spec, at) if name == "ppo" else random_batch(spec, seed=at)
        agent.update(batch, step=1000 + at)


@pytest.fixture(params=AGENTS)
def pair(request, state_spec):
    """(name, spec, a trained agent, a new one of another seed)."""
    spec = with_actions_for(request.param, state_spec)
    old, new = (make(request.param, spec, seed) for seed in (1, 2))
    learn(old, request.param, spec)
    return request.param, spec, old, new


def obs_of(spec):
    return np.random.default_rng(5).normal(size=(9, *spec.observation.shape)).astype(np.float32)


def test_networks_and_normalizers_give_the_same_policy_and_values(pair):
    _, spec, old, new = pair
    assert isinstance(new, BeginsFromAnother)
    obs, fresh = obs_of(spec), new.state_dict()["modules"]["generators"]
    assert not np.array_equal(new.value(obs), old.value(obs))
    new.take_over(old.state_dict(), ["networks", "normalizers"])
    one, two = (agent.act(obs, step=10**6, explore=False) for agent in (old, new))
    assert np.array_equal(one, two)
    assert np.array_equal(new.value(obs), old.value(obs))
    state = new.state_dict()["modules"]
    assert plain(state["networks"]) == plain(old.state_dict()["modules"]["networks"])
    assert all(not optimizer["state"] for optimizer in state["optimizers"].values())
    assert equal(state["generators"], fresh), "random streams stay the new run's"
    assert plain(old.state_dict()["modules"]["generators"]) != plain(fresh)


def test_optimizers_bring_their_moments_but_not_their_learning_rate(state_spec):
    old, new = make("td3", state_spec, 1), make("td3", state_spec, 2, "agent.lr=1e-5")
    learn(old, "td3", state_spec)
    new.take_over(old.state_dict(), ["networks", "optimizers"])
    for name, optimizer in new.optimizers.items():
        mine, theirs = optimizer.state_dict(), old.optimizers[name].state_dict()
        assert plain(mine["state"]) == plain(theirs["state"]) and mine["state"]
        assert (mine["param_groups"][0]["lr"], theirs["param_groups"][0]["lr"]) == (1e-5, 3e-4)
    before = [p.clone() for p in new.critic.parameters()]
    learn(new, "td3", state_spec, 1, first=9)
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(before, new.critic.parameters(), strict=True)
    )
    assert 0 < moved < 3e-5, "the new learning rate takes effect"


def test_counters_and_phases_begin_anew(pair):
    name, _, old, new = pair
    state = {"td3": "updates", "sac": "updates", "drq_eps": "updates", "ppo": "learnt_steps"}
    new.take_over(old.state_dict(), ["networks", "optimizers", "normalizers"])
    if name in state:
        assert new.state_dict()[state[name]] == 0 < old.state_dict()[state[name]]
    if name == "drm":
        assert new.state_dict()["exploration"]["awaken_step"] == -1
        assert float(new.modules.dormancy) == float(old.modules.dormancy) < 1
    if name == "ppo":
        assert new.returns is None and not new.acted and len(new.noise) == 0


def test_a_learned_alpha_belongs_to_the_networks_and_a_fixed_one_stays(state_spec):
    old = make("sac", state_spec, 1)
    learn(old, "sac", state_spec, 6)
    assert old.log_alpha.detach() != 0
    new, fixed = make("sac", state_spec, 2), make("sac", state_spec, 2, "agent.alpha=0.3")
    for agent in (new, fixed):
        agent.take_over(old.state_dict(), ["networks", "optimizers"])
    assert new.log_alpha.detach() == old.log_alpha.detach()
    assert fixed.log_alpha.detach().exp().item() == pytest.approx(0.3)
    assert plain(new.optimizers["alpha"].state_dict()["state"]) == plain(
        old.optimizers["alpha"].state_dict()["state"]
    )
    again = make("sac", state_spec, 3)
    again.take_over(fixed.state_dict(), ["networks", "optimizers"])
    assert not again.optimizers["alpha"].state, "which has no moments to bring"


def test_statistics_of_observations_stay_new_without_normalizers(state_spec):
    old, new = make("ppo", state_spec, 1), make("ppo", state_spec, 2)
    learn(old, "ppo", state_spec)
    new.take_over(old.state_dict(), ["networks"])
    assert new.obs_rms.count == 1e-4 < old.obs_rms.count
    new.take_over(old.state_dict(), ["normalizers"])
    assert new.obs_rms.count == old.obs_rms.count
    assert new.return_rms.state_dict() == old.return_rms.state_dict()


def test_distances_and_pulls_are_from_the_weights_that_the_run_begins_with(state_spec):
    words = ["intervention=l2_init"]
    old, new = (make("td3", state_spec, seed, *words) for seed in (1, 2))
    learn(old, "td3", state_spec)
    new.take_over(old.state_dict(), ["networks"])
    (pull,) = new.modules.interventions
    assert plain(pull.origins["critic"]) == plain(list(old.critic.parameters()))
    initial = new.modules.monitor.initial_weights["critic"]
    assert plain(list(initial.values())) == plain(list(old.critic.parameters()))
    again = make("td3", state_spec, 2, *words)
    again.load_state_dict(new.state_dict())
    for agent in (new, again):
        learn(agent, "td3", state_spec, 2, first=5)
    assert plain(again.state_dict()) == plain(new.state_dict())
    assert plain(again.modules.monitor.initial_weights) == plain(
        new.modules.monitor.initial_weights
    ), "a resumed run measures from the same weights"


def test_injected_heads_are_not_injected_again(state_spec):
    words = ["intervention=injection", "injection.at_step=1001"]
    old, new = (make("td3", state_spec, seed, *words) for seed in (1, 2))
    learn(old, "td3", state_spec)
    new.take_over(old.state_dict(), ["networks"])
    obs = obs_of(state_spec)
    assert np.array_equal(new.value(obs), old.value(obs))
    assert "event/injection" not in new.update(random_batch(state_spec), step=2000)
    assert new.modules.interventions[0].is_done


@pytest.mark.parametrize(
    ("there", "here", "sentence"),
    [
        (
            [],
            ["agent.hidden_dim=8"],
            r"actor\.policy\.0\.weight is \[16, 7\] there and \[8, 7\] here",
        ),
        ([], ["intervention=layer_norm"], r"of actor have other names \(.*only here: "),
        (["intervention=layer_norm"], [], r"of actor have other names \(only there: "),
        (["intervention=injection"], [], r"only there: policy\._extra_state"),
    ],
)
def test_networks_that_do_not_fit_are_refused_and_left_alone(state_spec, there, here, sentence):
    old, new = make("td3", state_spec, 1, *there), make("td3", state_spec, 2, *here)
    before = plain(new.state_dict())
    with pytest.raises(Misfit, match=sentence):
        new.take_over(old.state_dict(), ["networks"])
    assert plain(new.state_dict()) == before


def test_networks_with_the_same_layers_fit_whatever_changed_them(state_spec):
    words = ["intervention=[layer_norm,spectral_norm]"]
    old, new = make("sac", state_spec, 1, *words), make("sac", state_spec, 2, *words)
    learn(old, "sac", state_spec)
    new.take_over(old.state_dict(), ["networks", "optimizers"])
    assert np.array_equal(new.value(obs_of(state_spec)), old.value(obs_of(state_spec)))


def test_statistics_of_other_observations_are_refused(state_spec, discrete_spec):
    import dataclasses

    from gymnasium.spaces import Box

    wide = dataclasses.replace(state_spec, observation=Box(-1, 1, (8,), np.float32))
    old, new = make("ppo", wide, 1), make("ppo", state_spec, 2)
    with pytest.raises(Misfit, match=r"statistics are of \[8\] numbers there and \[7\] here"):
        new.take_over(old.state_dict(), ["normalizers"])
