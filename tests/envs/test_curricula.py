"""Curricula of starts: hand-worked sequences, the wrapper's reports, runs that resume."""

import gymnasium
import numpy as np
import pytest
import tiny_envs  # noqa: F401  registers the small envs
from conftest import TINY_STATE
from saved import plain, rows
from test_snapshot import chi_square

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.curricula import DemonstrationWindow, ReverseForward
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.recording import record
from rlearly.envs.snapshots.selection import OrdinaryStart
from rlearly.envs.snapshots.wrapper import SnapshotRL
from rlearly.envs.state.action_replay import own_randomness, with_action_recorder
from rlearly.envs.state.compare import same
from rlearly.envs.state.save_restore import restore, save


def store_of(*demonstrations, returns_to_go=None):
    """Snapshots at these steps of each demonstration, which earns 1 per step; none is restored."""
    steps = np.concatenate([np.asarray(d) for d in demonstrations])
    episodes = np.concatenate([[n] * len(d) for n, d in enumerate(demonstrations)])
    ends = np.array([demonstrations[n][-1] + 1.0 for n in episodes])
    to_go = ends - steps if returns_to_go is None else np.asarray(returns_to_go, float)
    return Snapshots(
        records=[b""] * len(steps),
        observations=np.zeros((len(steps), 1)),
        values=np.full(len(steps), np.nan),
        rewards=np.zeros(len(steps)),
        returns_to_go=to_go,
        returns=np.array([to_go[np.flatnonzero(episodes == n)[0]] for n in episodes]),
        steps=steps.astype(np.int64),
        episodes=episodes.astype(np.int64),
        env_id="CartPole-v1",
    )


class Scripted:
    """A generator that returns given integers and records the bounds that it was asked for."""

    def __init__(self, numbers):
        self.numbers = list(numbers)
        self.bounds = []

    def integers(self, bound):
        self.bounds.append(bound)
        return self.numbers.pop(0)


# --- windows ---

TWO = store_of([0, 1, 2, 3, 4, 5], [0, 2, 4])
"""Snapshots 0 to 5 and 6 to 8."""
DRAWS = [(0, 0), (0, 1), (1, 0), (0, 3), (1, 1), (0, 0), (1, 2), (0, 5)]
"""Numbers of a demonstration and of a snapshot in its window."""


@pytest.mark.parametrize(
    ("direction", "chosen"),
    [("reverse", [5, 4, 8, 2, 7, 5, 6, 0]), ("forward", [0, 1, 6, 3, 7, 0, 8, 5])],
)
def test_window_widens_from_one_end_of_the_demonstrations(direction, chosen):
    rule = DemonstrationWindow(direction, first_steps=2, widen_steps=2, every_resets=3)
    rule.prepare(TWO)
    script = Scripted(number for pair in DRAWS for number in pair)
    widths, starts = [], []
    for _ in DRAWS:
        widths.append(rule.width_steps)
        starts.append(rule.choose(script))
    assert widths == [2, 2, 2, 4, 4, 4, 6, 6]
    assert script.bounds[0::2] == [2] * 8
    assert script.bounds[1::2] == [2, 2, 1, 4, 2, 4, 3, 6]
    assert starts == chosen


def test_restored_window_goes_on_where_it_was():
    straight, stopped, resumed = (
        DemonstrationWindow("reverse", first_steps=1, widen_steps=1, every_resets=4)
        for _ in range(3)
    )
    for rule in (straight, stopped, resumed):
        rule.prepare(TWO)
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    expected = [straight.choose(one) for _ in range(20)]
    begun = [stopped.choose(two) for _ in range(9)]
    resumed.load_state_dict(stopped.state_dict())
    assert begun + [resumed.choose(two) for _ in range(11)] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direction": "back"}, "direction: expected one of forward, reverse, received 'back'"),
        ({"first_steps": 0}, "first_steps: expected a number of at least 1, received 0"),
        ({"widen_steps": -1}, "widen_steps: expected a number of at least 0, received -1"),
        ({"every_resets": 0}, "every_resets: expected a number of at least 1, received 0"),
    ],
)
def test_window_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DemonstrationWindow(**{"direction": "forward"} | settings)


