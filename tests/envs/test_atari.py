"""Atari games: the rules of Atari-100k beside ale-py's own envs, exact states, and messages."""

import functools
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.seeding import np_random
from saved import rows
from test_state import assert_same, check_contract
from test_trainer import make_trainer

import rlearly
from rlearly import envs
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.envs import atari
from rlearly.envs.state import simulators
from rlearly.envs.state.between_episodes import kept_by
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.transfer import study
from rlearly.training import builder

ale_py = pytest.importorskip("ale_py", reason="ale-py is not installed")


def ours(name="atari/Breakout", evaluation=False, **changes):
    """The game alone; its step's image is `grey_frame`."""
    return atari.AtariGame(replace(envs.config_for(name), **changes), evaluation=evaluation)


def stacked(name="atari/Breakout", evaluation=False, **changes):
    """As agents see it."""
    config = replace(envs.config_for(name), **changes)
    return envs.make(config, pixels=True, model_seed=0, evaluation=evaluation)


def bare(env_id, **kwargs):
    """ale-py's env, new: its emulator is in the state in which the console was switched on."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(env_id, **kwargs).unwrapped
    env.reset()
    return env


def literal_average(image, size):
    """Each pixel `size` times along both axes, then the plain mean of blocks."""
    rows, columns = (block_means(length, size) for length in image.shape)
    return rows @ image @ columns.T


@functools.cache
def block_means(length, size):
    """[size, length]: what repeating `size` times and averaging blocks of `length` does."""
    return np.repeat(np.eye(length), size, 0).reshape(size, length, length).mean(1)


def play_literally(env, action, frames, may_end):
    """(reward, grey screen, ended) of one step, by the words of the protocol."""
    reward, screens, lives = 0.0, [], env.ale.lives()
    for _ in range(frames):
        reward += env.step(action)[1]
        screens.append(env.ale.getScreenGrayscale())
        if env.ale.game_over() or (may_end and env.ale.lives() < lives):
            return reward, None, True
    return reward, np.maximum(screens[-2], screens[-1]), False


# --- names and settings ---


def test_every_game_for_one_player_is_known():
    gymnasium.register_envs(ale_py)
    registered = {e.split("/")[1] for e in gymnasium.registry if e.startswith("ALE/")}
    assert {f"atari/{name.removesuffix('-v5')}" for name in registered} == set(atari.names())
    assert atari.GAMES["atari/BankHeist"] == "bank_heist" and len(atari.names()) == 104


def test_game_has_the_settings_of_atari_100k():
    config = envs.config_for("atari/RoadRunner")
    shape = (config.action_repeat, config.frame_stack, config.image_size, config.rules)
    assert (config.family, *shape) == ("atari", 4, 4, 84, "paper")
    game = ours("atari/RoadRunner")
    assert game.ale.getFloat("repeat_action_probability") == 0
    assert game.max_frames == 108_000 == 4 * 27_000 and game.most_noop_frames == 29
    assert game.ends_at_lost_life and game.clips_rewards
    whole = ours("atari/RoadRunner", evaluation=True)
    assert not (whole.ends_at_lost_life or whole.clips_rewards)


@pytest.mark.parametrize("typo", ["atari/pong", "atari/Pnog", "atari/Pong-v5"])
def test_typo_gets_the_nearest_games(typo):
    with pytest.raises(ConfigError, match=f"no env '{typo}'; did you mean .*atari/Pong"):
        envs.config_for(typo)


def test_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError) as caught:
        envs.make(envs.config_for("atari/Pong"), pixels=True, model_seed=0)
    assert str(caught.value) == (
        "env=atari/Pong: the package ale-py is not installed here: pip install 'rlearly[atari]'."
    )


def test_mode_and_difficulty_are_ales():
    rams = []
    for kwargs in ({}, {"mode": 8}, {"difficulty": 1}):
        game, plain = ours(kwargs=kwargs), bare("BreakoutNoFrameskip-v4", **kwargs)
        game.reset(seed=0)
        for _ in range(int(np_random(0)[0].integers(30))):
            plain.step(0)
        for action in (1, 2, 3, 3) * 5:
            game.step(action)
            play_literally(plain, action, 4, may_end=True)
        assert game.ale.getRAM().tobytes() == plain.ale.getRAM().tobytes()
        rams.append(plain.ale.getRAM().tobytes())
    assert len(set(rams)) == 3


def test_missing_rom_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^env=atari/Pong: ale-py .* cannot load .*: unset ALE_"):
        ours("atari/Pong")
    monkeypatch.delenv("ALE_ROMS_DIR")
    monkeypatch.setitem(atari.GAMES, "atari/Pong", "polo")
    with pytest.warns(UserWarning, match="polo"), pytest.raises(ConfigError, match="cannot load"):
        ours("atari/Pong")


def test_arguments_of_the_game_work_or_are_refused():
    assert ours("atari/Pong").action_space.n == 6
    assert ours("atari/Pong", kwargs={"full_action_space": True}).action_space.n == 18
    refused = {
        "sound": (1, r"^env.kwargs.sound: expected one of full_action_space, mode, difficulty"),
        "mode": (9, r"^env.kwargs.mode: expected one of 0, 1 for env=atari/Pong, received 9"),
        "difficulty": (5, r"^env.kwargs.difficulty: expected one of 0, 1, 2, 3 for"),
    }
    for name, (value, message) in refused.items():
        with pytest.raises(ConfigError, match=message):
            ours("atari/Pong", kwargs={name: value})
    for change, name in (({"render": "fast"}, "render"), ({"camera": 0}, "camera")):
        config = replace(envs.config_for("atari/Pong"), **change)
        with pytest.raises(ConfigError, match=f"^env.{name}: applies only to MuJoCo's images"):
            envs.make(config, pixels=True, model_seed=0)
    for task, rules in (("atari/Pong", "package"), ("adroit/pen", "sticky"), ("dog_run", "sticky")):
        with pytest.raises(ConfigError, match=r"^env.rules: "):
            resolve.compose([f"env={task}", f"env.rules={rules}"])


def test_games_are_drawn_without_gl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    envs.check_rendering(envs.config_for("atari/Pong"), pixels=True, videos=True)
    game = ours("atari/Pong")
    game.reset(seed=0)
    assert game.render_frame(64).shape == (64, 64, 3)
    assert len(np.unique(game.render_frame(64).reshape(-1, 3), axis=0)) > 3, "it has colours"


# --- images ---


def test_area_average_is_the_mean_over_each_pixels_area():
    image = np.array([[10, 40, 70], [20, 50, 80], [90, 60, 30]], np.uint8)
    # two pixels of 1.5 x 1.5: (10 + 40/2 + 20/2 + 50/4) / 1.5^2 = 23.33, ...
    np.testing.assert_array_equal(atari.area_average(image, 2), [[23, 63], [63, 50]])
    halves = np.array([[0, 1, 1, 2], [0, 1, 1, 2]], np.uint8)
    np.testing.assert_array_equal(atari.area_average(halves, 2), [[0, 2], [0, 2]])  # to even
    random = np.random.default_rng(0)
    for height, size in ((210, 84), (250, 84), (210, 48), (214, 100)):
        image = random.integers(0, 256, (height, 160), dtype=np.uint8)
        np.testing.assert_array_equal(
            atari.area_average(image, size), np.rint(np.round(literal_average(image, size), 9))
        )


def test_first_image_of_an_episode_fills_the_stack_after_a_lost_life_too():
    env = stacked()
    env.action_space.seed(0)
    for began in range(4):
        obs, info = env.reset(seed=began)
        assert obs.shape == (4, 84, 84) and (obs == obs[3]).all()
        np.testing.assert_array_equal(obs[3], env.unwrapped.grey_frame(84)[:, :, 0])
        terminated = False
        while not terminated:
            last, _, terminated, _, info = env.step(env.action_space.sample())
    assert not (last == last[3]).all() and info["lives"] == 1


# --- the rules, beside ale-py's own env driven by their words ---


def test_training_is_the_protocol_of_atari_100k():
    env, plain = stacked(), bare("BreakoutNoFrameskip-v4")
    env.action_space.seed(1)
    seed = 5
    obs, info = env.reset(seed=seed)
    noops = int(np_random(seed)[0].integers(30))
    assert noops > 0 and info == {"lives": 5}
    for _ in range(noops):
        plain.step(0)
    expected = np.stack([literal_average(plain.ale.getScreenGrayscale(), 84)] * 4)
    rewards, lost, total = set(), 0, 0.0
    for _ in range(600):
        np.testing.assert_allclose(obs, expected, atol=0.5 + 1e-9)
        action = env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(action)
        frame, screen, ended = play_literally(plain, action, 4, may_end=True)
        total += frame
        assert reward == np.clip(frame, -1, 1) and (terminated, truncated) == (ended, False)
        assert info["lives"] == plain.ale.lives() and ("game_return" in info) == (
            plain.ale.game_over()
        )
        rewards.add(reward)
        if ended and plain.ale.game_over():
            break
        if ended:
            lost += 1
            obs, _ = env.reset(seed=lost)
            expected = np.stack([literal_average(plain.ale.getScreenGrayscale(), 84)] * 4)
        else:
            expected = np.concatenate([expected[1:], literal_average(screen, 84)[None]])
    assert plain.ale.game_over() and lost == 4 and rewards == {0.0, 1.0}
    assert info["game_return"] == total > 0
    env.reset(seed=seed)
    assert env.unwrapped.ale.lives() == 5 and env.unwrapped.played == (0, 0.0)


def test_evaluation_is_whole_games_with_the_games_own_rewards():
    env, plain = ours("atari/Assault", evaluation=True), bare("AssaultNoFrameskip-v4")
    env.action_space.seed(0)
    env.reset(seed=3)
    for _ in range(int(np_random(3)[0].integers(30))):
        plain.step(0)
    rewards, lives = [], set()
    while not plain.ale.game_over():
        action = env.action_space.sample()
        _, reward, terminated, truncated, info = env.step(action)
        frame, screen, ended = play_literally(plain, action, 4, may_end=False)
        assert (reward, terminated, truncated) == (frame, ended, False)
        if screen is not None:
            np.testing.assert_array_equal(env.image[1], screen)
        rewards.append(reward)
        lives.add(info["lives"])
    assert len(lives) > 2 and max(rewards) == 21 and info["game_return"] == sum(rewards)


def test_an_evaluation_takes_a_random_action_once_in_a_thousand_and_training_never():
    def taken(evaluation):
        """How often the joystick is anywhere but at rest, when the agent never moves it."""
        game = ours("atari/Pong", evaluation=evaluation)
        game.actions = list(range(len(game.actions)))
        acted = []
        ale = game.ale
        for seed in range(8):
            game.ale = ale
            game.reset(seed=seed)
            game.ale = Spy(ale, acted)
            while not game.step(0)[2]:
                pass
        return sum(action != 0 for action in acted) / len(acted)

    assert taken(evaluation=False) == 0.0
    assert 0.0003 < taken(evaluation=True) < 0.0017  # one of six random actions is to rest


class Spy:
    """The emulator; notes the actions that it is given."""

    def __init__(self, ale, acted):
        self.ale, self.acted = ale, acted

    def act(self, action):
        self.acted.append(action)
        return self.ale.act(action)

    def __getattr__(self, name):
        return getattr(self.ale, name)


def test_training_clips_the_rewards_of_a_step():
    training, whole = ours("atari/Assault"), ours("atari/Assault", evaluation=True)
    training.action_space.seed(0)
    pairs, terminated = set(), False
    for game in (training, whole):
        game.reset(seed=3)
    while not terminated:
        action = training.action_space.sample()
        _, clipped, terminated, _, _ = training.step(action)
        pairs.add((clipped, whole.step(action)[1]))
    assert pairs == {(0.0, 0.0), (1.0, 21.0)}


def test_sticky_rules_repeat_the_last_frames_action_a_quarter_of_the_time():
    env = ours(rules="sticky")
    plain = bare("BreakoutNoFrameskip-v4")
    env.action_space.seed(2)
    env.reset(seed=7)
    coin, held, repeats, frames, lives = np_random(7)[0], 0, 0, 0, {5}
    coin.integers(1)  # the number of no-ops, which is 0
    assert env.ale.getRAM().tobytes() == plain.ale.getRAM().tobytes(), "no no-op"
    while not plain.ale.game_over():
        action = env.action_space.sample()
        _, _, terminated, _, info = env.step(action)
        for _ in range(4):
            if coin.random() >= 0.25:
                held = action
            else:
                repeats += 1
            frames += 1
            plain.step(held)
            if plain.ale.game_over():
                break
        assert env.ale.getRAM().tobytes() == plain.ale.getRAM().tobytes()
        assert terminated == plain.ale.game_over(), "only the end of the game ends an episode"
        lives.add(info["lives"])
    assert lives == {5, 4, 3, 2, 1, 0} and 0.2 < repeats / frames < 0.3


def test_game_begins_with_0_to_29_frames_without_action_that_its_seed_decides():
    game = ours("atari/Pong")
    plain = bare("PongNoFrameskip-v4")
    states = [plain.ale.getRAM().tobytes()]
    for _ in range(29):
        plain.step(0)
        states.append(plain.ale.getRAM().tobytes())
    counts = []
    for seed in range(200):
        game.reset(seed=seed)
        counts.append(states.index(game.ale.getRAM().tobytes()))
    assert set(counts) == set(range(30))
    other = ours("atari/Pong")
    other.reset(seed=0)
    other.step(3)
    other.reset(seed=11)
    assert states.index(other.ale.getRAM().tobytes()) == counts[11]


@pytest.mark.parametrize("name", ["atari/Assault", "atari/Berzerk", "atari/Solaris"])
def test_later_game_is_like_the_first(name):
    """In these games ALE's own reset leaves something of the game before."""
    first, later = ours(name, evaluation=True), ours(name, evaluation=True)
    first.action_space.seed(0)
    later.reset(seed=1)
    for _ in range(150):
        later.step(first.action_space.sample())
    seed = next(s for s in range(100) if np_random(s)[0].integers(30) == 0)
    for game in (first, later):
        game.reset(seed=seed)
    for _ in range(200):
        np.testing.assert_array_equal(first.image[1], later.image[1])
        action = first.action_space.sample()
        assert_same(first.step(action), later.step(action))


