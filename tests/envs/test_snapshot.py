"""SnapshotRL: what it restores, whom it truncates, when it ends, and what it refuses."""

import errno
import fcntl
import gc
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import tiny_envs  # noqa: F401  registers the small envs
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics

from rlearly.core.errors import ConfigError
from rlearly.envs import dm_control
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.minari import from_minari
from rlearly.envs.snapshots.recording import from_actions, record
from rlearly.envs.snapshots.selection import (
    LearnerError,
    Novelty,
    ReturnToGo,
    Uniform,
    ValueClusters,
    cluster_numbers,
)
from rlearly.envs.snapshots.step_counter import StepCounter
from rlearly.envs.snapshots.wrapper import SnapshotRL
from rlearly.envs.wrappers import ActionRepeat, ScaledActions
from rlearly.nn.schedules import Linear

EVERY = 3
CPU = torch.device("cpu")


def play(env_id, seed=0, episodes=3, **kwargs):
    """Snapshots of random episodes whose value is the sum of the observation."""
    env = gymnasium.make(env_id, **kwargs)
    env.action_space.seed(seed)
    return record(
        env,
        lambda obs: env.action_space.sample(),
        value=lambda obs: float(np.sum(obs)),
        episodes=episodes,
        every_steps=EVERY,
        seed=seed,
    )


@pytest.fixture(scope="module")
def hopper():
    return play("Hopper-v5")


@pytest.fixture(scope="module")
def cartpole():
    return play("CartPole-v1")


def wrap(snapshots, env_id="CartPole-v1", **settings):
    return SnapshotRL(gymnasium.make(env_id), snapshots, **settings)


def starts(env, count, seed=0):
    """The snapshots of `count` episodes of one step each, None for an ordinary reset."""
    chosen = []
    env.action_space.seed(seed)
    for i in range(count):
        _, info = env.reset(seed=seed) if i == 0 else env.reset()
        chosen.append(info.get("snapshot"))
        env.step(env.action_space.sample())
    return chosen


# --- what it restores ---


@pytest.mark.parametrize("env_id", ["Hopper-v5", "CartPole-v1", "BipedalWalker-v3"])
def test_episode_from_a_snapshot_continues_as_the_teachers_did(env_id):
    env = gymnasium.make(env_id)
    env.action_space.seed(5)
    teacher = RecordEpisodeStatistics(gymnasium.make(env_id))
    obs, _ = teacher.reset(seed=11)
    seen, actions, over = [obs], [], False
    while not over:
        actions.append(env.action_space.sample())
        obs, reward, terminated, truncated, _ = teacher.step(actions[-1])
        seen.append((obs, reward, terminated))
        over = terminated or truncated
    snapshots = from_actions(gymnasium.make(env_id), [(11, actions)], every_steps=4)
    student = SnapshotRL(env, snapshots, truncate_steps=None)
    for index in (len(snapshots) - 1, 1, 0):
        step = int(snapshots.steps[index])
        obs, info = student.reset(seed=99, options={"snapshot": index})
        assert info["snapshot"] == index
        expected = seen[step] if step == 0 else seen[step][0]
        assert np.array_equal(obs, expected) and obs.dtype == expected.dtype
        for at in range(step, len(actions)):
            obs, reward, terminated, _, _ = student.step(actions[at])
            assert np.array_equal(obs, seen[at + 1][0])
            assert (reward, terminated) == seen[at + 1][1:]
    assert snapshots.returns_to_go[1] == pytest.approx(sum(r for _, r, _ in seen[5:]))
    assert snapshots.rewards[1] == seen[4][1] and snapshots.rewards[0] == 0


@pytest.mark.parametrize(
    ("task", "steps_in_all"),
    [("cheetah_run", 500), ("cartpole_swingup", 500), ("reach_duplo", 125)],
)
def test_dm_control_starts_anywhere_with_a_full_episode_ahead(task, steps_in_all):
    def make():
        config = dm_control.config_for(task)
        return dm_control.make(config, pixels=False, model_seed=0)

    env = make()
    env.action_space.seed(0)
    snapshots = record(
        env, lambda obs: env.action_space.sample(), episodes=1, every_steps=steps_in_all // 5
    )
    student = SnapshotRL(make(), snapshots, truncate_steps=None)
    obs, _ = student.reset(seed=0, options={"snapshot": 3})
    flat = np.concatenate([np.ravel(part) for part in [snapshots.observations[3]]])
    assert np.array_equal(obs, flat.astype(np.float32))
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = student.step(student.action_space.sample())
        steps, over = steps + 1, terminated or truncated
    assert steps == steps_in_all and truncated, "the teacher's steps are not on the student's clock"


