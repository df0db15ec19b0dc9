"""Networks of the user's own in td3, sac, ppo, drqv2 and drm."""

import dataclasses

import numpy as np
import plugin_networks
import pytest
import torch
from conftest import SMALL, TINY, TINY_STATE, random_batch, random_rollout
from saved import plain, rows
from test_trainer import make_trainer
from torch import nn

from rlearly import evaluate, train
from rlearly.agents import agent_spec
from rlearly.config import interventions as settings
from rlearly.config.resolve import compose
from rlearly.core.errors import ConfigError
from rlearly.nn.custom import CustomNetwork, custom_networks, drawn_from
from rlearly.nn.layers import RecordedStack
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.architecture import AddLayerNorm
from rlearly.plasticity.interventions.redo import ReDo
from rlearly.plasticity.interventions.regularisers import L2Init
from rlearly.plasticity.interventions.resets import ResetLayers, ShrinkAndPerturb
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

AGENTS = ("td3", "sac", "ppo", "drqv2", "drm")
PIXEL_AGENTS = ("drqv2", "drm")
GOOD = ("residual", "relus", "batch_norm", "our_stack", "only_the_critic", "nested", "unmeasured")


@pytest.fixture
def build(pixel_spec, state_spec):
    def build(agent, network, *parts, seed=0, monitor=None, compute=None, **kwargs):
        declared = agent_spec(agent)
        known = {field.name for field in dataclasses.fields(declared.config_class)}
        chosen = {key: value for key, value in SMALL.items() if key in known}
        return declared.make(
            declared.config_class(
                **chosen,
                network=network and f"plugin_networks:{network}",
                network_kwargs=kwargs,
            ),
            spec_of(agent, pixel_spec, state_spec),
            seeds=Seeds(seed),
            device=torch.device("cpu"),
            monitor=monitor,
            interventions=parts,
            compute=compute,
        )

    return build


def spec_of(agent, pixel_spec, state_spec):
    return pixel_spec if agent in PIXEL_AGENTS else state_spec


@pytest.fixture
def learn(pixel_spec, state_spec):
    def learn(agent, name, count=2, first=0):
        metrics = {}
        spec = spec_of(name, pixel_spec, state_spec)
        for i in range(first, first + count):
            if name == "ppo":
                metrics |= agent.update(random_rollout(agent, spec, i), step=20 + i)
            else:
                metrics |= agent.update(random_batch(spec, seed=i), step=20 + i)
        return metrics

    return learn


def stream():
    return torch.Generator().manual_seed(5)