def test_game_is_truncated_at_its_limit_and_begins_anew():
    game = ours("atari/Pong", max_episode_steps=40)
    game.reset(seed=0)
    endings = [game.step(0)[2:4] for _ in range(10)]
    assert endings == [(False, False)] * 9 + [(False, True)]
    game.reset(seed=0)
    assert game.played == (0, 0.0)
    game = ours("atari/Pong")
    game.reset(seed=0)
    for steps, late in ((26_998, False), (26_999, True)):
        game.played = (steps, 0.0)
        assert game.step(0)[2:4] == (False, late)


def test_reset_in_the_middle_of_a_life_begins_a_new_game():
    game = ours()
    game.action_space.seed(0)
    game.reset(seed=0)
    while not game.step(game.action_space.sample())[2]:
        pass
    game.reset(seed=1)
    assert game.ale.lives() == 4 and game.played[0] > 0, "the game goes on"
    game.step(0)
    game.reset(seed=1)
    assert game.ale.lives() == 5 and game.played[0] == 0


def test_state_is_the_ram():
    game = ours("atari/Pong")
    obs, _ = game.reset(seed=0)
    assert obs.dtype == np.float32 and obs.shape == (128,)
    np.testing.assert_array_equal(np.round(obs * 255), game.ale.getRAM())


