"""When to update: fixed, scheduled and adaptive replay ratios."""

import pytest
import torch

from rlearly.config.schema import AdaptiveRatioConfig
from rlearly.core.errors import ConfigError
from rlearly.training.update_schedule import (
    AdaptiveRatio,
    ScheduledRatio,
    off_policy_schedule,
    ratio_schedule,
)

DEFAULT = AdaptiveRatioConfig()


def fixed(ratio):
    return ScheduledRatio(ratio_schedule(ratio))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 1, 1.5, 2, 4])
def test_fixed_ratio_spreads_updates_evenly_from_the_first_step(ratio):
    update_schedule = fixed(ratio)
    due = [update_schedule.updates_due(step) for step in range(1000)]
    assert due[0] >= 1 and max(due) - min(due) <= 1
    assert abs(sum(due) - ratio * 1000) <= 1
    if ratio == 0.5:
        assert due[:6] == [1, 0, 1, 0, 1, 0]


def test_fixed_ratio_keeps_its_credit():
    one, two = fixed(0.3), fixed(0.3)
    for step in range(7):
        one.updates_due(step)
    two.load_state_dict(one.state_dict())
    assert [one.updates_due(s) for s in range(20)] == [two.updates_due(s) for s in range(20)]
    rare = fixed(1e-5)
    assert sum(rare.updates_due(step) for step in range(250_000)) == 3


@pytest.mark.parametrize(
    "asked",
    [0, -1, float("inf"), float("nan"), 101, True, None, "fast", "linear(1,2)", "step(1,0,5)"],
)
def test_what_is_no_ratio_is_refused_with_what_is(asked):
    with pytest.raises(ConfigError, match=r"replay_ratio: expected a number above 0 .* adaptive"):
        off_policy_schedule(asked, DEFAULT)


def test_ratio_that_would_not_rise_is_refused():
    with pytest.raises(ConfigError, match=r"adaptive_ratio.high: expected a number above .* = 3"):
        off_policy_schedule("adaptive", AdaptiveRatioConfig(low=3.0))


def test_scheduled_ratio_follows_the_agent_step():
    ramp = off_policy_schedule("linear(0.5,1.5,1000)", DEFAULT)
    assert sum(ramp.updates_due(step) for step in range(1000)) == pytest.approx(1000, abs=1)
    assert sum(ramp.updates_due(step) for step in range(1000, 1400)) == 600
    jump = off_policy_schedule("step(0.5,2,100)", DEFAULT)
    assert sum(jump.updates_due(step) for step in range(100)) == 50
    assert jump.events() == {}
    assert [jump.updates_due(step) for step in range(100, 110)] == [2] * 10
    assert (jump.events(), jump.events()) == ({"event/replay_ratio": 2.0}, {})
    assert ramp.events() == {}


def play(update_schedule, faus, updates_each=2, start=0):
    """Play episodes with the same FAU at every update; (episode, events) where there were any."""
    found = []
    for episode, fau in enumerate(faus, start):
        for _ in range(updates_each):
            update_schedule.observe(
                {"plasticity/fau_critic": torch.tensor(fau), "loss/critic": 1.0}
            )
        update_schedule.end_episode()
        events = update_schedule.events()
        if events:
            found.append((episode + 1, dict(events)))
    return found


def adaptive(**settings):
    return AdaptiveRatio(AdaptiveRatioConfig(**{"check_every_episodes": 3} | settings))


def test_ratio_rises_once_when_two_checks_agree_and_never_falls():
    update_schedule = adaptive()
    found = play(update_schedule, [0.9, 0.5, 0.4, 0.9, 0.9, 0.3, 0.1, 0.1, 0.3009, 0.9, 0.9, 0.9])
    assert [at for at, _ in found] == [3, 6, 9], "after the switch nothing is checked"
    assert found[0][1] == pytest.approx({"event/fau_critic": 0.4, "event/fau_critic_before": 0.9})
    assert found[1][1] == pytest.approx({"event/fau_critic": 0.3, "event/fau_critic_before": 0.4})
    assert found[2][1] == pytest.approx(
        {"event/fau_critic": 0.3009, "event/fau_critic_before": 0.3, "event/replay_ratio": 2.0}
    )
    assert update_schedule.ratio == 2.0
    assert [update_schedule.updates_due(step) for step in range(5)] == [2] * 5


def test_first_check_compares_with_the_very_first_fau():
    """The official rule: not with the first episode's mean, nor with nothing."""
    same = adaptive()
    same.observe({"plasticity/fau_critic": torch.tensor(0.7)})  # the first update
    assert [at for at, _ in play(same, [0.1, 0.2, 0.7])] == [3] and same.ratio == 2.0
    other = adaptive()
    other.observe({"plasticity/fau_critic": torch.tensor(0.7)})
    play(other, [0.5, 0.5, 0.5])
    assert other.ratio == 0.5, "an agreement with the first episode's mean is none"