def numbers(agent):
    return {
        f"{name}.{key}": tensor.detach().clone()
        for name, network in agent.networks.items()
        for key, tensor in network.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("network", GOOD)
@pytest.mark.parametrize("name", AGENTS)
def test_every_network_learns_and_leaves_the_global_stream_alone(name, network, build, learn):
    torch.manual_seed(1)
    before = torch.get_rng_state().clone()
    agent = build(name, network)
    start = numbers(agent)
    metrics = learn(agent, name)
    assert {key.split(".")[0] for key in changed(start, numbers(agent))} == set(agent.networks)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", ["residual", "batch_norm", "nested"])
@pytest.mark.parametrize("name", AGENTS)
def test_loaded_agent_continues_to_the_bit(name, network, build, learn):
    one, two = build(name, network), build(name, network, seed=9)
    learn(one, name, 3)
    two.load_state_dict(one.state_dict())
    learn(one, name, 3, 10)
    learn(two, name, 3, 10)
    assert not changed(numbers(one), numbers(two))


@pytest.mark.parametrize("network", ["residual", "batch_norm", "our_stack", "nested"])
def test_same_seed_draws_the_same_weights_and_another_seed_others(network, build):
    torch.manual_seed(1)
    one = numbers(build("td3", network))
    torch.manual_seed(2)
    assert not changed(one, numbers(build("td3", network)))
    other = changed(one, numbers(build("td3", network, seed=1)))
    assert {key for key in one if key.endswith("0.weight")} <= other
    critics = [value for key, value in one.items() if key.startswith("critic.q")]
    half = len(critics) // 2
    assert not all(torch.equal(a, b) for a, b in zip(critics[:half], critics[half:], strict=True))


def test_weights_are_those_that_torch_draws_from_the_stream():
    with drawn_from(stream()):
        own = nn.Linear(3, 2)
    torch.manual_seed(int(torch.randint(2**62, (), generator=stream())))
    assert torch.equal(own.weight, nn.Linear(3, 2).weight)


def test_stack_of_ours_gets_the_weights_that_the_agent_draws(build):
    for name, network in build("td3", "our_stack").networks.items():
        for part in network.modules():
            assert not isinstance(part, CustomNetwork)
            if isinstance(part, nn.Linear):  # CleanRL's rule: uniform in +-1 / sqrt(inputs)
                bound = part.in_features**-0.5
                assert 0.5 * bound < part.weight.abs().max() <= bound, name


def test_arguments_reach_the_function(build):
    narrow, wide = build("td3", "residual"), build("td3", "residual", width=20, blocks=2)
    (own,) = custom_networks(narrow.actor)
    assert len(own.network) == 4
    (own,) = custom_networks(wide.actor)
    assert len(own.network) == 5 and own.network[0].out_features == 20


@pytest.mark.parametrize("name", ["td3", "sac", "ppo"])
def test_acting_on_one_observation_equals_acting_on_many(name, build, learn, state_spec):
    agent = build(name, "batch_norm")
    learn(agent, name)
    obs = random_batch(state_spec, size=6).obs.numpy()
    together = agent.act(obs, step=50, explore=False)
    apart = [agent.act(obs[i : i + 1], step=50, explore=False)[0] for i in range(6)]
    np.testing.assert_allclose(together, apart, atol=1e-6)


@pytest.mark.parametrize("name", AGENTS)
def test_acting_and_values_change_nothing(name, build, learn, pixel_spec, state_spec):
    agent = build(name, "batch_norm")
    learn(agent, name)
    before = numbers(agent)
    obs = random_batch(spec_of(name, pixel_spec, state_spec), size=4).obs.numpy()
    values = agent.value(obs)
    action = agent.act(obs, step=50, explore=False)
    assert not changed(before, numbers(agent))
    assert np.array_equal(values, agent.value(obs))
    assert np.array_equal(action, agent.act(obs, step=50, explore=False))


@pytest.mark.parametrize("name", ["td3", "sac", "drqv2"])
def test_targets_have_the_statistics_of_their_online_networks(name, build, learn):
    agent = build(name, "batch_norm")
    learn(agent, name)
    online, target = agent.networks["critic"], agent.networks["critic_target"]
    means = [key for key, _ in online.named_buffers() if "running_mean" in key]
    assert len(means) == 2
    for key in means:
        assert online.get_buffer(key).abs().sum() > 0
        assert torch.equal(online.get_buffer(key), target.get_buffer(key))


@pytest.mark.parametrize("name", AGENTS)
def test_hidden_units_are_measured_and_measuring_changes_nothing(name, build, learn):
    silent = build(name, "residual")
    agent = build(name, "residual", monitor=PlasticityMonitor(every_steps=1))
    learn(silent, name)
    metrics = learn(agent, name)
    assert not changed(numbers(silent), numbers(agent))
    for network in agent_spec(name).networks:
        assert 0 <= float(metrics[f"now/plasticity/dormant_ratio_{network}"]) <= 1
        assert float(metrics[f"now/plasticity/distance_{network}"]) > 0
    head = "critic" if name == "ppo" else "critic_q1"
    assert 1 <= float(metrics[f"now/plasticity/effective_rank_{head}"]) <= 12
    assert "now/plasticity/fau_critic" not in metrics  # a GELU is never inactive
    metrics = learn(build(name, "relus", monitor=PlasticityMonitor(every_steps=1)), name)
    assert 0 < float(metrics["now/plasticity/fau_critic"]) < 1


def test_what_has_no_activation_layer_is_measured_by_its_weights(build, learn):
    agent = build("td3", "unmeasured", monitor=PlasticityMonitor(every_steps=1))
    metrics = learn(agent, "td3")
    assert float(metrics["now/plasticity/weight_norm_actor"]) > 0
    assert not any("dormant" in name or "rank" in name for name in metrics)


def test_recorded_units_are_the_outputs_of_the_activation_layers(build):
    agent = build("td3", "residual")
    (own,) = custom_networks(agent.actor)
    first, block, relu, _ = own.network
    found = []
    obs = torch.randn(3, 7)
    agent.actor(obs, found)
    hidden = block.inner[1](block.inner[0](first(obs)))
    assert own.recorded == 2 and torch.equal(found[0], hidden)
    assert torch.equal(found[1], relu(block(first(obs))))


@pytest.mark.parametrize("name", AGENTS)
def test_interventions_that_need_no_layers_act(name, build, learn):
    origin = L2Init(settings.L2InitConfig(strength=1.0))
    reset = ResetLayers(settings.ResetConfig(every_steps=1), weights=stream())
    agent = build(name, "residual", reset, origin)
    learn(agent, name, 1)
    before = numbers(agent)
    assert reset.before_update(1000) == {"event/reset": 1.0}
    new = changed(before, numbers(agent))
    for network in ("actor", "critic"):
        part = "policy" if network == "actor" else "v" if name == "ppo" else "q1"
        assert f"{network}.{part}.network.0.weight" in new
    if "critic_target" in agent.networks:
        now = numbers(agent)
        key = "q1.network.0.weight"
        assert torch.equal(now[f"critic.{key}"], now[f"critic_target.{key}"])
    assert not any(key.startswith("encoder") for key in new)
    learn(agent, name, 2, 1001)


@pytest.mark.parametrize("name", ["td3", "drqv2"])
def test_shrink_and_perturb_mixes_in_newly_made_weights(name, build, learn):
    part = ShrinkAndPerturb(
        settings.ShrinkPerturbConfig(every_steps=1, alpha=0.75), weights=stream()
    )
    agent = build(name, "residual", part)
    learn(agent, name, 1)
    before = numbers(agent)
    expected = [
        agent.modules.fresh_copy(n, g) for g in [stream()] for n in agent.networks if n != "encoder"
    ]
    part.before_update(1000)
    key = "policy.network.0.weight"
    mixed = 0.75 * before[f"actor.{key}"] + 0.25 * expected[0].get_parameter(key)
    torch.testing.assert_close(numbers(agent)[f"actor.{key}"], mixed)


@pytest.mark.parametrize(
    "part",
    [
        lambda: AddLayerNorm(settings.LayerNormConfig()),
        lambda: ReDo(settings.ReDoConfig(), weights=stream()),
        lambda: ResetLayers(settings.ResetConfig(layers="last"), weights=stream()),
    ],
)
def test_interventions_on_layers_are_refused_unless_left_out(part, build):
    refused = part()
    sentence = f"intervention={refused.name}: works on the layers of a RecordedStack, and the"
    with pytest.raises(ConfigError, match=sentence):
        build("td3", "residual", part())
    with pytest.raises(
        ConfigError, match=r"critic that agent\.network=plugin_networks:only_the_cri"
    ):
        build("td3", "only_the_critic", part())
    left_out = part()
    left_out.config = dataclasses.replace(left_out.config, networks=["actor"])
    build("td3", "only_the_critic", left_out)
    build("td3", "our_stack", part())


def test_interventions_on_layers_act_on_a_stack_of_ours(build, learn):
    agent = build("drqv2", "our_stack", ReDo(settings.ReDoConfig(every_steps=1), weights=stream()))
    agent.modules.interventions[0].needs_activations(0)
    with torch.no_grad():
        agent.networks["encoder"].convolutions[2].weight[1] = 0.0
        agent.networks["encoder"].convolutions[2].bias[1] = -1.0
    metrics = learn(agent, "drqv2", 1, first=5)
    assert float(metrics["event/recycled_units"]) >= 1
    assert (agent.networks["encoder"].convolutions[2].weight[1] != 0).any()


def test_ppo_falls_back_to_autograd_and_keeps_its_own_gradient_for_plain_tanh_stacks(build):
    assert build("ppo", "residual").fast_gradient is None
    assert build("ppo", None).fast_gradient is not None
    tanh = build("ppo", "our_tanh_stack")
    assert tanh.fast_gradient is not None and tanh.actor.policy[0].out_features == 9


@pytest.mark.parametrize("name", AGENTS)
def test_own_modules_compute_in_float32_at_any_precision(name, build, learn):
    agent = build(name, "residual", compute=ComputeOptions("bf16"))
    seen = []
    (own,) = custom_networks(agent.networks["actor"])
    own.network.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0], out)))
    learn(agent, name)
    assert seen and all(t.dtype == torch.float32 for pair in seen for t in pair)