# --- exact states ---


@pytest.mark.parametrize(
    ("name", "rules"),
    [("atari/Breakout", "paper"), ("atari/Qbert", "paper"), ("atari/Breakout", "sticky")],
)
def test_restored_game_continues_to_the_bit_across_lost_lives(name, rules):
    check_contract(functools.partial(stacked, name, rules=rules), "ale", points=(0, 60), after=500)


def played(env, actions, begin=0):
    """Everything that an env says; it is reset, from `begin` on, when an episode ends."""
    said = []
    for number, action in enumerate(actions):
        out = env.step(action)
        said.append(out)
        if out[2] or out[3]:
            said.append(env.reset(seed=begin + number))
    return said


@pytest.mark.parametrize("name", ["atari/Qbert", "atari/Tetris"])
@pytest.mark.parametrize("frames", [0, 1, 2, 40])
def test_console_that_has_just_been_switched_on_takes_over_any_state(name, frames):
    """ALE's states leave out whether it has run since; these games depend on it."""

    def played(game):
        return [game.step(i % game.action_space.n)[0].tolist() for i in range(60)]  # RAM

    game, another = (ours(name, evaluation=True, action_repeat=1) for _ in range(2))
    game.epsilon = another.epsilon = 0.0
    game._switch_on()
    for i in range(frames):
        game.step(i % game.action_space.n)
    state = simulators.save("ale", game.ale)
    expected = played(game)
    for other in (another, game):
        simulators.restore(other.ale, state)
        assert played(other) == expected


