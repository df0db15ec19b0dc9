"""What hidden layers compute in, and by which kernels, changes results by rounding alone."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import random_batch, random_rollout, with_actions_for
from test_agents import KINDS, METAWORLD, SMALL, observations
from torch import nn

from rlearly.agents import agent_spec
from rlearly.config import resolve
from rlearly.config.interventions import CReLUConfig, LayerNormConfig, SpectralNormConfig
from rlearly.core.errors import ConfigError
from rlearly.kernels import onednn
from rlearly.nn.layers import (
    FEW_ROWS,
    LayerSpec,
    RecordedStack,
    configure_stacks,
    forward_stack,
    layer_specs,
)
from rlearly.nn.networks import initialise_, mlp
from rlearly.nn.optim import adam, frozen, optimize
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm, UseCReLU
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system import machine
from rlearly.system.machine import has_native_bfloat16
from rlearly.system.seeding import Seeds
from rlearly.training import builder

LINEAR = [nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 5)]
IMAGES = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
ODD_END = [nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 7)]


def stack(modules, seed=0):
    part = RecordedStack(*modules)
    configure_stacks(part, None, onednn.forward_stack)
    initialise_(part, torch.Generator().manual_seed(seed))
    for module in part:
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1, generator=torch.Generator().manual_seed(seed))
    return part


def given(modules, batch=64):
    shape = (3, 19, 19) if isinstance(modules[0], nn.Conv2d) else (96,)
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def by_autograd(part, x, dtype=None):
    """Layer by layer, rounded to `dtype` and back before each hidden layer computes and after it.

    Gradients pass the rounding unchanged.
    """

    def rounded(tensor, short):
        return tensor + (tensor.to(dtype).to(tensor.dtype) - tensor).detach() if short else tensor

    layers, outputs = list(part), []
    for at, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):
            continue
        short = dtype is not None and at + 1 < len(layers)
        x, weight = rounded(x, short), rounded(layer.weight, short)
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, weight, layer.bias, layer.stride)
        else:
            x = F.linear(x, weight, layer.bias)
        if at + 1 < len(layers):
            x = rounded(x.relu(), short)
            outputs.append(x)
    return x, outputs


def gradients(output, part, x):
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), [x, *part.parameters()])


@pytest.mark.parametrize("large", [0, 10**12], ids=["onednn", "mkl"])
@pytest.mark.parametrize("modules", [LINEAR, IMAGES, ODD_END], ids=["linear", "images", "odd"])
def test_a_stack_is_its_layers_one_after_the_other(modules, large, monkeypatch):
    monkeypatch.setattr(onednn, "LARGE", large)
    part, x = stack(modules), given(modules).requires_grad_()
    noted = []
    got = part(x, noted)
    expected, hidden = by_autograd(part, x)
    torch.testing.assert_close(got, expected)
    assert len(noted) == len(hidden)
    for one, two in zip(noted, hidden, strict=True):
        torch.testing.assert_close(one, two.detach())
        assert not one.requires_grad
    wanted = gradients(expected, part, x)
    for one, two in zip(gradients(got, part, x), wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(part(x), got)
    plain, _ = forward_stack(x, part.layer_specs, part.layer_parameters(), None)
    torch.testing.assert_close(plain, expected)
    for one, two in zip(gradients(plain, part, x), wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not has_native_bfloat16(torch.device("cpu")),
    reason="without bfloat16 arithmetic products are rounded elsewhere",
)
@pytest.mark.parametrize("modules", [LINEAR, IMAGES], ids=["linear", "images"])
def test_bfloat16_rounds_hidden_layers_and_nothing_else(modules):
    part, x = stack(modules), given(modules).requires_grad_()
    configure_stacks(part, torch.bfloat16, onednn.forward_stack)
    got = part(x)
    exact, _ = by_autograd(part, x)
    expected, _ = by_autograd(part, x, torch.bfloat16)
    assert got.dtype == (torch.float32 if modules is LINEAR else torch.bfloat16)
    error = (got.float() - expected).abs().max()
    assert error < 0.3 * (expected - exact).abs().max(), "it is the rounding that is expected"
    found = gradients(got.float(), part, x)
    for one, two in zip(found, gradients(expected, part, x), strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.02 * two.norm()
    plain, _ = forward_stack(x, part.layer_specs, part.layer_parameters(), torch.bfloat16)
    torch.testing.assert_close(plain, got, rtol=2e-2, atol=2e-2)


def test_a_gradient_that_others_use_too_is_not_overwritten():
    part, x = stack(IMAGES), given(IMAGES).requires_grad_()
    output = part(x)
    gradient = torch.randn_like(output)
    before = gradient.clone()
    torch.autograd.grad(output, x, gradient)
    assert torch.equal(gradient, before)


def test_other_layers_are_not_taken_for_usual_ones():
    assert layer_specs(LINEAR) == (
        LayerSpec(0, relu=True),
        LayerSpec(0, relu=True),
        LayerSpec(0, relu=False),
    )
    assert layer_specs(IMAGES) == (LayerSpec(2, relu=True), LayerSpec(1, relu=True))
    assert layer_specs([nn.Linear(2, 2), nn.Tanh()]) is None
    assert layer_specs([nn.ReLU(), nn.Linear(2, 2)]) is None
    assert mlp(3, 4, 2).layer_specs and mlp(3, 4, 2, nn.Tanh).layer_specs is None


def test_frozen_parameters_get_no_gradient_and_learn_again_afterwards():
    part, x = stack(LINEAR), given(LINEAR).requires_grad_()
    part[0].bias.requires_grad_(False)
    with frozen(part.parameters()):
        inside = part(x)
    assert [p.requires_grad for p in part.parameters()] == [True, False, True, True, True, True]
    inside.sum().backward()
    assert x.grad is not None and all(p.grad is None for p in part.parameters())
    with pytest.raises(KeyError), frozen(part.parameters()):
        raise KeyError
    assert part[0].weight.requires_grad


@pytest.fixture(params=KINDS, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def spec(case, pixel_spec, state_spec, fused_spec, discrete_spec):
    others = {"state": state_spec, "fused": fused_spec, "discrete": discrete_spec}
    return with_actions_for(case[0], others.get(case[1], pixel_spec))


def build(
    case, spec, precision, interventions=(), compile=False, monitor=None, kernels=True, **settings
):
    declared = agent_spec(case[0])
    known = {field.name for field in dataclasses.fields(declared.config_class)}
    own = METAWORLD if case[1] == "metaworld" else {}
    chosen = {key: value for key, value in (SMALL | own | settings).items() if key in known}
    return declared.make(
        declared.config_class(**chosen),
        spec,
        seeds=Seeds(0),
        device=torch.device("cpu"),
        interventions=interventions,
        compute=ComputeOptions(precision, compile, kernels),
        monitor=monitor,
    )


def learnt(case, spec, precision, times=2, interventions=(), kernels=True):
    agent = build(case, spec, precision, interventions, kernels=kernels)
    for seed in range(times):
        if agent_spec(case[0]).on_policy:
            metrics = agent.update(random_rollout(agent, spec, seed), step=20)
        else:
            metrics = agent.update(random_batch(spec, seed=seed), step=20)
    return agent, metrics


def flat(network):
    parameters = [p.detach().flatten() for p in network.parameters()]
    return torch.cat(parameters) if parameters else None


def test_bfloat16_learns_what_float32_does_but_for_rounding(case, spec):
    exact, metrics = learnt(case, spec, "fp32")
    short, rounded = learnt(case, spec, "bf16")
    assert metrics.keys() == rounded.keys()
    loss = float(metrics["loss/critic"])
    assert float(rounded["loss/critic"]) != loss
    assert float(rounded["loss/critic"]) == pytest.approx(loss, rel=0.05)
    start = build(case, spec, "fp32")
    for name, network in short.networks.items():
        if flat(network) is None:
            continue
        assert flat(network).dtype == torch.float32
        moved = (flat(exact.networks[name]) - flat(start.networks[name])).norm()
        # Adam's first steps have one length, whatever the gradient's: a small one's sign may turn.
        assert (flat(network) - flat(exact.networks[name])).norm() < 0.5 * moved, name
    obs = observations(spec, 16)
    mean = short.act(obs, step=50, explore=False)
    assert mean.dtype == spec.action.dtype and short.value(obs).dtype == "float32"


def test_kernels_learn_what_the_plain_code_does_but_for_rounding(case, spec):
    fast, metrics = learnt(case, spec, "fp32")
    plain, expected = learnt(case, spec, "fp32", kernels=False)
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-4), name
    start = build(case, spec, "fp32")
    for name, network in plain.networks.items():
        if flat(network) is not None:
            moved = (flat(network) - flat(start.networks[name])).norm()
            assert (flat(network) - flat(fast.networks[name])).norm() < 0.05 * moved, name
    obs = observations(spec, 16)
    for one, two in ((fast, plain), (plain, fast)):
        one.load_state_dict(two.state_dict())
        acts = [agent.act(obs, step=50, explore=False) for agent in (one, two)]
        values = [agent.value(obs) for agent in (one, two)]
        assert abs(acts[0] - acts[1]).max() < 1e-5 and abs(values[0] - values[1]).max() < 1e-5


@pytest.mark.parametrize(
    "part",
    [
        lambda: AddLayerNorm(LayerNormConfig()),
        lambda: UseCReLU(CReLUConfig()),
        lambda: AddSpectralNorm(SpectralNormConfig()),
    ],
    ids=["layer_norm", "crelu", "spectral_norm"],
)
@pytest.mark.parametrize("agent", ["drm", "td3"])
def test_bfloat16_works_with_other_layers(agent, part, pixel_spec, state_spec):
    spec = pixel_spec if agent == "drm" else state_spec
    found = []
    for precision in ("fp32", "bf16"):
        _, metrics = learnt((agent, ""), spec, precision, interventions=[part()])
        found.append(float(metrics["loss/critic"]))
    assert found[0] != found[1] and found[1] == pytest.approx(found[0], rel=0.1)


def test_descending_in_bfloat16_lowers_a_loss():
    part, x = stack(LINEAR), given(LINEAR)
    configure_stacks(part, torch.bfloat16, onednn.forward_stack)
    optimizer, losses = adam(part, 1e-3), []
    for _ in range(60):
        loss = (part(x) - x[:, :5]).square().mean()
        optimize(loss, optimizer)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("normalised", [False, True])
def test_few_rows_are_computed_in_the_weights_format(normalised, pixel_spec):
    parts = [AddLayerNorm(LayerNormConfig())] if normalised else []
    exact = build(("drm", "pixels"), pixel_spec, "fp32", parts)
    short = build(("drm", "pixels"), pixel_spec, "bf16", parts)
    obs = random_batch(pixel_spec).obs.numpy()
    for rows, alike in ((FEW_ROWS - 1, True), (FEW_ROWS, False)):
        few = obs[:rows]
        actions = [a.act(few, step=50, explore=False) for a in (exact, short)]
        assert (actions[0] == actions[1]).all() == alike
        assert abs(actions[0] - actions[1]).max() < 0.1


def test_a_formats_own_condition_is_said():
    config = resolve.compose(["agent=td3", "env=Pendulum-v1", "precision=tf32"])
    spec = object()
    with pytest.raises(ConfigError, match="tf32 is a number format of GPUs, and this run is on a"):
        builder.make_agent(config, spec, torch.device("cpu"))  # pyright: ignore
    with pytest.raises(ConfigError, match="precision: expected one of fp32, tf32, bf16"):
        resolve.compose(["agent=td3", "env=Pendulum-v1", "precision=fp16"])


def test_a_gpus_float32_products_are_rounded_only_on_request():
    try:
        machine.set_tf32(True)
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        machine.set_tf32(False)
    assert not (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def test_every_stack_of_an_agent_computes_in_the_format_asked_for(pixel_spec):
    agent = build(("drm", "pixels"), pixel_spec, "bf16")
    for name in ("encoder", "actor", "critic", "critic_target", "value"):
        found = [
            m.hidden_dtype for m in agent.networks[name].modules() if hasattr(m, "layer_specs")
        ]
        assert found and set(found) == {torch.bfloat16}, name
    assert agent.encoder(random_batch(pixel_spec).obs).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_networks_learn_the_same_but_for_rounding(case, precision, spec):
    found = []
    for compiled in (False, True):
        agent = build(
            case, spec, precision, compile=compiled, monitor=PlasticityMonitor(every_steps=1)
        )
        for seed in range(2):
            if agent_spec(case[0]).on_policy:
                metrics = agent.update(random_rollout(agent, spec, seed), step=20 + seed)
            else:
                metrics = agent.update(random_batch(spec, seed=seed), step=20 + seed)
        found.append({name: float(value) for name, value in metrics.items()})
        found.append(agent.state_dict()["modules"]["networks"])
    plain, networks, compiled, others = found
    tolerance = 1e-3 if precision == "fp32" else 0.1
    for name, value in plain.items():
        if "dormant" not in name and "rank" not in name:
            assert compiled[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    assert {n: list(s) for n, s in networks.items()} == {n: list(s) for n, s in others.items()}


def test_compiling_without_a_compiler_is_refused_in_one_sentence(monkeypatch, state_spec):
    monkeypatch.setattr(machine, "has_compiler", lambda: False)
    config = resolve.compose(["agent=td3", "env=Pendulum-v1", "compile=true"])
    with pytest.raises(ConfigError, match=r"compile=true: no C\+\+ compiler was found here"):
        builder.make_agent(config, state_spec, torch.device("cpu"))