def test_compile_is_refused(build):
    with pytest.raises(ConfigError, match=r"compile=true: the actor that agent\.network makes"):
        build("td3", "residual", compute=ComputeOptions(compile=True))


def test_adaptive_ratio_needs_relus(build):
    monitor = PlasticityMonitor(critic_each_update=True)
    build("td3", "relus", monitor=monitor)
    for network in ("residual", "unmeasured"):
        with pytest.raises(ConfigError, match="replay_ratio=adaptive: decides by the fraction of"):
            build("td3", network, monitor=monitor)


@pytest.mark.parametrize(
    ("agent", "network", "sentence"),
    [
        ("td3", "one_too_many", r"the actor to return float32 \[B, 3\], received float32 \[2, 4\]"),
        ("sac", "one_too_many", r"the actor to return float32 \[B, 6\], received float32 \[2, 7\]"),
        ("td3", "squeezed", r"the critic to return float32 \[B, 1\], received float32 \[2\] for"),
        ("ppo", "doubles", "the actor raised RuntimeError"),
        ("drqv2", "maps", r"the encoder to return float32 features \[B, F\], received .* \[2, 4, "),
        ("td3", "wrong_inputs", r"the actor raised RuntimeError: .*, for an input of \[2, 7\]"),
        ("td3", "text", "for the actor expected an nn.Module or None, received an object of .*str"),
        ("td3", "raises", "for the actor it raised TypeError"),
        ("td3", "shared", "the critic shares weights with a network of an earlier call"),
        ("td3", "torch_dropout", "a Dropout with dropout, which draws from torch's global"),
        ("td3", "frozen", "the actor has no weights to learn"),
        ("drqv2", "padded", "a RecordedStack with a Conv2d with padding"),
        ("td3", "gelu_stack", "a RecordedStack with a GELU in it; expected Linear, Conv2d,"),
        ("td3", "endless", "expected one with activations that ends with a Linear"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(agent, network, sentence, build):
    with pytest.raises(
        ConfigError, match=rf"agent\.network=plugin_networks:{network}: .*{sentence}"
    ):
        build(agent, network)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["agent.network=plugin_networks:residul"], "has no residul; did you mean residual"),
        (["agent.network=no_module:f"], "there is no module no_module"),
        (["agent.network=plugin_networks"], "expected module:NAME"),
        (["agent.network=plugin_networks:SHARED.weight"], "has no SHARED.weight"),
        (["agent.network_kwargs.width=3"], "has no effect without agent.network"),
        (
            ["agent.network=plugin_networks:residual", "agent.network_kwargs.wdth=3"],
            "got an unexpected keyword argument 'wdth'",
        ),
    ],
)
def test_bad_requests_are_refused_before_anything_is_made(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose([*TINY_STATE["td3"], *words])


@pytest.mark.parametrize("name", ["sac", "ppo", "drm"])
def test_resumed_run_equals_uninterrupted_run(name, tmp_path):
    base = [*TINY, "agent=drm"] if name == "drm" else TINY_STATE[name]
    base = [*base, "agent.network=plugin_networks:batch_norm", "train_frames=180"]
    base += ["plasticity.every_steps=50", "intervention=reset", "reset.every_steps=60"]
    base += ["agent.rollout_steps=32"] if name == "ppo" else ["seed_frames=100"]
    straight, stopped, again = (
        make_trainer(tmp_path / folder, base=base) for folder in ("one", "two", "two")
    )
    assert straight.run() and straight.updates
    stopped.stop_requested = lambda: stopped.steps >= 137
    assert not stopped.run()
    again.resume()
    assert again.run()
    assert plain(straight.state_dict()) == plain(again.state_dict())
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_commands_take_it_and_an_older_run_has_no_such_key(tmp_path, capsys):
    words = [*TINY_STATE["td3"], "train_frames=150", f"run_dir={tmp_path / 'run'}"]
    words += ["agent.network=plugin_networks:residual", "agent.network_kwargs.width=6"]
    assert train.main(words) == 0
    assert evaluate.main([f"run={tmp_path / 'run'}", "episodes=1", "video_size=0"]) == 0
    provenance = (tmp_path / "run" / "provenance.json").read_text(encoding="utf-8")
    assert "plugin_networks.py" in provenance
    old = make_trainer(tmp_path / "old", base=[*TINY_STATE["td3"], "train_frames=120"])
    old.fixed_config = {k: v for k, v in old.fixed_config.items() if "network" not in k}
    assert old.run()
    again = make_trainer(tmp_path / "old", base=[*TINY_STATE["td3"], "train_frames=120"])
    assert again.resume() == 120


def test_the_module_that_is_tested_here_makes_both_kinds():
    assert isinstance(plugin_networks.our_stack("actor", (3,), 2), RecordedStack)
    assert not isinstance(plugin_networks.relus("actor", (3,), 2), RecordedStack)