# --- reverse, then forward ---


def prepared(*demonstrations, **settings):
    rule = ReverseForward(**{"back_steps": 4, "episodes": 1, "seeds": 3} | settings)
    rule.prepare(store_of(*demonstrations))
    return rule


def end(rule, start, succeeded, episode_return=0.0):
    rule.episode_over(start, succeeded=succeeded, episode_return=episode_return, steps=1)


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        (range(11), [10, 6, 2, 0]),  # four steps back each time
        ([0, 10, 20, 30], [30, 20, 10, 0]),  # to the next snapshot
        ([0, 3, 9, 10], [10, 3, 0]),  # 9 is too near to 10
        ([5, 7, 8], [8, 5]),
    ],
)
def test_start_moves_back_from_the_end_of_its_demonstration(steps, starts):
    rule = prepared(list(steps))
    seen = []
    while not rule.solved[0]:
        seen.append(list(steps)[rule.starts[0]])
        end(rule, int(rule.starts[0]), True)
    assert seen == starts


def test_start_moves_when_enough_of_the_newest_episodes_succeeded():
    strict = prepared(range(11), episodes=3, success_rate=1.0)
    lenient = prepared(range(11), episodes=3, success_rate=0.6)
    outcomes = [True, True, False, True, True, True, True, True, True]
    places = {strict: [], lenient: []}
    for succeeded in outcomes:
        for rule, seen in places.items():
            end(rule, int(rule.starts[0]), succeeded)
            seen.append(int(rule.starts[0]))
    # strict: three in a row, counted anew after each move; lenient: two of three
    assert places[strict] == [10, 10, 10, 10, 10, 6, 6, 6, 2]
    assert places[lenient] == [10, 10, 6, 6, 6, 2, 2, 2, 0]


def test_only_episodes_from_the_start_itself_move_it():
    rule = prepared(range(11))
    end(rule, 10, True)
    for later in (10, 9, 7):  # it is at 6 now; 10 may still be running in another env
        end(rule, later, True)
    assert rule.starts.tolist() == [6]


def test_demonstrations_move_on_their_own_and_are_drawn_by_what_lies_before_their_starts():
    rule = prepared(range(11), [0, 2, 4])
    assert rule.weights().tolist() == [1.0, 1.0]
    end(rule, 10, True)
    assert rule.starts.tolist() == [6, 2]
    assert rule.weights().tolist() == [0.6, 1.0]
    end(rule, 13, True)
    assert rule.starts.tolist() == [6, 0]
    assert rule.weights().tolist() == [0.6, 1e-6]


def test_episodes_begin_at_the_start_or_up_to_four_snapshots_later():
    rule = prepared(range(11))
    end(rule, 10, True)
    end(rule, 6, True)
    random = np.random.default_rng(0)
    counts = np.bincount([rule.choose(random) for _ in range(8000)], minlength=11)
    assert counts.nonzero()[0].tolist() == [2, 3, 4, 5, 6]
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]
    assert chi_square(counts[2:7], shares) < 18.5  # 0.1 % of fair draws, 4 degrees of freedom
    fresh = prepared(range(11))
    assert {fresh.choose(random) for _ in range(50)} == {10}, "nothing comes after the last one"


