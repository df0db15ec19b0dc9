"""Adam beside torch's own."""

import copy

import pytest
import torch
from torch import nn

from rlearly.nn.optim import Adam, FlatParameters


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


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 5))


def test_flat_parameters_are_where_they_belong_and_share_one_array():
    net = plain_network()
    before = weights(net)
    flat = FlatParameters(reversed(list(net.parameters())))
    net[0].bias.data = net[0].bias.data.clone()  # lies elsewhere now
    flat.gather()
    assert all(map(torch.equal, weights(net), before))
    assert torch.equal(flat.values, torch.cat([p.flatten() for p in reversed(before)]))
    flat.values.fill_(2.0), flat.gradients.fill_(3.0)
    assert all((p == 2).all() and (p.grad == 3).all() for p in net.parameters())


def test_steps_of_a_flat_array_are_those_of_its_parameters():
    """Also after a parameter's, or every one's, moments were forgotten, or loaded."""
    ours, theirs = plain_network(), plain_network()
    one, two = (Adam(net.parameters(), 1e-2) for net in (ours, theirs))
    flat = FlatParameters(reversed(list(ours.parameters())))
    forgotten = {4: [0], 8: [0, 1, 2, 3], 12: [3]}
    for seed in range(20):
        gradients(theirs, seed)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad.copy_(other.grad)
        for at in forgotten.get(seed, ()):
            for net, optimizer in ((ours, one), (theirs, two)):
                optimizer.state.pop(list(net.parameters())[at])
        if seed == 16:
            one.load_state_dict(copy.deepcopy(one.state_dict()))
        one.step(flat) if seed != 18 else one.step()
        two.step()
        assert all(map(torch.allclose, weights(ours), weights(theirs)))
        mine, other = one.state_dict(), two.state_dict()
        assert mine["param_groups"] == other["param_groups"]
        assert mine["state"].keys() == other["state"].keys()
        for place, moments in other["state"].items():
            assert mine["state"][place].keys() == moments.keys()
            for name, moment in moments.items():
                assert torch.allclose(mine["state"][place][name], moment), (seed, name)
        assert (len(one._all[0]) == 1) == (seed < 4 or 8 <= seed < 12), seed