def test_pixels_show_the_restored_world_three_times():
    def make(pixels=True):
        return dm_control.make(dm_control.config_for("cheetah_run"), pixels=pixels, model_seed=0)

    env = make(pixels=False)  # the teacher needs no pictures
    env.action_space.seed(0)
    snapshots = record(env, lambda obs: env.action_space.sample(), episodes=1, every_steps=50)
    student = SnapshotRL(make(), snapshots)
    one, _ = student.reset(seed=0, options={"snapshot": 4})
    assert np.array_equal(one[:3], one[3:6]) and np.array_equal(one[:3], one[6:])
    two, _ = student.reset(seed=1, options={"snapshot": 4})
    plain, _ = student.reset(seed=1, options={"snapshot": 0})
    assert np.array_equal(one, two) and not np.array_equal(one, plain)
    student.close()


@pytest.mark.slow
def test_manipulation_shows_the_restored_world():
    config = replace(dm_control.config_for("reach_duplo"), render="fast")
    undrawn = ScaledActions(dm_control.DMControlEnv(config, pixels=True, model_seed=0))
    undrawn.action_space.seed(0)
    snapshots = record(
        ActionRepeat(undrawn, 2),
        lambda obs: undrawn.action_space.sample(),
        every_steps=60,
        episodes=1,
    )
    student = SnapshotRL(dm_control.make(config, pixels=True, model_seed=0), snapshots)
    one, _ = student.reset(seed=0, options={"snapshot": 1})
    two, _ = student.reset(seed=1, options={"snapshot": 1})
    plain, _ = student.reset(seed=1, options={"snapshot": 0})
    assert np.array_equal(one, two) and not np.array_equal(one, plain)
    student.close()


def test_snapshots_of_a_manipulation_task_without_images_are_refused_where_they_are_observed():
    teacher, student = (
        dm_control.make(dm_control.config_for("reach_duplo"), pixels=pixels, model_seed=0)
        for pixels in (False, True)
    )
    still = np.zeros(teacher.action_space.shape)
    snapshots = record(teacher, lambda obs: still, every_steps=100, episodes=1)
    sentence = (
        r"are of reach_duplo_features, and the env is reach_duplo_vision: wrap a reach_duplo_f"
    )
    with pytest.raises(ConfigError, match=sentence):
        SnapshotRL(student, snapshots)


def test_wrappers_above_and_below_see_an_ordinary_reset(hopper):
    inner = FrameStackObservation(RecordEpisodeStatistics(gymnasium.make("Hopper-v5")), 3)
    env = RecordEpisodeStatistics(SnapshotRL(inner, hopper, truncate_steps=5))
    obs, _ = env.reset(seed=0, options={"snapshot": 2})
    assert np.array_equal(obs, np.stack([hopper.observations[2]] * 3))
    total = 0.0
    steps = 0
    while True:
        steps += 1
        _, reward, terminated, truncated, info = env.step(np.zeros(3, np.float32))
        total += reward
        if terminated or truncated:
            break
    assert info["episode"]["l"] == steps <= 5 and info["episode"]["r"] == pytest.approx(total)
    assert hopper.returns[2] > total + 1, "nothing of the teacher's return is in it"


def test_randomness_of_the_env_stays_its_own():
    snapshots = play("FrozenLake-v1")
    env = wrap(snapshots, "FrozenLake-v1", truncate_steps=None)
    ends = set()
    for seed in range(20):
        env.reset(seed=seed, options={"snapshot": 0})
        ends.add(tuple(int(env.step(2)[0]) for _ in range(1)))
    assert len(ends) > 1, "slipping is drawn anew, not restored with the snapshot"


# --- a true wrapper ---


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_passes_the_env_checker_and_can_be_made_again_from_its_spec(env_id):
    env = wrap(play(env_id), env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    assert env.spec.id == env_id
    again = gymnasium.make(env.spec)
    assert isinstance(again, SnapshotRL)
    assert again.reset(seed=3)[1]["snapshot"] == env.reset(seed=3)[1]["snapshot"]


def test_wrapping_leaves_an_unseeded_env_unseeded(cartpole):
    firsts = {wrap(cartpole, until_steps=0).reset()[0].tobytes() for _ in range(3)}
    assert len(firsts) == 3


def test_info_names_the_snapshot_and_its_value(hopper):
    env = wrap(hopper, "Hopper-v5")
    for seed in range(5):
        obs, info = env.reset(seed=seed)
        assert info["snapshot_value"] == hopper.values[info["snapshot"]] == np.sum(obs)


def test_truncation_truncates_and_never_terminates(hopper):
    env = wrap(hopper, "Hopper-v5", truncate_steps=4)
    env.reset(seed=0, options={"snapshot": 0})
    flags = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(4)]
    assert flags == [(False, False)] * 3 + [(False, True)]


def test_real_termination_at_the_last_step_stays_a_termination(cartpole):
    last = int(np.flatnonzero(cartpole.episodes == 0)[-1])
    free = wrap(cartpole, truncate_steps=None)
    free.reset(seed=0, options={"snapshot": last})
    steps = 1
    while not free.step(1)[2]:
        steps += 1
    env = wrap(cartpole, truncate_steps=steps)
    env.reset(seed=0, options={"snapshot": last})
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(1)
    assert (terminated, truncated) == (True, False)