@pytest.mark.parametrize("at", ["in a life", "between lives"])
def test_resumed_env_equals_an_uninterrupted_one_over_500_steps(at):
    def resumable():
        return ResumableEnv(stacked(), np.random.default_rng(3))

    env, other = resumable(), resumable()
    env.action_space.seed(4)
    env.reset()
    for _ in range(2):
        while not env.step(env.action_space.sample())[2]:
            pass
        if at == "in a life":
            env.reset()
            env.step(env.action_space.sample())
    state = env.state_dict()
    actions = [env.action_space.sample() for _ in range(500)]
    other.reset()
    other.step(1)
    other.load_state_dict(state)
    if at == "between lives":
        lives = env.unwrapped.ale.lives()
        for one in (env, other):
            _, info = one.reset()
            assert info["lives"] == lives < 5, "the next episode is the next life"
    else:
        assert_same(other.obs, env.obs)
    said = played(env, actions)
    assert_same(played(other, actions), said)
    assert sum(len(out) == 2 for out in said) > 5, "several lives were lost"


def test_evaluation_is_a_game_of_its_own_and_leaves_the_training_game_alone():
    config = resolve.compose(["env=atari/Breakout", "agent=drqv2", "obs=pixels"])
    assert config.env.pixels and config.env.action_repeat == 4
    training = builder.make_env(config)
    training.action_space.seed(0)
    training.reset(seed=0)
    while not training.step(training.action_space.sample())[2]:
        pass
    before = training.unwrapped.ale.getRAM()
    said = []
    for _ in range(2):
        env = builder.make_evaluation_env(
            config, videos=True, kept=lambda: kept_by(training), message=said.append
        )
        obs, info = env.reset(seed=9)
        assert info["lives"] == 5
        env.action_space.seed(1)
        lives, terminated = set(), False
        while not terminated:
            obs, _, terminated, _, info = env.step(env.action_space.sample())
            lives.add(info["lives"])
        assert lives == {0, 1, 2, 3, 4, 5}, "the episode is the whole game"
        assert envs.frame_renderer(env)(64).shape == (64, 64, 3)
        said.append((obs.tobytes(), info["game_return"]))
    assert said[0] == said[1], "it follows from its seed"
    np.testing.assert_array_equal(training.unwrapped.ale.getRAM(), before)
    assert training.reset(seed=5)[1] == {"lives": 4}, "the training game goes on"