def test_forward_stage_begins_when_all_are_solved_and_prefers_seeds_that_fail():
    rule = prepared([0, 1], [0, 1], episodes=2)
    random = np.random.default_rng(0)
    for number, first in enumerate((0, 2)):
        for index in (first + 1, first):
            for _ in range(2):
                assert isinstance(rule.choose(random), int)
                end(rule, index, True)
        assert rule.solved.tolist() == [True, number == 1]
    assert rule.seed_weights().tolist() == [1.0, 1.0, 1.0], "never tried: as if it always failed"
    for seed, outcomes in {0: [False, True, True], 1: [True, False]}.items():
        for succeeded in outcomes:
            end(rule, OrdinaryStart(seed), succeeded)
    assert rule.seed_weights().tolist() == [0.05, 0.5, 1.0]
    chosen = [rule.choose(random) for _ in range(6000)]
    assert all(isinstance(start, OrdinaryStart) for start in chosen)
    counts = np.bincount([start.seed for start in chosen], minlength=3)
    assert chi_square(counts, np.array([0.05, 0.5, 1.0]) / 1.55) < 13.8


@pytest.mark.parametrize(
    ("to_go", "episode_return", "reached"),
    [(10.0, 9.0, True), (10.0, 8.9, False), (-10.0, -11.0, True), (-10.0, -11.1, False)],
)
def test_success_can_be_a_share_of_the_demonstrations_return(to_go, episode_return, reached):
    rule = ReverseForward(episodes=1, return_share=0.9, seeds=2)
    rule.prepare(store_of([0, 9], returns_to_go=[to_go, to_go]))
    end(rule, 1, None, episode_return)
    assert rule.starts.tolist() == [0 if reached else 1]
    end(rule, OrdinaryStart(1), None, episode_return)
    assert rule.recent_of_seeds == [[], [reached]]


def test_restored_curriculum_goes_on_where_it_was():
    straight, stopped, resumed = (
        prepared(range(11), range(6), episodes=2, success_rate=0.5) for _ in range(3)
    )
    outcomes = (np.random.default_rng(1).random(120) < 0.6).tolist()

    def play(rule, random, outcomes):
        starts = []
        for succeeded in outcomes:
            starts.append(rule.choose(random))
            end(rule, starts[-1], succeeded)
        return starts

    one, two = np.random.default_rng(2), np.random.default_rng(2)
    expected = play(straight, one, outcomes)
    assert isinstance(expected[-1], OrdinaryStart)
    for stop_at in (5, 60):
        two = np.random.default_rng(2)
        stopped.prepare(store_of(range(11), range(6)))
        begun = play(stopped, two, outcomes[:stop_at])
        state = stopped.state_dict()
        play(stopped, np.random.default_rng(9), outcomes)  # which leaves the saved state alone
        resumed.load_state_dict(state)
        assert begun + play(resumed, two, outcomes[stop_at:]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"back_steps": 0}, "back_steps: expected a number of at least 1, received 0"),
        ({"episodes": 0}, "episodes: expected a number of at least 1, received 0"),
        ({"seeds": 0}, "seeds: expected a number of at least 1, received 0"),
        ({"success_rate": 0}, "success_rate: expected a number above 0 and at most 1, received 0"),
        ({"return_share": 0}, "return_share: expected a number above 0, received 0"),
    ],
)
def test_curriculum_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ReverseForward(**settings)


# --- what SnapshotRL tells a rule ---


def play(env_id, episodes=2, every_steps=2):
    """Snapshots of episodes that move to the goal."""
    env = gymnasium.make(env_id)
    move = lambda obs: np.clip((obs[:1] - obs[1:]) / 0.35, -1, 1)  # noqa: E731
    return record(env, move, episodes=episodes, every_steps=every_steps)


@pytest.fixture(scope="module")
def reached():
    return play("tiny_envs:GoalReach-v0")


