"""Which observations of gymnasium envs are images, what agents see of them, and what is refused."""

import json
from dataclasses import replace
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
from conftest import TINY
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    Sequence,
    Text,
    Tuple,
    flatten,
)
from test_state import assert_same

from rlearly import envs, restore, save, train
from rlearly.core.errors import ConfigError, UserCodeFailed
from rlearly.envs.observations import find_image, image_format
from rlearly.envs.state.resumable import ResumableEnv

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 4), np.uint8)
RGB = COLOURS[0, ..., :3]


class Shows(gymnasium.Env):
    """Observes what it is told to; `buffer`: always in the same array."""

    metadata = {"render_modes": []}  # noqa: RUF012
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, space, show, buffer=False):
        self.observation_space = space
        self.show = show
        self.buffer = np.zeros(space.shape, space.dtype) if buffer else None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        shown = self.show(self.steps)
        if self.buffer is None:
            return shown
        self.buffer[...] = shown
        return self.buffer


class Draws(Shows):
    """Shows that can render itself."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, space, show, render_mode=None):
        super().__init__(space, show)
        self.render_mode = render_mode

    def render(self):
        return np.full((10, 10, 3), 77, np.uint8)


@pytest.fixture
def make():
    """make(space, show) -> the env as an agent sees it; `show`: an observation, or step -> one."""

    def made(space, show=None, pixels=None, entry=Shows, kwargs=None, **changes):
        if show is None:
            space.seed(0)
            show = space.sample()
        kwargs = {"space": space, "show": show if callable(show) else lambda t: show} | (
            kwargs or {}
        )
        gymnasium.registry.pop("Shows-v0", None)
        gymnasium.register("Shows-v0", entry, kwargs=kwargs)
        config = replace(envs.config_for("Shows-v0"), **({"image_size": 24} | changes))
        return envs.make(config, pixels=pixels, model_seed=0)

    yield made
    gymnasium.registry.pop("Shows-v0", None)


def image_space(*shape, dtype=np.uint8, low=0, high=255):
    return Box(low, high, shape, dtype)


FIRST = RGB.transpose(2, 0, 1)
KINDS = {
    "colour": (image_space(24, 24, 3), RGB, FIRST),
    "grey": (image_space(24, 24, 1), RGB[..., :1], FIRST[:1]),
    "plain": (image_space(24, 24), RGB[..., 0], FIRST[:1]),
    "channels first": (image_space(3, 24, 24), FIRST, FIRST),
    "grey channel first": (image_space(1, 24, 24), FIRST[:1], FIRST[:1]),
    "RGBA": (image_space(24, 24, 4), COLOURS[0], COLOURS[0].transpose(2, 0, 1)),
    "float to 1": (
        image_space(24, 24, 3, dtype=np.float32, high=1),
        RGB.astype(np.float32) / 255,
        FIRST,
    ),
    "float to 255": (image_space(24, 24, 3, dtype=np.float64), RGB - 0.4, FIRST),
    "overshoot": (
        image_space(24, 24, dtype=np.float32, high=1),
        np.linspace(-0.05, 1.05, 576, dtype=np.float32).reshape(24, 24),
        np.rint(np.linspace(-0.05, 1.05, 576).clip(0, 1) * 255).reshape(1, 24, 24),
    ),
    "integers": (image_space(24, 24, 3, dtype=np.int64), RGB.astype(np.int64), FIRST),
    "black and white": (
        image_space(24, 24, high=1),
        np.eye(24, dtype=np.uint8),
        255 * np.eye(24)[None],
    ),
    "stacked greys": (image_space(4, 24, 24), COLOURS[..., 0], COLOURS[..., 0]),
    "stacked colours": (
        image_space(4, 24, 24, 3),
        COLOURS[..., :3],
        np.concatenate([image.transpose(2, 0, 1) for image in COLOURS[..., :3]]),
    ),
    "stacked channels first": (
        image_space(4, 3, 24, 24),
        COLOURS[..., :3].transpose(0, 3, 1, 2),
        np.concatenate([image.transpose(2, 0, 1) for image in COLOURS[..., :3]]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_learnt_from_as_frames_of_all_their_planes(make, kind):
    space, shown, expected = KINDS[kind]
    assert space.contains(shown) or kind in ("overshoot", "float to 255")
    env = make(space, lambda t: shown if t else 0 * shown, frame_stack=2)
    planes = len(expected)
    assert env.observation_space == Box(0, 255, (2 * planes, 24, 24), np.uint8)
    obs, _ = env.reset()
    assert env.observation_space.contains(obs) and not obs.any()
    obs, *_ = env.step(np.zeros(1, np.float32))
    np.testing.assert_array_equal(obs, np.concatenate([np.zeros_like(expected), expected]))
    (note,) = envs.notes(env)
    assert f"{space.dtype} {list(space.shape)} in [0, {space.high.max():g}]" in note
    assert f"uint8 [{planes}, 24, 24]" in note
    assert ("add env.frame_stack=1" in note) == (planes > 3)


@pytest.mark.parametrize("shape", [(48, 96), (96, 48, 1), (3, 48, 96)])
def test_images_are_resized_by_areas_to_squares(make, shape):
    draw = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    env = make(image_space(*shape), draw, frame_stack=1)
    seen = env.reset()[0].astype(float)
    image = np.atleast_3d(draw.transpose(1, 2, 0) if shape[0] == 3 else draw)
    height, width = image.shape[0] // 24, image.shape[1] // 24
    means = image.reshape(24, height, 24, width, -1).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(seen - means).max() <= 1


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24), (3, 24, 24), (24, 24, 3)])
def test_stack_keeps_earlier_images_of_an_env_that_reuses_its_buffer(make, shape):
    env = make(image_space(*shape), lambda t: t, kwargs={"buffer": True}, frame_stack=3)
    env.reset()
    for _ in range(5):
        obs, *_ = env.step(np.zeros(1, np.float32))
    planes = len(obs) // 3
    assert obs[:, 0, 0].tolist() == [3] * planes + [4] * planes + [5] * planes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("colour", RGB),
        ("plain", RGB[..., [0, 0, 0]]),
        ("channels first", RGB),
        ("RGBA", RGB),
        ("stacked greys", COLOURS[3][..., [0, 0, 0]]),
        ("stacked colours", COLOURS[3][..., :3]),
        ("stacked channels first", COLOURS[3][..., :3]),
    ],
)
def test_videos_show_the_newest_image_in_colours(make, kind, expected):
    env = make(*KINDS[kind][:2])
    env.reset()
    np.testing.assert_array_equal(envs.frame_renderer(env)(24), expected)
    assert envs.frame_renderer(env)(32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("space", "numbers"),
    [
        (image_space(4, 4, dtype=np.int64, high=15), 16),
        (image_space(8, 8), 64),
        (image_space(7, 7, 3), 147),
        (image_space(15, 80, 3), 3600),
        (Box(-np.inf, np.inf, (100, 3)), 300),
        (Dict(grid=image_space(7, 7, 3), direction=Discrete(4)), 151),
        (MultiBinary((5, 5)), 25),
    ],
)
def test_boards_are_states_and_a_note_says_so(make, space, numbers):
    env = make(space)
    assert env.observation_space.shape == env.reset()[0].shape == (numbers,)
    (note,) = envs.notes(env)
    assert f"a vector of {numbers:,} numbers" in note
    suggests = isinstance(space, Box) and space.dtype == np.uint8
    assert ("env.pixels=true" in note) == suggests
    assert "env.pixels=true" in envs.notes(make(space, entry=Draws))[0]


@pytest.mark.parametrize("space", [Box(-1, 1, (3,)), Dict(a=Box(-1, 1, ()), b=Discrete(2))])
def test_plain_states_need_no_note(make, space):
    assert envs.notes(make(space)) == []


def test_pixels_true_takes_small_bytes_for_images_and_renders_other_states(make):
    symbols = make(image_space(7, 7, 3), pixels=True, entry=Draws)
    assert envs.notes(symbols)[0].startswith("images: the env's observations, uint8 [7, 7, 3]")
    others = [
        image_space(4, 4, dtype=np.int64, high=15),
        image_space(2, 3, dtype=np.float32, high=1),
        Dict(grid=image_space(7, 7, 3), mission=Text(9)),
    ]
    for space in others:
        env = make(space, pixels=True, entry=Draws)
        assert env.reset()[0].shape == (9, 24, 24) and (env.reset()[0] == 77).all()
        assert envs.notes(env) == []


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_false_makes_states_of_all_images(make, kind):
    space, shown, _ = KINDS[kind]
    env = make(space, shown, pixels=False)
    np.testing.assert_array_equal(env.reset()[0], shown.astype(space.dtype).astype("f4").ravel())


UNCLEAR = [
    image_space(64, 64, 3, dtype=np.float32, low=-np.inf, high=np.inf),
    image_space(64, 64, 3, dtype=np.float32, low=-1, high=1),
    image_space(20, 20, dtype=np.int8, high=2),
    image_space(32, 32, 32),
    image_space(2, 24, 24, 5),
]


@pytest.mark.parametrize("pixels", [None, True])
@pytest.mark.parametrize("space", UNCLEAR, ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_what_could_be_images_or_states_is_refused_unless_pixels_is_false(
    make, space, pixels, inside
):
    whole = Dict(camera=space, speed=Box(-1, 1, (2,))) if inside else space
    what = "'camera' of its observations" if inside else "its observations"
    with pytest.raises(ConfigError, match=rf"^env=Shows-v0: {what}, {space.dtype} \[") as refused:
        make(whole, pixels=pixels)
    assert "with bounds [0, 255] or [0, 1]" in str(refused.value)
    assert "or add obs=state" in str(refused.value)
    env = make(whole, pixels=False)
    assert env.reset()[0].shape == (np.prod(space.shape) + 2 * inside,)


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (Dict(a=image_space(24, 24), b=image_space(3, 24, 24), c=Discrete(2)), "'a', 'b'"),
        (Dict(sensors=Dict(a=image_space(24, 24)), c=Discrete(2)), "'sensors/a'"),
        (Tuple((Box(-1, 1, (2,)), image_space(24, 24))), "'1'"),
    ],
)
def test_several_or_nested_images_are_refused(make, space, names):
    with pytest.raises(ConfigError, match=f"expected one image .*, received {names}: keep one"):
        make(space)
    assert len(make(space, pixels=False).observation_space.shape) == 1


def test_image_under_any_key_is_observed_with_the_rest_as_a_vector(make):
    space = Dict(
        rgb=image_space(24, 24, 3),
        arm=Dict(angle=Box(-9, 9, (2, 2), np.float64), on=Discrete(3)),
        speed=Box(-1, 1, (), np.float32),
    )
    space.seed(3)
    shown = space.sample()
    env = make(space, shown, frame_stack=1)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs["pixels"], shown["rgb"].transpose(2, 0, 1))
    rest = {"arm": shown["arm"], "speed": shown["speed"]}
    expected = flatten(Dict({key: space[key] for key in rest}), rest)
    np.testing.assert_array_equal(obs["vector"], expected.astype(np.float32))
    assert env.observation_space.contains(obs) and obs["vector"].shape == (8,)
    assert "the env's 'rgb', uint8 [24, 24, 3]" in envs.notes(env)[0]
    assert "8 numbers ('arm', 'speed')" in envs.notes(env)[0]
    alone = make(Dict(rgb=image_space(24, 24)), frame_stack=1)
    assert alone.observation_space == Box(0, 255, (1, 24, 24), np.uint8)


def test_pixels_and_vector_are_an_image_and_a_vector_whatever_the_size():
    space = Dict(pixels=image_space(8, 8, 3), vector=Box(-1, 1, (2,)))
    assert find_image(space, "X").format.sides == (8, 8)
    assert find_image(Dict(pixels=image_space(8, 8, 3), other=Box(-1, 1, (2,))), "X") is None


@pytest.mark.parametrize("rest", [Text(5), Graph(Box(-1, 1), None), Sequence(Discrete(2))])
@pytest.mark.parametrize("image", [False, True])
def test_parts_that_cannot_be_flattened_are_refused(make, rest, image):
    other = image_space(24, 24) if image else Box(-1, 1, (2,))
    cases = [(Dict(a=Dict(b=rest), c=other), "'a/b' of its obs", "FilterObservation leaves it out")]
    if not image:
        cases.append((rest, "its obs", "TransformObservation makes numbers of it"))
    for space, what, remedy in cases:
        for pixels in (None, False):
            with pytest.raises(
                ConfigError, match=f"^env=Shows-v0: {what}.* cannot be flattened"
            ) as no:
                make(space, pixels=pixels)
            assert str(rest) in str(no.value) and remedy in str(no.value)


@pytest.mark.parametrize(
    ("space", "shown", "message"),
    [
        (
            image_space(24, 24),
            np.zeros((24, 24, 1), np.uint8),
            r"uint8 \[24, 24, 1\]; expected uint8 \[24, 24\], as its",
        ),
        (image_space(24, 24, dtype="f4", high=1), 255.0, "from 255 to 255, .* bounds of 0 and 1"),
        (image_space(24, 24, dtype="f4", high=1), -0.2, "from -0.2 to -0.2, "),
        (image_space(24, 24, dtype="f4", high=1), np.nan, "from nan to nan"),
        (image_space(24, 24, dtype="f4"), 0.5, "would all be black: if they are in"),
    ],
)
def test_images_that_are_not_as_their_space_says_are_not_learnt_from(make, space, shown, message):
    shown = np.full((24, 24), shown, np.float32) if np.isscalar(shown) else shown
    env = make(space, shown)
    with pytest.raises((ValueError, UserCodeFailed), match=message):
        env.reset()


def test_black_and_very_dark_whole_numbers_are_images(make):
    for value in (0.0, 1.0):
        env = make(image_space(24, 24, dtype="f4"), np.full((24, 24), value, np.float32))
        assert (env.reset()[0] == value).all()


def test_formats_agree_with_gymnasiums_own_wrappers():
    import tiny_envs
    from gymnasium import wrappers

    env = tiny_envs.PixelReach()
    grey = wrappers.GrayscaleObservation(env)
    cases = {
        grey: (1, (24, 24)),
        wrappers.GrayscaleObservation(env, keep_dim=True): (1, (24, 24)),
        wrappers.FrameStackObservation(grey, 4): (4, (24, 24)),
        wrappers.FrameStackObservation(env, 4): (12, (24, 24)),
        wrappers.AddRenderObservation(tiny_envs.PixelReach("rgb_array")): (3, (24, 24)),
    }
    for wrapped, (planes, sides) in cases.items():
        image = image_format(wrapped.observation_space)
        assert (image.planes, image.sides) == (planes, sides)
        obs, _ = wrapped.reset(seed=0)
        assert image.frame(obs).shape == (*sides, planes)


@pytest.mark.parametrize("takes_render_mode", [False, True])
def test_images_of_an_env_made_by_a_function_need_no_render_mode(takes_render_mode):
    space = image_space(24, 24)
    asked = []

    def without():
        return Shows(space, lambda t: RGB[..., 0])

    def with_mode(render_mode=None):
        asked.append(render_mode)
        return Draws(space, lambda t: RGB[..., 0], render_mode)

    gymnasium.register("Made-v0", with_mode if takes_render_mode else without)
    try:
        env = envs.make(envs.config_for("Made-v0"), pixels=None, model_seed=0, videos=True)
        env.reset()
        assert envs.frame_renderer(env)(32).shape == (32, 32, 3)
        assert asked == ["rgb_array"] * takes_render_mode
    finally:
        del gymnasium.registry["Made-v0"]


@pytest.mark.skipif(not find_spec("minigrid"), reason="minigrid is not installed")
def test_minigrid_is_observed_without_its_text():
    import minigrid  # noqa: F401

    name = "minigrid:MiniGrid-Empty-5x5-v0"
    env = envs.make(envs.config_for(name), pixels=None, model_seed=0)
    bare = gymnasium.make(name)
    obs, _ = env.reset(seed=3)
    expected, _ = bare.reset(seed=3)
    for action in (2, 1, 2, 0, 2):
        direction = np.eye(4)[expected["direction"]]
        assert obs.tolist() == [*direction, *expected["image"].ravel()]  # 4 + 7 * 7 * 3
        obs, reward, *_ = env.step(action)
        expected, right, *_ = bare.step(action)
        assert reward == right
    (note,) = envs.notes(env)
    assert "151 numbers" in note and "the mission, a text, is left out" in note
    start = envs.make(envs.config_for(name), pixels=None, model_seed=0)
    start.reset(seed=0)
    restore(start, save(env))
    for action in (0, 2, 2, 1):
        assert_same(start.step(action), env.step(action))


@pytest.mark.skipif(not find_spec("ale_py"), reason="ale-py is not installed")
def test_stacked_grey_images_of_atari_are_learnt_from_as_pixels():
    import ale_py
    from gymnasium import wrappers

    def atari():
        env = gymnasium.make("ALE/Pong-v5", continuous=True, obs_type="grayscale")
        return wrappers.FrameStackObservation(env, 4)

    gymnasium.register_envs(ale_py)
    gymnasium.register("AtariGrey-v0", atari)
    try:
        config = replace(envs.config_for("AtariGrey-v0"), frame_stack=1)
        env = envs.make(config, pixels=None, model_seed=0)
        env.reset(seed=0)
        for _ in range(3):
            obs, *_ = env.step(env.action_space.high)
        assert obs.shape == (4, 84, 84) and obs.std() > 1
        assert "uint8 [4, 210, 160] in [0, 255]" in envs.notes(env)[0]
        env.close()
    finally:
        del gymnasium.registry["AtariGrey-v0"]


def test_grey_images_resume_in_mid_episode():
    config = envs.config_for("tiny_envs:GreyReach-v0")
    made = [envs.make(config, pixels=None, model_seed=0) for _ in range(2)]
    env, other = (ResumableEnv(one, np.random.default_rng(i)) for i, one in enumerate(made))
    env.reset()
    for _ in range(3):
        env.step(np.full(1, 0.5, np.float32))
    other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(other.obs, env.obs)
    one, two = (each.step(np.full(1, -0.3, np.float32)) for each in (env, other))
    np.testing.assert_array_equal(one[0], two[0])


def test_grey_images_are_learnt_from_and_stored_as_one_plane(tmp_path, capsys):
    words = [*TINY, "env=tiny_envs:GreyReach-v0", "agent=drqv2", f"run_dir={tmp_path / 'run'}"]
    words += ["train_frames=150", "eval_every_frames=75", "eval_episodes=1", "video_size=32"]
    assert train.main([*words, "device=cpu", "log_every_frames=50"]) == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert said.count("images: the env's observations, uint8 [24, 24] in [0, 255]") == 1
    assert f"transitions of {24 * 24 + 4 + 10} bytes" in said
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [row["loss/critic"] for row in rows if "loss/critic" in row]
    assert losses and np.isfinite(losses).all()
    assert len(list((tmp_path / "run/videos").glob("*.mp4"))) == 2


def test_text_observations_are_one_sentence_on_the_command_line(tmp_path, capsys):
    class Told(Shows):
        def __init__(self):
            super().__init__(Dict(mission=Text(9), place=Box(-1, 1, (2,))), None)

    gymnasium.register("Told-v0", Told)
    try:
        assert train.main(["agent=drqv2", "env=Told-v0", f"run_dir={tmp_path / 'run'}"]) == 2
    finally:
        del gymnasium.registry["Told-v0"]
    said = capsys.readouterr().err
    assert said.startswith(
        "rlearly: env=Told-v0: 'mission' of its observations cannot be flattened"
    )
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["td3", "sac", "ppo"])
def test_agents_of_states_refuse_images_and_say_how_to_go_on(tmp_path, capsys, agent):
    words = [f"agent={agent}", "env=tiny_envs:GreyReach-v0", f"run_dir={tmp_path / 'run'}"]
    assert train.main(words) == 2
    said = capsys.readouterr().err
    assert "are images: use agent=drm or agent=drqv2, or add obs=state" in said
