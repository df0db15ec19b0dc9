"""Scores of random play and of a human tester on Atari games, for human-normalised scores.

`atari_scores.csv` holds them for the games of Atari-100k, and for Enduro and SpaceInvaders: those
of Wang et al. 2016 (arXiv 1511.06581), from episodes that begin with no-ops.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rlearly.core.errors import ConfigError

SCORES = Path(__file__).with_name("atari_scores.csv")


@cache
def human_scores() -> dict[str, tuple[float, float]]:
    """The mean returns of random play and of a human tester, by game."""
    with SCORES.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {row["game"]: (float(row["random"]), float(row["human"])) for row in rows}


def game_of(env: str) -> str | None:
    """The game of an Atari env, `atari/Pong` or `ALE/Pong-v5`; None: it is another env."""
    match = re.fullmatch(r"(?:atari|ALE)/(\w+?)(?:-v\d+)?", env)
    return match[1] if match else None


def reference_scores(
    envs: Iterable[str], normalise: str | None
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """The random and the human score by env, and the games without, for a report's `normalise`.

    Both are empty if scores are not to be human-normalised.

    Raises:
        ConfigError: `normalise` is atari, and there is no env with reference scores.
    """
    envs = sorted(envs)
    games = {env: game_of(env) for env in envs}
    found = {env: human_scores()[game] for env, game in games.items() if game in human_scores()}
    if normalise == "atari" and not found:
        raise ConfigError(
            f"normalise: expected envs with human scores, received {', '.join(envs)}; leave "
            f"normalise out. Atari games with human scores: {', '.join(human_scores())}."
        )
    wanted = normalise == "atari" or all(env.startswith("atari/") for env in envs)
    if normalise == "range" or not wanted:
        return {}, []
    return found, [env for env in envs if env not in found]