def test_window_is_the_last_episode_or_the_whole_interval():
    faus = [0.2, 0.4, 0.6]
    for window, mean in (("episode", 0.6), ("interval", 0.4)):
        (_, event), *_ = play(adaptive(window=window), faus)
        assert event["event/fau_critic"] == pytest.approx(mean)
    interval = adaptive(window="interval")
    play(interval, faus)
    (_, event), *_ = play(interval, [0.5, 0.5, 0.8])
    assert event["event/fau_critic"] == pytest.approx(0.6), "each interval begins anew"


@pytest.mark.parametrize("num_envs", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("window", ["episode", "interval"])
def test_envs_whose_episodes_end_together_are_checked_like_one(num_envs, window):
    update_schedule = adaptive(check_every_episodes=10, window=window, threshold=1e-6)
    checked = []
    for round_ in range(60):
        fau = ((round_**2 * 7) % 61) / 61 + round_ / 1000  # no two checks agree
        for shift in (-0.1, 0.0, 0.1):
            update_schedule.observe({"plasticity/fau_critic": fau + shift})
        for env_index in range(num_envs):
            update_schedule.end_episode()
            if events := update_schedule.events():
                checked.append((round_ * num_envs + env_index + 1, events["event/fau_critic"]))
                if window == "episode":
                    assert events["event/fau_critic"] == pytest.approx(fau)
    assert [at for at, _ in checked] == list(range(10, 60 * num_envs + 1, 10))


def test_difference_of_just_the_threshold_counts_as_none():
    for last, ratio in ((0.75, 2.0), (0.7501, 0.5)):
        update_schedule = adaptive(threshold=0.25)
        play(update_schedule, [0.5, 0.5, last])
        assert update_schedule.ratio == ratio


def test_checks_by_steps_read_the_whole_interval_and_ignore_episodes():
    update_schedule = adaptive(check_every_steps=100, check_every_episodes=1)
    events = {}
    for step in range(450):
        for _ in range(update_schedule.updates_due(step)):
            fau = 0.3 if step < 50 else 0.5
            update_schedule.observe({"plasticity/fau_critic": fau})
        if step % 10 == 9:
            update_schedule.end_episode()
        if found := update_schedule.events():
            events[step] = found
    assert list(events) == [100, 200, 300]
    assert [e["event/fau_critic_before"] for e in events.values()] == pytest.approx([0.3, 0.4, 0.5])
    assert [e["event/fau_critic"] for e in events.values()] == pytest.approx([0.4, 0.5, 0.5])


def test_step_checks_switch_when_means_settle():
    update_schedule = adaptive(check_every_steps=10)
    faus, switched = [0.9, 0.5, 0.3, 0.3, 0.3], []
    update_schedule.observe({"plasticity/fau_critic": 0.1})
    for step in range(50):
        for _ in range(update_schedule.updates_due(step)):
            update_schedule.observe({"plasticity/fau_critic": faus[step // 10]})
        if "event/replay_ratio" in update_schedule.events():
            switched.append(step)
    assert switched == [10 * 4]


def test_check_without_an_update_to_read_is_not_made():
    update_schedule = adaptive()
    assert play(update_schedule, [0.0] * 7, updates_each=0) == []
    (at, event), *_ = play(update_schedule, [0.5, 0.2], start=7)
    assert at == 9 and event["event/fau_critic_before"] == 0.5
    assert play(update_schedule, [0.3] * 3, updates_each=0) == []
    assert update_schedule.ratio == 0.5


def test_fractions_are_kept_over_the_switch():
    update_schedule = adaptive(low=0.4, high=1.3)
    due = [update_schedule.updates_due(step) for step in range(11)]
    play(update_schedule, [0.5, 0.5, 0.5])
    due += [update_schedule.updates_due(step) for step in range(11, 31)]
    assert sum(due) == int(0.6 + 11 * 0.4 + 20 * 1.3)


@pytest.mark.parametrize("at", range(0, 12))
@pytest.mark.parametrize("steps", [None, 7])
def test_resumed_adaptive_ratio_continues(at, steps):
    def script(update_schedule, episodes):
        seen = []
        for episode in episodes:
            for step in range(5 * episode, 5 * episode + 5):
                for _ in range(update_schedule.updates_due(step)):
                    fau = 0.5 + 0.2 / (1 + episode) ** 2
                    update_schedule.observe({"plasticity/fau_critic": torch.tensor(fau)})
                seen.append(dict(update_schedule.events()))
            update_schedule.end_episode()
        return seen

    straight, one, two = (adaptive(threshold=0.01, check_every_steps=steps) for _ in range(3))
    expected = script(straight, range(12))
    begun = script(one, range(at))
    two.load_state_dict(one.state_dict())
    assert begun + script(two, range(at, 12)) == expected
    assert straight.ratio == two.ratio == 2.0
    assert sum(e.get("event/replay_ratio", 0) for e in expected) == 2.0, "once only"