def test_without_truncation_only_the_envs_own_limit_ends_an_episode():
    snapshots = play("Pendulum-v1", episodes=1)
    env = wrap(snapshots, "Pendulum-v1", truncate_steps=None)
    env.reset(seed=0, options={"snapshot": 60})
    steps = 1
    while not env.step(np.zeros(1, np.float32))[3]:
        steps += 1
    assert steps == 200


def test_ordinary_episodes_are_never_truncated(hopper):
    env = wrap(hopper, "Hopper-v5", truncate_steps=1, probability=0.0)
    env.reset(seed=0)
    assert not env.step(np.zeros(3, np.float32))[3]


# --- the phase ---


def test_after_the_phase_it_does_nothing(hopper):
    env, plain = wrap(hopper, "Hopper-v5", until_steps=20), gymnasium.make("Hopper-v5")
    assert all(s is not None for s in starts(env, 20))
    assert starts(env, 5) == [None] * 5
    env.action_space.seed(1)
    one, info = env.reset(seed=7)
    two, plain_info = plain.reset(seed=7)
    assert np.array_equal(one, two) and info == plain_info
    for _ in range(60):
        action = env.action_space.sample()
        (one, *rest), (two, *plain_rest) = env.step(action), plain.step(action)
        assert np.array_equal(one, two) and rest == plain_rest
        if rest[1]:
            one, two = env.reset()[0], plain.reset()[0]
            assert np.array_equal(one, two)
    state = env.unwrapped.np_random.bit_generator.state
    assert state == plain.unwrapped.np_random.bit_generator.state


def test_probability_is_the_share_of_starts_and_may_fall(cartpole):
    half = starts(wrap(cartpole, probability=0.5), 400)
    assert 160 < sum(s is not None for s in half) < 240
    falling = starts(wrap(cartpole, probability=Linear(1.0, 0.0, 400), until_steps=10_000), 400)
    share = np.array([s is not None for s in falling]).reshape(4, 100).mean(1)
    assert share[0] > share[1] > share[2] > share[3] and share[0] > 0.7 and share[3] < 0.3


def test_shared_counter_ends_the_phase_for_all_copies_at_once(cartpole):
    counter = StepCounter()
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: wrap(cartpole, until_steps=40, counter=counter, truncate_steps=1)] * 4,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    envs.reset(seed=0)
    for step in range(1, 21):
        infos = envs.step(envs.action_space.sample())[-1]
        if step < 10:
            assert infos["_snapshot"].all(), step
        elif step > 10:
            assert "snapshot" not in infos, step
    assert counter.steps == 80


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_async_copies_count_together(cartpole, tmp_path, context):
    cartpole.save(tmp_path / "teacher.h5")
    counter = StepCounter()
    make = MakeStudent(tmp_path / "teacher.h5", counter)
    envs = gymnasium.vector.AsyncVectorEnv([make] * 2, context=context)
    _, infos = envs.reset(seed=0)
    assert infos["_snapshot"].all()
    for _ in range(30):
        envs.step(envs.action_space.sample())
    assert 30 <= counter.steps <= 60 and counter.steps >= 20
    _, infos = envs.reset()
    assert "snapshot" not in infos
    envs.close()


def test_counter_counts_where_the_temporary_folder_has_no_locks(monkeypatch):
    def lockf(stream, operation):
        raise OSError(errno.ENOLCK, "no locks here")

    counter = StepCounter()
    monkeypatch.setattr(fcntl, "lockf", lockf)
    counter.add()
    assert counter.steps == 1


def test_counters_file_outlives_forked_copies_and_goes_with_its_maker():
    counter = StepCounter()
    path = Path(counter.path)
    child = os.fork()
    if child == 0:
        counter.add()
        del counter
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists() and counter.steps == 1
    del counter
    gc.collect()
    assert not path.exists()


class MakeStudent:
    def __init__(self, path, counter):
        self.path = path
        self.counter = counter

    def __call__(self):
        return SnapshotRL(
            gymnasium.make("CartPole-v1"), self.path, until_steps=20, counter=self.counter
        )


# --- reproducible ---

SEQUENCE = """
import sys, gymnasium, hashlib
from rlearly import SnapshotRL, ValueClusters
env = SnapshotRL(gymnasium.make("Hopper-v5"), sys.argv[1], ValueClusters(3), truncate_steps=7)
env.action_space.seed(0)
seen = hashlib.sha256()
chosen = []
for i in range(20):
    obs, info = env.reset(seed=int(sys.argv[2])) if i == 0 else env.reset()
    chosen.append(info["snapshot"])
    over = False
    while not over:
        seen.update(obs.tobytes())
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        over = terminated or truncated
print(chosen, seen.hexdigest())
"""


def test_two_processes_with_one_seed_agree_and_with_two_differ(hopper, tmp_path):
    hopper.save(tmp_path / "teacher.h5")

    def run(seed):
        command = [sys.executable, "-c", SEQUENCE, str(tmp_path / "teacher.h5"), str(seed)]
        root = Path(__file__).parents[2]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True, cwd=root
        ).stdout

    one, same, other = run(1), run(1), run(2)
    assert one == same and one != other and len(one) > 80


