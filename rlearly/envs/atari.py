"""Atari games by the Arcade Learning Environment (ale-py), with the rules of Atari-100k.

`env.rules=paper` follows what DrQ(eps) was published with (github.com/google/dopamine: atari_lib.py
and labs/atari_100k, DrQ_eps.gin and MaxEpisodeEvalRunner), on the NoFrameskip-v4 games:

- No sticky actions, and the game's minimal set of actions. FIRE is never pressed by the env.
- A step repeats its action for 4 frames and shows the maximum of the last two, in greyscale,
  resized to 84x84 by area interpolation (cv2.INTER_AREA). Four images are stacked.
- A game begins with 0 to 29 no-ops, drawn from the env's generator.
- In training a lost life ends the episode, terminated, and the next reset continues the game.
  Rewards of a step are clipped to [-1, 1].
- In evaluation an episode is a whole game, rewards are the game's, and one action in 1000 is
  random. The env draws it, so that evaluating needs no random numbers of the agent's.
- A game is truncated after 108,000 frames, 27,000 steps.

`env.rules=sticky` follows Machado et al. (arXiv 1709.06009): each frame repeats the action of the
frame before with probability 0.25, only the end of the game ends an episode, and there are no
no-ops at its beginning. Images, the frame limit and clipping in training are as above (Dopamine's
defaults). Their full set of 18 actions is `env.kwargs.full_action_space=true`.

States (`obs=state`) are the console's 128 bytes of RAM, divided by 255. That is not all of a game's
state: cartridges have registers, and some have memory, of their own.

Deviations from the official code:

- An episode's first image fills the stack, after a lost life too, in acting and in the replay; the
  official stack is filled with zeros, after lost lives in evaluations too.
- The first image shows the game after the no-ops. The official one is from before them.
- A terminal step's image shows its last frame. The official code leaves that frame out, and its
  image is partly or wholly that of the step before.
- Every game begins from the same power-on state, so it is deterministic given its seed and actions.
  In some games (Assault, BeamRider, ...) ALE's reset keeps some state of the previous game. ALE's
  seed has no effect without its sticky actions.
- Sticky actions are drawn here, from the env's generator, and not inside ALE, whose random numbers
  cannot be saved.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from rlearly.config.schema import EnvConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.envs.state import simulators
from rlearly.envs.state.env_state import installed
from rlearly.envs.wrappers import agent_view, resized

PREFIX = "atari/"
FRAME_SKIP = 4
STACK = 4
NOOP_FRAMES = 29
"""Most no-ops at the beginning of a game."""
GAME_FRAMES = 108_000
STICKINESS = 0.25
EVALUATION_EPSILON = 0.001
"""Probability of a random action in an evaluation, with both rules."""
RAM_BYTES = 128

_GAMES = """
adventure air_raid alien amidar assault asterix asteroids atlantis atlantis2 backgammon bank_heist
basic_math battle_zone beam_rider berzerk blackjack bowling boxing breakout carnival casino
centipede chopper_command crazy_climber crossbow darkchambers defender demon_attack donkey_kong
double_dunk earthworld elevator_action enduro entombed et fishing_derby flag_capture freeway frogger
frostbite galaxian gopher gravitar hangman haunted_house hero human_cannonball ice_hockey jamesbond
journey_escape kaboom kangaroo keystone_kapers king_kong klax koolaid krull kung_fu_master
laser_gates lost_luggage mario_bros miniature_golf montezuma_revenge mr_do ms_pacman name_this_game
othello pacman phoenix pitfall pitfall2 pong pooyan private_eye qbert riverraid road_runner robotank
seaquest sir_lancelot skiing solaris space_invaders space_war star_gunner superman surround tennis
tetris tic_tac_toe_3d time_pilot trondead turmoil tutankham up_n_down venture video_checkers
video_chess video_cube video_pinball wizard_of_wor word_zapper yars_revenge zaxxon
"""
GAMES = {PREFIX + rom.title().replace("_", ""): rom for rom in _GAMES.split()}
"""Name -> ALE's name of the ROM. These are ALE's games for one player, listed here so that names
are known where it is not installed."""


def names() -> list[str]:
    return list(GAMES)


def config_for(name: str) -> EnvConfig | None:
    """The config of atari/GAME, or None for other names.

    Raises:
        ConfigError: there is no such game. The message suggests the closest names.
    """
    if not name.startswith(PREFIX):
        return None
    if name not in GAMES:
        raise ConfigError(f"There is no env {name!r}; {did_you_mean(name, GAMES)}")
    return EnvConfig(name=name, family="atari", action_repeat=FRAME_SKIP, frame_stack=STACK)


class AtariGame(gymnasium.Env):
    """One game. An observation is its RAM, float32 [128] in [0, 1]; `grey_frame` is its image.

    With `env.rules=paper`, a training episode ends when a life is lost. The next reset then goes on
    with the same game, whatever its seed. After any other episode, also one that a wrapper
    truncated, a reset begins a new game.

    `info["lives"]` are the lives left. The info of a game's last step also holds "game_return", the
    unclipped return of the whole game, or of its part since a snapshot.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, *, evaluation: bool):
        self.task_name = config.name
        sticky = config.rules == "sticky"
        self.stickiness = STICKINESS if sticky else 0.0
        self.most_noop_frames = 0 if sticky else NOOP_FRAMES
        self.ends_at_lost_life = not (evaluation or sticky)
        self.clips_rewards = not evaluation
        self.epsilon = EVALUATION_EPSILON if evaluation else 0.0
        self.frame_skip = config.action_repeat
        self.max_frames = config.max_episode_steps or GAME_FRAMES
        self.ale, self.actions = _load(config)
        self._start = simulators.save("ale", self.ale)
        self._start_image = self.ale.getScreenGrayscale()
        self.image = (0, self._start_image)
        """(frame number, grey screen [H, W]): numbered, so that it changes with every step; what
        never changes is not taken from a snapshot."""
        self.played = (0, 0.0)
        """(steps, unclipped return) of this game."""
        self._goes_on = False  # a life was lost, but not the game
        self._held_action = 0
        self.action_space = Discrete(len(self.actions))
        self.observation_space = Box(0.0, 1.0, (RAM_BYTES,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if not self._goes_on:
            self._begin_game()
        self._goes_on = False
        return self._ram(), {"lives": self.ale.lives()}

    def _begin_game(self) -> None:
        self._switch_on()
        frames = int(self.np_random.integers(self.most_noop_frames + 1))
        for _ in range(frames):
            self.ale.act(0)
        if self.ale.game_over(with_truncation=False):
            self._switch_on()
        elif frames:
            self.image = (self.ale.getFrameNumber(), self.ale.getScreenGrayscale())

    def _switch_on(self) -> None:
        simulators.restore(self.ale, self._start)
        self.image = (self.ale.getFrameNumber(), self._start_image)
        self.played = (0, 0.0)
        self._held_action = 0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.epsilon and self.np_random.random() < self.epsilon:
            action = self.np_random.integers(len(self.actions))
        chosen = self.actions[int(action)]
        lives, raw_reward, screens = self.ale.lives(), 0.0, []
        is_over = is_life_lost = False
        for frame in range(self.frame_skip):
            if not (self.stickiness and self.np_random.random() < self.stickiness):
                self._held_action = chosen
            raw_reward += self.ale.act(self._held_action)
            is_over = self.ale.game_over(with_truncation=False)
            before, lives = lives, self.ale.lives()
            is_life_lost = self.ends_at_lost_life and lives < before
            is_last = is_over or is_life_lost
            if is_last or frame >= self.frame_skip - 2:
                screens.append(self.ale.getScreenGrayscale())
            if is_last:
                break
        self.image = (self.ale.getFrameNumber(), functools.reduce(np.maximum, screens))
        steps, game_return = self.played[0] + 1, self.played[1] + raw_reward
        self.played = (steps, game_return)
        is_late = steps * self.frame_skip >= self.max_frames
        self._goes_on = is_life_lost and not (is_over or is_late)
        info: dict[str, Any] = {"lives": lives}
        if is_over or is_late:
            info["game_return"] = game_return
        reward = max(-1.0, min(1.0, raw_reward)) if self.clips_rewards else raw_reward
        terminated = is_over or is_life_lost
        return self._ram(), reward, terminated, is_late and not terminated, info

    def _ram(self) -> np.ndarray:
        return self.ale.getRAM().astype(np.float32) / 255

    def grey_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 1]: the maximum of the last two frames."""
        return area_average(self.image[1], size)[:, :, None]

    def render_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]: the last frame, in colour."""
        return resized(self.ale.getScreenRGB(), size)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.ale.getScreenRGB()


def area_average(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] as [size, size]: each pixel is the mean over its area, rounded half to even.

    Equals cv2.INTER_AREA up to the rounding of halves. The sums are of integers, and exact.
    """
    height, width = image.shape
    rows = _overlaps(height, size) @ image
    summed = (_overlaps(width, size) @ rows.T).T
    return np.rint(summed / (height * width)).astype(np.uint8)


@functools.cache
def _overlaps(length: int, size: int) -> Any:
    """Sparse int32 [size, length]: the part of each old pixel in each new one, in 1 / size."""
    from scipy.sparse import csr_array

    new, old = np.arange(size)[:, None] * length, np.arange(length) * size
    overlap = np.minimum(new + length, old + size) - np.maximum(new, old)
    return csr_array(np.maximum(overlap, 0).astype(np.int32))


def make(
    config: EnvConfig,
    *,
    pixels: bool | None,
    model_seed: int = 0,
    videos: bool = False,
    evaluation: bool = False,
) -> gymnasium.Env:
    """A game, from grey images or from its RAM; see `rlearly.envs.make`.

    Raises:
        ConfigError: ale-py is not installed or lacks the game, or there is no such argument, mode
            or difficulty.
    """
    for key, value, default in (
        ("render", config.render, "exact"),
        ("camera", config.camera, None),
    ):
        if value != default:
            raise ConfigError(
                f"env.{key}: applies only to MuJoCo's images, and env={config.name} is an Atari "
                "game; leave it out."
            )
    game = AtariGame(config, evaluation=evaluation)
    view = replace(config, action_repeat=1)  # the game repeats actions itself
    return agent_view(game, view, game.grey_frame if pixels is not False else None, planes=1)


def _load(config: EnvConfig) -> tuple[Any, list[int]]:
    """The emulator at the beginning of a game, and ALE's numbers of its actions."""
    try:
        ale_py: Any = importlib.import_module("ale_py")
    except ModuleNotFoundError:
        raise ConfigError(
            f"env={config.name}: the package ale-py is not installed here: pip install "
            "'rlearly[atari]'."
        ) from None
    known = ("full_action_space", "mode", "difficulty")
    for name in config.kwargs:
        if name not in known:
            raise ConfigError(
                f"env.kwargs.{name}: expected one of {', '.join(known)} for env={config.name}."
            )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    try:
        ale.loadROM(importlib.import_module("ale_py.roms").get_rom_path(GAMES[config.name]))
    except (OSError, TypeError) as error:  # None: this version has no such game
        raise ConfigError(
            f"env={config.name}: ale-py {installed('ale_py')} cannot load the game's ROM, which "
            "its package should hold: unset ALE_ROMS_DIR if it is set, or reinstall it: pip "
            "install --force-reinstall --no-deps ale-py."
        ) from error
    choices = {
        "mode": (ale.getAvailableModes(), ale.setMode),
        "difficulty": (ale.getAvailableDifficulties(), ale.setDifficulty),
    }
    for name, (available, choose) in choices.items():
        if name in config.kwargs:
            if config.kwargs[name] not in available:
                raise ConfigError(
                    f"env.kwargs.{name}: expected one of {', '.join(map(str, available))} for env="
                    f"{config.name}, received {config.kwargs[name]!r}."
                )
            choose(config.kwargs[name])
    ale.reset_game()
    full = config.kwargs.get("full_action_space", False)
    actions = ale.getLegalActionSet() if full else ale.getMinimalActionSet()
    return ale, [action.value for action in actions]