def test_student_continues_a_teachers_game_to_the_bit_and_loses_its_lives(tmp_path):
    teacher = stacked(evaluation=True)
    teacher.action_space.seed(0)
    taken = []

    def policy(obs):
        taken.append(teacher.action_space.sample())
        return taken[-1]

    file = tmp_path / "teacher.h5"
    rlearly.record(teacher, policy, episodes=1, every_steps=40, seed=2).save(file)
    student = rlearly.SnapshotRL(stacked(), file, truncate_steps=None, until_steps=0)
    assert any("ends_at_lost_life (True, not False)" in line for line in student.differences)
    seed = int(np.random.SeedSequence(2).generate_state(1)[0])
    for index, step in enumerate(student.snapshots.steps.tolist()):
        oracle = stacked(evaluation=True)
        oracle.reset(seed=seed)
        for action in taken[:step]:
            oracle.step(action)
        student.reset(seed=77)
        student.step(1)
        obs, info = student.reset(seed=78, options={"snapshot": index})
        game = student.unwrapped
        lives = oracle.unwrapped.ale.lives()
        assert info["lives"] == game.ale.lives() == lives and game.played == (0, 0.0)
        np.testing.assert_array_equal(
            obs, np.tile(oracle.unwrapped.grey_frame(84)[:, :, 0], (4, 1, 1))
        )
        for action in taken[step : step + 60]:
            _, reward, terminated, _, info = student.step(action)
            _, expected, over, _, _ = oracle.step(action)
            assert reward == np.clip(expected, -1, 1)
            lost = oracle.unwrapped.ale.lives() < lives
            assert terminated == (lost or over)
            if terminated:
                break
            np.testing.assert_array_equal(game.image[1], oracle.unwrapped.image[1])
            assert game.ale.getRAM().tobytes() == oracle.unwrapped.ale.getRAM().tobytes()
    assert index >= 3 and lives < 5


def test_screen_that_stands_still_is_taken_from_the_snapshot():
    game = ours("atari/Gopher")  # its first seconds show one and the same image
    found = study(game, "ale")
    assert {path[0] for path in found.changed - found.carried} >= {".image", ".ale"}
    assert found.carried == {(".played",)}


def test_return_of_a_game_is_written_where_a_game_ends(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer._end_episode(0, {})
    trainer._end_episode(0, {"game_return": 21.0})
    assert [row.get("train/game_return") for row in rows(tmp_path)] == [None, 21.0]
    trainer.close()


def test_replay_of_grey_images_is_counted_as_grey():
    config = resolve.compose(["env=atari/Pong", "agent=drqv2", "obs=pixels"])
    per_slot = builder.known_replay_bytes(config) / builder.replay_slots(config)
    assert 84 * 84 < per_slot < 84 * 84 + 100