# --- selection ---


def store_of(values, returns=None, observations=None):
    """A store whose states nobody restores."""
    count = len(values)
    values = np.asarray(values, float)
    returns = values if returns is None else np.asarray(returns, float)
    return Snapshots(
        records=[b""] * count,
        observations=values[:, None] if observations is None else observations,
        values=values,
        rewards=np.zeros(count),
        returns_to_go=returns,
        returns=returns,
        steps=np.arange(count),
        episodes=np.zeros(count, int),
        env_id="CartPole-v1",
    )


def draws(selection, snapshots, count=6000, seed=0):
    selection.prepare(snapshots)
    random = np.random.default_rng(seed)
    chosen = np.array([selection.choose(random) for _ in range(count)])
    return np.bincount(chosen, minlength=len(snapshots))


def chi_square(counts, shares):
    expected = np.asarray(shares) * counts.sum()
    return ((counts - expected) ** 2 / expected).sum()


UNEQUAL = [0.0, 0.1, *np.linspace(10, 10.5, 37), 50.0]


def test_clusters_are_drawn_alike_however_unequal_they_are():
    snapshots = store_of(UNEQUAL)
    counts = draws(ValueClusters(3), snapshots)
    clusters = np.array([counts[:2].sum(), counts[2:39].sum(), counts[39]])
    assert chi_square(clusters, [1 / 3] * 3) < 13.8  # 0.1 % of fair draws, 2 degrees of freedom
    assert chi_square(counts[2:39], [1 / 37] * 37) < 67.9  # 0.1 %, 36 degrees of freedom
    assert chi_square(counts[:2], [0.5] * 2) < 10.8
    uniform = draws(Uniform(), snapshots)
    assert chi_square(uniform, [1 / 40] * 40) < 72.1
    assert uniform[39] < counts[39] / 5


def sum_of_squares(numbers, labels):
    groups = [numbers[labels == label] for label in np.unique(labels)]
    return sum(((group - group.mean()) ** 2).sum() for group in groups)


def test_clusters_are_the_best_of_all_ways_to_cut():
    random = np.random.default_rng(0)
    for trial in range(30):
        numbers = random.normal(size=9).round(trial % 3) * 100 + 1e6
        ordered = np.sort(numbers)
        for clusters in range(1, min(5, len(np.unique(numbers)) + 1)):
            labels = cluster_numbers(numbers, clusters)
            assert set(labels) == set(range(clusters))
            assert (np.diff(labels[np.argsort(numbers, kind="stable")]) >= 0).all()
            best = min(
                sum_of_squares(ordered, np.searchsorted(np.array(cuts), np.arange(9), "right"))
                for cuts in itertools.combinations(range(1, 9), clusters - 1)
            )
            assert sum_of_squares(numbers, labels) == pytest.approx(best, abs=1e-6)


def test_clusters_are_as_good_as_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    numbers = np.random.default_rng(1).gamma(2.0, 50.0, size=400)
    theirs = cluster.KMeans(6, n_init=10, random_state=0).fit(numbers[:, None]).inertia_
    assert sum_of_squares(numbers, cluster_numbers(numbers, 6)) <= theirs * (1 + 1e-9)


def test_return_to_go_prefers_the_best_by_the_given_contrast():
    counts = draws(ReturnToGo(contrast=4.0), store_of([3.0, 1.0, 2.0]), count=9000)
    assert chi_square(counts, np.array([4.0, 1.0, 2.5]) / 7.5) < 13.8


def test_novelty_prefers_what_is_unlike_the_rest():
    observations = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [5.0, 5.0]])
    selection = Novelty(neighbours=1)
    selection.prepare(store_of([0.0] * 4, observations=observations))
    assert selection.weights[3] == selection.weights.max() > 10 * selection.weights[0]


def test_learner_error_follows_what_is_reported():
    snapshots = store_of([0.0, 1.0, 2.0])
    selection = LearnerError(floor=0.1)
    selection.prepare(snapshots)
    assert selection.weights().tolist() == [1.0, 1.0, 1.0]
    selection.report(0, 4.0)
    selection.report(1, 1.0)
    assert selection.weights().tolist() == [1.0, 0.25, 1.0], "an untried one counts as the worst"
    selection.report(2, 0.0)
    assert selection.weights().tolist() == [1.0, 0.25, 0.1]
    fresh = LearnerError(floor=0.1)
    fresh.prepare(snapshots)
    fresh.load_state_dict(selection.state_dict())
    assert fresh.weights().tolist() == selection.weights().tolist()


def test_critic_reports_the_td_error_of_the_whole_episode(cartpole):
    values = iter([2.0, 10.0])
    env = wrap(
        cartpole,
        selection=LearnerError(),
        truncate_steps=3,
        critic=lambda obs: next(values),
        discount=0.5,
    )
    env.reset(seed=0, options={"snapshot": 0})
    for _ in range(3):
        env.step(0)
    # rewards 1 + 0.5 + 0.25, then 0.125 * 10 at the truncation, against the first value of 2
    assert env.selection.scores[0] == pytest.approx(abs(1.75 + 1.25 - 2.0))


