"""Adam beside torch's own."""

import copy

import pytest
import torch
from torch import nn

from rlearly.optim import Adam


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 16, 5))
    return net.to(memory_format=torch.channels_last)


def gradients(net, seed, *, without=()):
    """Random ones, as backward lays them out; none for some."""
    generator = torch.Generator().manual_seed(seed)
    for at, parameter in enumerate(net.parameters()):
        drawn = torch.randn(parameter.shape, generator=generator) * 10 ** (seed % 3 - 1)
        parameter.grad = None if at in without else torch.empty_like(parameter).copy_(drawn)


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def test_steps_are_torchs_to_the_bit():
    ours, theirs = network(), network()
    one = Adam(ours.parameters(), 3e-3, betas=(0.8, 0.95), eps=1e-5)
    two = torch.optim.Adam(theirs.parameters(), 3e-3, betas=(0.8, 0.95), eps=1e-5, fused=True)
    for seed in range(20):
        for net, optimizer in ((ours, one), (theirs, two)):
            gradients(net, seed, without=(1,) if seed % 4 else ())
            optimizer.param_groups[0]["lr"] = 3e-3 / (1 + seed)
            optimizer.step()
        assert all(map(torch.equal, weights(ours), weights(theirs)))
    assert not torch.equal(weights(ours)[0], weights(network())[0])


@pytest.mark.parametrize("source", [Adam, torch.optim.Adam])
def test_saved_moments_go_on_in_a_copy_of_their_own(source):
    words = {"fused": True} if source is torch.optim.Adam else {}
    net = network()
    first = source(net.parameters(), lr=1e-2, **words)
    for seed in range(3):
        gradients(net, seed, without=(2,))
        first.step()
    twin = copy.deepcopy(net)
    saved = copy.deepcopy(first.state_dict())
    for moments in saved["state"].values():  # a file may give other strides
        moments["exp_avg"] = moments["exp_avg"].contiguous()
    second = Adam(twin.parameters(), lr=5.0)
    second.load_state_dict(saved)
    own = {m["exp_avg"].data_ptr() for m in second.state.values()}
    assert not own & {m["exp_avg"].data_ptr() for m in saved["state"].values()}
    for seed in range(3, 6):
        for each, optimizer in ((net, first), (twin, second)):
            gradients(each, seed)
            optimizer.step()
    assert all(map(torch.equal, weights(net), weights(twin)))


def test_hooks_run_around_each_step():
    net = network()
    optimizer = Adam(net.parameters(), 1e-2)
    before = weights(net)
    seen = []
    optimizer.register_step_pre_hook(lambda own: [p.grad.zero_() for p in net.parameters()])
    optimizer.register_step_post_hook(lambda own: seen.append(own))
    gradients(net, 0)
    optimizer.step()
    assert seen == [optimizer]
    assert all(map(torch.equal, weights(net), before)), "the hook's gradients are used"