class Listening(ReverseForward):
    """Keeps what it is told, and chooses what the test wants."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        self.told = []

    def choose(self, random):
        random.random()
        return self.wanted

    def episode_over(self, start, *, succeeded, episode_return, steps):
        self.told.append((start, succeeded, episode_return, steps))


STILL = np.zeros(1, np.float32)


@pytest.mark.parametrize("wanted", [3, OrdinaryStart(7)])
def test_rule_is_told_how_each_of_its_episodes_ended(reached, wanted):
    rule = Listening(wanted)
    env = SnapshotRL(gymnasium.make("tiny_envs:GoalReach-v0"), reached, rule, truncate_steps=3)
    for _ in range(2):
        env.reset(seed=1)
        total, steps, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated, info = env.step(STILL)
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        expected = (wanted, info["success"], pytest.approx(total), steps)
        assert rule.told.pop() == expected and not rule.told
        assert steps == (3 if wanted == 3 else 10), "only episodes from snapshots are truncated"
        assert ("snapshot" in info) == (wanted == 3)


@pytest.mark.parametrize("wanted", [3, OrdinaryStart(7)])
def test_episode_that_is_restored_in_its_middle_is_reported_whole(reached, wanted):
    def make():
        env = gymnasium.make("tiny_envs:GoalReach-v0")
        return SnapshotRL(with_action_recorder(env), reached, Listening(wanted))

    env, other = make(), make()
    env.reset(seed=1)
    env.step(STILL)
    restore(other, save(env))
    for one in (env, other):
        while not any(one.step(STILL)[2:4]):
            pass
    assert other.selection.told == env.selection.told
    assert env.selection.told[0][0] == wanted and env.selection.told[0][3] > 1


def test_success_is_reported_named_or_unknown(reached):
    other = gymnasium.make("tiny_envs:GoalReach-v0")

    class Renamed(gymnasium.Wrapper):
        def step(self, action):
            *result, _ = self.env.step(action)
            return (*result, dict.fromkeys(self.names, True) | {"far": 0})

    for names, success, expected in [
        (["is_success"], None, True),
        ([], None, None),
        (["success"], lambda info: info["far"] > 1, False),
    ]:
        env = Renamed(other)
        env.names = names
        rule = Listening(2)
        student = SnapshotRL(env, reached, rule, truncate_steps=1, success=success)
        student.reset(seed=0)
        student.step(STILL)
        assert rule.told[0][1] is expected


def test_curriculum_without_a_report_of_success_says_what_to_do():
    snapshots = play("tiny_envs:StateReach-v0")
    env = SnapshotRL(
        gymnasium.make("tiny_envs:StateReach-v0"), snapshots, ReverseForward(), truncate_steps=1
    )
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"reports neither info\['success'\] nor .* return_share"):
        env.step(STILL)


def test_ordinary_start_follows_from_its_seed_and_the_rest_from_the_envs_own_randomness(reached):
    expected, _ = gymnasium.make("tiny_envs:GoalReach-v0").reset(seed=7)
    env = SnapshotRL(gymnasium.make("tiny_envs:GoalReach-v0"), reached, Listening(OrdinaryStart(7)))
    states = []
    for seed in (1, None, None, 2, 1):
        obs, info = env.reset(seed=seed)
        assert np.array_equal(obs, expected) and info["start_seed"] == 7
        assert "snapshot" not in info
        states.append(own_randomness(env.unwrapped))
    assert same(states[0], states[4]) and not same(states[0], states[3])
    assert not same(states[0], states[1]) and not same(states[1], states[2])
    plain_env = gymnasium.make("tiny_envs:GoalReach-v0")
    plain_env.reset(seed=1)
    plain_env.np_random.random()  # the draw of the rule
    assert same(own_randomness(plain_env.unwrapped), states[0])


# --- in the trainer ---

GOAL = [
    word.replace("StateReach", "GoalReach") if word.startswith("env=") else word
    for word in TINY_STATE["td3"]
]
REVERSE = [
    "snapshot_phase.selection=reverse_forward",
    "snapshot_phase.reverse.episodes=1",
    "snapshot_phase.reverse.seeds=5",
]
WINDOW = [
    "snapshot_phase.selection=reverse_window",
    "snapshot_phase.window.first_steps=3",
    "snapshot_phase.window.widen_steps=2",
    "snapshot_phase.window.every_resets=10",
]


@pytest.fixture(scope="module")
def goal_file(reached, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "goal.h5"
    reached.save(path)
    return path


def goal_trainer(folder, path, *words):
    """A student that only explores: what it would learn has no effect on its starts."""
    from test_trainer import make_trainer

    phase = ("snapshot_phase.until_steps=180", "snapshot_phase.truncate_steps=9")
    more = ("train_frames=200", "log_every_frames=50", "agent.learning_starts_steps=1000")
    return make_trainer(folder, f"snapshot={path}", *phase, *more, *words, base=GOAL)


@pytest.mark.parametrize(
    ("rule", "num_envs", "stops"),
    [(REVERSE, 2, (7, 121)), (WINDOW, 1, (61,))],
    ids=["reverse_forward", "reverse_window"],
)
def test_resumed_student_equals_uninterrupted_student(tmp_path, goal_file, rule, num_envs, stops):
    words = (f"num_envs={num_envs}", "snapshot_phase.probability=0.9", *rule)
    straight = goal_trainer(tmp_path / "straight", goal_file, *words)
    assert straight.run()
    selection = straight.envs[0].get_wrapper_attr("selection")
    if rule is REVERSE:
        assert selection.solved.all() and any(selection.recent_of_seeds)
    else:
        assert selection.width_steps > 7
    for stop_at in stops:
        folder = tmp_path / f"at{stop_at}"
        stopped = goal_trainer(folder, goal_file, *words)
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run()
        stopped.close()
        resumed = goal_trainer(folder, goal_file, *words)
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)


def test_run_says_or_refuses_what_is_too_short_to_succeed(tmp_path, goal_file):
    def said(truncate, *words):
        limit = f"snapshot_phase.truncate_steps={truncate}"
        trainer = goal_trainer(tmp_path, goal_file, *REVERSE, limit, *words)
        return [text for text in trainer.display.messages if "to succeed" in text]

    share = "snapshot_phase.reverse.return_share=0.9"
    assert len(said(5)) == 1 and "5 steps to succeed, and the demonstrations" in said(5)[0]
    assert not said(8) and not said("null") and not said(8, share)
    with pytest.raises(ConfigError, match="expected at least the demonstrations' 8 steps or null"):
        said(5, share)


def test_command_line_names_a_rule_with_its_settings(tmp_path, goal_file):
    trainer = goal_trainer(tmp_path, goal_file, *WINDOW)
    rule = trainer.envs[0].get_wrapper_attr("selection")
    assert (rule.direction, rule.first_steps, rule.widen_steps) == ("reverse", 3, 2)
    trainer = goal_trainer(tmp_path, goal_file, "snapshot_phase.selection=forward_window")
    assert trainer.envs[0].get_wrapper_attr("selection").direction == "forward"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["snapshot_phase.window.first_steps=5"],
            "without snapshot_phase.selection=forward_window",
        ),
        (["snapshot_phase.reverse.seeds=5"], "without .*selection=reverse_forward"),
        (["snapshot_phase.selection=backward"], "expected one of uniform, .*reverse_forward"),
        (
            ["snapshot_phase.selection=forward_window", "snapshot_phase.window.first_steps=0"],
            "window.first_steps: expected a number at least 1, received 0",
        ),
    ],
)
def test_settings_of_another_rule_are_refused(goal_file, words, message):
    from rlearly.config.resolve import compose

    with pytest.raises(ConfigError, match=message):
        compose([*GOAL, f"snapshot={goal_file}", *words])


def test_several_envs_take_turns_when_episodes_move_starts(goal_file):
    from rlearly.config.resolve import compose
    from rlearly.training import builder

    words = [*GOAL, f"snapshot={goal_file}", REVERSE[0], "overlap=true"]
    builder.env_executors(compose(words))
    with pytest.raises(ConfigError, match=r"overlap=true: .* must take their steps in turn"):
        builder.env_executors(compose([*words, "num_envs=2"]))