def test_critic_expects_nothing_after_a_termination(cartpole):
    env = wrap(
        cartpole, selection=LearnerError(), truncate_steps=None, critic=lambda obs: 1.0, discount=1
    )
    env.reset(seed=0, options={"snapshot": 0})
    steps = 1
    while not env.step(0)[2]:
        steps += 1
    assert env.selection.scores[0] == steps - 1.0


# --- the store ---


def test_select_keeps_the_best_episodes_and_every_so_many_steps(hopper):
    best = hopper.select(best_episodes=1)
    assert set(best.returns) == {hopper.returns.max()}
    sparse = hopper.select(every_steps=2 * EVERY)
    assert (sparse.steps % (2 * EVERY) == 0).all() and len(sparse) < len(hopper)
    index = int(np.flatnonzero(hopper.steps == 2 * EVERY)[0])
    kept = int(np.flatnonzero(sparse.steps == 2 * EVERY)[0])
    assert sparse.records[kept] == hopper.records[index]
    with pytest.raises(ConfigError, match="best_episodes: expected a number of at least 1"):
        hopper.select(best_episodes=0)


def test_file_gives_back_what_was_saved(hopper, tmp_path):
    hopper.save(tmp_path / "t.h5")
    loaded = Snapshots.load(tmp_path / "t.h5")
    assert list(loaded.records) == list(hopper.records)
    for name in ("observations", "values", "rewards", "returns_to_go", "returns", "steps"):
        one, two = getattr(hopper, name), getattr(loaded, name)
        assert np.array_equal(one, two) and one.dtype == two.dtype
    assert (loaded.env_id, loaded.kwargs, loaded.versions) == (
        hopper.env_id,
        hopper.kwargs,
        hopper.versions,
    )
    assert loaded.provenance["every_steps"] == EVERY
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


@pytest.mark.parametrize("data", [b"", b"not HDF5 at all"])
def test_other_files_are_refused_in_one_sentence(tmp_path, data):
    (tmp_path / "t.h5").write_bytes(data)
    with pytest.raises(ConfigError, match="truncated, damaged or another kind of file"):
        Snapshots.load(tmp_path / "t.h5")


# --- bad input ---


def test_each_misuse_gets_one_clear_sentence(hopper, cartpole, tmp_path):
    def refused(match, make):
        with pytest.raises(ConfigError, match=match) as error:
            make()
        assert "\n" not in str(error.value)

    refused(
        "snapshots are of Hopper-v5, and the env is Walker2d-v5",
        lambda: wrap(hopper, "Walker2d-v5"),
    )
    refused("snapshots of CartPole-v1 are empty", lambda: wrap(empty(cartpole)))
    refused(
        f"clusters: expected at most {len(hopper)}",
        lambda: wrap(hopper, "Hopper-v5", selection=ValueClusters(len(hopper) + 1)),
    )
    refused(
        "carry no value to cluster by",
        lambda: wrap(unvalued(hopper), "Hopper-v5", selection=ValueClusters(2)),
    )
    refused(
        "received a vector of them",
        lambda: SnapshotRL(gymnasium.make_vec("CartPole-v1", num_envs=2), cartpole),
    )
    refused("Expected a gymnasium env", lambda: SnapshotRL("CartPole-v1", cartpole))
    refused("there is no file", lambda: wrap(tmp_path / "nothing.h5"))
    refused(
        "truncate_steps: expected a number of at least 1",
        lambda: wrap(cartpole, truncate_steps=0),
    )
    refused("until_steps: expected a number of at least 0", lambda: wrap(cartpole, until_steps=-1))
    refused("probability: expected a number from 0 to 1", lambda: wrap(cartpole, probability=2.0))
    refused(
        "snapshot: expected a number from 0",
        lambda: wrap(cartpole).reset(options={"snapshot": 10**6}),
    )
    refused("clusters: expected a number of at least 1", lambda: ValueClusters(0))


def empty(snapshots):
    nothing = {
        name: getattr(snapshots, name)[:0]
        for name in (
            "observations",
            "values",
            "rewards",
            "returns_to_go",
            "returns",
            "steps",
            "episodes",
        )
    }
    return replace(snapshots, records=[], **nothing)


def unvalued(snapshots):
    return replace(snapshots, values=np.full(len(snapshots), np.nan))


def test_states_of_another_mujoco_are_refused(hopper, monkeypatch):
    from rlearly.envs.snapshots import dataset

    installed = dataset.installed
    monkeypatch.setattr(dataset, "installed", lambda p: "3.11.0" if p == "mujoco" else installed(p))
    with pytest.raises(ConfigError, match=r"made with mujoco 3\..*, and this is mujoco 3.11.0"):
        wrap(hopper, "Hopper-v5")


class Drifting(gymnasium.Env):
    """Draws what no seed decides."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action):
        return self._look(), 0.0, False, False, {}

    def _look(self):
        return np.frombuffer(os.urandom(4), np.uint32).astype(np.float64)


def test_env_without_exact_restore_is_refused():
    with pytest.raises(ConfigError, match="cannot return to a saved state to the bit"):
        record(Drifting(), lambda obs: 0, episodes=1)


def test_trajectories_of_another_env_are_refused():
    with pytest.raises(ConfigError, match=r"Trajectory 0 has 300 actions, .* over after \d+"):
        from_actions(gymnasium.make("CartPole-v1"), [(0, [1] * 300)])


def test_policies_and_values_of_another_kind_are_refused_while_recording():
    def refused(match, policy=lambda obs: np.zeros(3, np.float32), **more):
        with pytest.raises(ConfigError, match=match):
            record(gymnasium.make("Hopper-v5"), policy, **more)

    refused("received a tuple of 2", policy=lambda obs: (np.zeros(3), None))
    refused(r"received the shape \(2,\)", policy=lambda obs: np.zeros(2))
    refused("value: expected one finite number", value=lambda obs: obs)
    refused("value: expected one finite number", value=lambda obs: np.nan)
    refused("every_steps: expected a number of at least 1", every_steps=0)
    refused("episodes: expected a number of at least 1", episodes=0)
    refused("seed: expected a number of at least 0", seed=-1)


def test_store_says_in_a_line_what_it_is(hopper):
    assert repr(hopper).startswith(f"<Snapshots: {len(hopper)} of Hopper-v5 from 3 episodes, ")
    assert len(repr(hopper)) < 120 and "none of Hopper-v5" in repr(empty(hopper))


def test_selected_steps_are_at_least_so_far_apart(hopper):
    chosen = hopper.select(every_steps=4)  # of every third
    for episode in set(chosen.episodes):
        steps = chosen.steps[chosen.episodes == episode]
        assert (np.diff(steps) == 6).all() and steps[0] == 0


def test_minari_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlearly\[minari\]'"):
        from_minari("mujoco/hopper/expert-v0")


@pytest.fixture
def minari_dataset(tmp_path, monkeypatch):
    """A Minari dataset on disk: two random Hopper episodes, with or without simulator states."""
    minari = pytest.importorskip("minari")
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("Hopper-v5")
    data = env.unwrapped.data

    def create(name, keys):
        buffers = []
        for number in range(2):
            obs, _ = env.reset(seed=number)
            env.action_space.seed(number)
            rows = [(obs, data.qpos.copy(), data.qvel.copy(), None, 0.0, False)]
            while not rows[-1][-1]:
                action = env.action_space.sample()
                obs, reward, terminated, _, _ = env.step(action)
                rows.append((obs, data.qpos.copy(), data.qvel.copy(), action, reward, terminated))
            infos = {"qpos": np.array([r[1] for r in rows]), "qvel": np.array([r[2] for r in rows])}
            buffers.append(
                EpisodeBuffer(
                    id=number,
                    observations=np.array([r[0] for r in rows]),
                    actions=np.array([r[3] for r in rows[1:]]),
                    rewards=[r[4] for r in rows[1:]],
                    terminations=[r[5] for r in rows[1:]],
                    truncations=[False] * (len(rows) - 1),
                    infos={key: infos[key] for key in keys},
                )
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.create_dataset_from_buffers(
                dataset_id=name, buffer=buffers, env="Hopper-v5"
            )

    return create


def test_minari_dataset_with_simulator_states_becomes_snapshots(minari_dataset):
    dataset = minari_dataset("tiny/hopper-v0", ["qpos", "qvel"])
    snapshots = from_minari("tiny/hopper-v0", every_steps=5)
    episodes = list(dataset.iterate_episodes())
    assert len(snapshots) == sum(-(-len(e.rewards) // 5) for e in episodes)
    for index, (episode, step) in enumerate(zip(snapshots.episodes, snapshots.steps, strict=True)):
        assert np.array_equal(snapshots.observations[index], episodes[episode].observations[step])
        rest = episodes[episode].rewards[step:].sum()
        assert snapshots.returns_to_go[index] == pytest.approx(rest)
    env = wrap(snapshots, "Hopper-v5")
    obs, _ = env.reset(options={"snapshot": 3})
    data = env.unwrapped.data
    assert np.array_equal(data.qpos, episodes[0].infos["qpos"][15])
    assert np.array_equal(data.qvel, episodes[0].infos["qvel"][15])
    assert np.array_equal(obs, episodes[0].observations[15])
    env.step(np.zeros(3, np.float32))


def test_minari_dataset_without_simulator_states_is_refused(minari_dataset):
    minari_dataset("tiny/bare-v0", ["qpos"])
    with pytest.raises(ConfigError, match="expected infos with qpos and qvel, received qpos"):
        from_minari("tiny/bare-v0")
    with pytest.raises(ConfigError, match="There is no Minari dataset"):
        from_minari("tiny/nothing-v0")


# --- in the trainer ---


@pytest.fixture(scope="module")
def reach_file(tmp_path_factory):
    """Snapshots of random episodes of StateReach."""
    path = tmp_path_factory.mktemp("teacher") / "reach.h5"
    play("tiny_envs:StateReach-v0", episodes=8).save(path)
    return path


def reach_trainer(folder, agent, path, *words):
    from conftest import TINY_STATE
    from test_trainer import make_trainer

    words = (f"agent={agent}", "train_frames=330", "log_every_frames=50", *words)
    rule = [w for w in words if w.startswith("snapshot_phase.selection=")]
    clusters = [] if rule and not rule[0].endswith("=clusters") else ["snapshot_phase.clusters=3"]
    started = (f"snapshot={path}", *clusters, "snapshot_phase.until_steps=200")
    more = ("agent.rollout_steps=32",) if agent == "ppo" else ()
    return make_trainer(folder, *words, *started, *more, base=TINY_STATE[agent])


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    "agent, rule", [("td3", "clusters"), ("sac", "learner_error"), ("ppo", "clusters")]
)
def test_resumed_student_equals_uninterrupted_student(tmp_path, reach_file, agent, rule, num_envs):
    from test_trainer import plain, rows

    words = (
        f"num_envs={num_envs}",
        f"snapshot_phase.selection={rule}",
        "snapshot_phase.truncate_steps=4",
        "snapshot_phase.probability=0.8",
        "eval_every_frames=110",
        "eval_episodes=1",
    )
    straight = reach_trainer(tmp_path / "straight", agent, reach_file, *words)
    assert straight.run()
    assert not any(env.get_wrapper_attr("in_phase") for env in straight.envs)
    for stop_at in (7, 150, 260):
        folder = tmp_path / f"at{stop_at}"
        stopped = reach_trainer(folder, agent, reach_file, *words)
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run()
        stopped.close()
        resumed = reach_trainer(folder, agent, reach_file, *words)
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)


@pytest.mark.parametrize("agent", ["drqv2", "drm"])
def test_visual_student_starts_at_snapshots_too(tmp_path, agent):
    from test_trainer import make_trainer

    path = tmp_path / "pixels.h5"
    play("tiny_envs:PixelReach-v0", episodes=4).save(path)
    trainer = make_trainer(
        tmp_path / "run",
        f"agent={agent}",
        f"snapshot={path}",
        "snapshot_phase.selection=uniform",
        "snapshot_phase.truncate_steps=3",
        "snapshot_phase.until_steps=90",
        "train_frames=140",
    )
    assert trainer.run() and trainer.updates > 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    started, plain = (
        [row[key] for row in rows if key in row]
        for key in ("train/snapshot_episode_length_steps", "train/episode_length_steps")
    )
    assert max(started) == 3, "an episode near the teacher's end is over sooner"
    assert set(plain) == {10} and len(plain) >= 4


def test_run_says_that_its_teacher_was_paid_by_other_rules(tmp_path):
    path = tmp_path / "teacher.h5"
    taught = play("tiny_envs:StateReach-v0", episodes=2)
    replace(taught, provenance={"env_rules": "package"}).save(path)
    said = reach_trainer(tmp_path / "run", "td3", path).display.messages
    expected = "the rewards of env.rules=package, but this run uses env.rules=paper"
    assert any(expected in text for text in said)
    replace(taught, provenance={"env_rules": "paper"}).save(path)
    said = reach_trainer(tmp_path / "other", "td3", path).display.messages
    assert not any("env.rules" in text for text in said)


def test_run_says_what_it_starts_from_and_names_such_episodes(tmp_path, reach_file):
    trainer = reach_trainer(tmp_path, "td3", reach_file, "snapshot_phase.truncate_steps=4")
    (said,) = [text for text in trainer.display.messages if text.startswith("snapshots: ")]
    assert (
        f"from {reach_file}, 3 clusters, for the first 200 agent steps, truncated after 4" in said
    )
    trainer.run()
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    started = [r["steps"] for r in rows if "train/snapshot_episode_return" in r]
    plain = [r["steps"] for r in rows if "train/episode_return" in r]
    assert len(started) > 40 and max(started) <= 204 < min(plain) and plain


def test_resuming_wants_the_same_snapshots(tmp_path, reach_file, monkeypatch):
    from conftest import TINY_STATE, Silent

    from rlearly.config import resolve
    from rlearly.config.structured import as_yaml
    from rlearly.training import builder

    mine, other = tmp_path / "mine.h5", tmp_path / "other.h5"
    mine.write_bytes(reach_file.read_bytes())
    play("tiny_envs:StateReach-v0", episodes=2).save(other)
    monkeypatch.chdir(tmp_path)
    words = ["agent=td3", *TINY_STATE["td3"], "snapshot=mine.h5", "snapshot_phase.clusters=2"]
    config = resolve.compose(words)
    assert config.snapshot == str(mine), "wherever it is resumed from"
    builder.build(config, tmp_path, make_sinks=lambda: None, display=Silent(), device=CPU)
    (tmp_path / "config.yaml").write_text(as_yaml(config), encoding="utf-8")

    def resumed(*words):
        builder.build(
            resolve.load(tmp_path, words),
            tmp_path,
            make_sinks=lambda: None,
            display=Silent(),
            device=CPU,
        )

    moved = tmp_path / "moved.h5"
    mine.rename(moved)
    with pytest.raises(ConfigError, match="put it back, or say where it is now with snapshot="):
        resumed()
    resumed("snapshot=moved.h5")
    with pytest.raises(ConfigError, match=r"other.h5 is not the file that this run began with"):
        resumed("snapshot=other.h5")


def test_settings_of_a_phase_that_is_not_there_are_refused(reach_file):
    from rlearly.config.resolve import compose

    words = ["agent=td3", "env=tiny_envs:StateReach-v0"]
    with pytest.raises(ConfigError, match=r"snapshot_phase.until_steps: has no effect without"):
        compose([*words, "snapshot_phase.until_steps=10"])
    with pytest.raises(ConfigError, match=r"snapshot_phase.clusters: has no effect with"):
        compose(
            [
                *words,
                f"snapshot={reach_file}",
                "snapshot_phase.clusters=2",
                "snapshot_phase.selection=uniform",
            ]
        )
    with pytest.raises(ConfigError, match=r"snapshot_sha256: is set by snapshot=FILE"):
        compose([*words, "snapshot_sha256=1"])


def test_truncated_student_episodes_still_bootstrap(tmp_path, reach_file):
    words = ("snapshot_phase.truncate_steps=1", "snapshot_phase.until_steps=10000")
    trainer = reach_trainer(tmp_path, "td3", reach_file, *words, "agent.learning_starts_steps=1000")
    trainer.run()
    batch = trainer.memory.sample(200)
    fell = batch.next_obs[:, 1].abs() == 1
    assert (batch.discount[~fell] == 0.9).all() and (batch.discount[fell] == 0).all()


def test_evaluation_never_starts_at_a_snapshot(tmp_path, reach_file):
    from test_trainer import rows

    words = ("snapshot_phase.until_steps=10000", "eval_every_frames=100", "eval_episodes=3")
    trainer = reach_trainer(tmp_path, "td3", reach_file, *words, "snapshot_phase.truncate_steps=2")
    seen = []
    make = trainer.make_eval_env
    trainer.make_eval_env = lambda: seen.append(make()) or seen[-1]
    trainer.run()
    for env in seen:
        while isinstance(env, gymnasium.Wrapper):
            assert not isinstance(env, SnapshotRL)
            env = env.env
    lengths = [r["eval/episode_length_steps"] for r in rows(tmp_path) if "eval/episodes" in r]
    assert len(lengths) == 4 and min(lengths) > 2  # three by the interval, and the last policy's


def test_phase_and_copies_count_agent_steps_together(tmp_path, reach_file):
    trainer = reach_trainer(tmp_path, "td3", reach_file, "num_envs=3", "train_frames=198")
    trainer.run()
    assert all(env.get_wrapper_attr("in_phase") for env in trainer.envs)
    assert trainer.envs[0].get_wrapper_attr("counter").steps == 198


@pytest.mark.parametrize("keep, fewest, most", [("true", 330, 330), ("false", 130, 131)])
def test_replay_of_the_phase_is_kept_or_forgotten(tmp_path, reach_file, keep, fewest, most):
    trainer = reach_trainer(tmp_path, "td3", reach_file, f"snapshot_phase.keep_replay={keep}")
    trainer.run()
    assert fewest <= len(trainer.memory) <= most


# --- with other people's learners ---


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_example_runs(hopper, tmp_path, number):
    """As printed, but for fewer steps; in a process of its own, as a reader would."""
    code = EXAMPLES[number]
    if "stable_baselines3" in code:
        pytest.importorskip("stable_baselines3")
    code = code.replace("15_000", "150").replace("150_000", "300")
    hopper.save(tmp_path / "teacher.h5")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if "infos" in code:
        assert re.match(r"\[( *\d+){4}\] \[", done.stdout)
    if "mine.h5" in code:
        assert len(Snapshots.load(tmp_path / "mine.h5").episodes) >= 5


def test_stable_baselines3_leaves_the_phase_where_it_should(hopper):
    sb3 = pytest.importorskip("stable_baselines3")
    env = wrap(hopper, "Hopper-v5", truncate_steps=5, until_steps=100)
    student = sb3.TD3("MlpPolicy", env, learning_starts=50, policy_kwargs={"net_arch": [16]})
    student.learn(200)
    assert env.counter.steps == 200 and not env.in_phase
    assert student.replay_buffer.timeouts.any(), "SB3 bootstraps where the wrapper truncates"


def test_state_of_the_wrapper_is_plain_data(cartpole):
    env = wrap(cartpole, selection=LearnerError())
    env.reset(seed=0)
    env.step(0)
    state = env.state_dict()
    state["selection"] = {k: v.tolist() for k, v in state["selection"].items()}
    json.dumps(state)
