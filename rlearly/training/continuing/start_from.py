"""Start a new run from parts of another one: `start_from=RUN[@FRAMES]`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlearly.config.schema import StartFromConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, Misfit
from rlearly.core.types import Agent, BeginsFromAnother, Memory
from rlearly.training import checkpoint
from rlearly.training.checkpoint import BEST

PARTS = ("networks", "optimizers", "replay", "normalizers")
USUAL_PARTS = ("networks", "normalizers")
OF_THE_AGENT = frozenset({"networks", "optimizers", "normalizers"})


def split_run(text: str) -> tuple[Path, checkpoint.Chosen]:
    """The run directory and the checkpoint that RUN, RUN@FRAMES or RUN@best names.

    Raises:
        ConfigError: what follows the @ is neither.
    """
    run, at, chosen = text.rpartition("@")
    if not at or Path(text).is_dir():
        return Path(text), None
    if chosen == BEST:
        return Path(run), BEST
    if not chosen.replace("_", "").isdecimal():
        raise ConfigError(
            f"start_from: expected RUN, RUN@FRAMES or RUN@best, received {text!r}; there is no "
            f"folder {text}."
        )
    return Path(run), int(chosen)


def checked_parts(settings: StartFromConfig, *, on_policy: bool) -> tuple[str, ...]:
    """The parts that a run begins with, in order.

    Raises:
        ConfigError: one does not exist, or they cannot be combined.
    """
    parts = USUAL_PARTS if settings.parts is None else tuple(settings.parts)
    for part in parts:
        if part not in PARTS:
            raise ConfigError(
                f"start_from.parts: there is no part {part!r}; {did_you_mean(part, PARTS)}"
            )
    if not parts:
        raise ConfigError(f"start_from.parts: expected some of {', '.join(PARTS)}.")
    if "optimizers" in parts and "networks" not in parts:
        raise ConfigError(
            "start_from.parts: optimizers hold moments of the networks' gradients: add networks or "
            "leave optimizers out."
        )
    if "replay" in parts and on_policy:
        raise ConfigError(
            "start_from.parts: an on-policy agent has no replay to take over; leave replay out."
        )
    return tuple(part for part in PARTS if part in parts)


def pinned(settings: StartFromConfig, parts: tuple[str, ...]) -> StartFromConfig:
    """The settings with the checkpoint that is chosen now, and its digest.

    Raises:
        ConfigError: there is no such checkpoint, or it does not hold these parts.
    """
    run, chosen = split_run(str(settings.run))
    run = run.absolute()
    folder = run / "checkpoints"
    try:
        if chosen is None:
            chosen, sha256 = checkpoint.newest_digest(folder)
        else:
            sha256 = checkpoint.digest(folder, chosen)
    except ConfigError as error:
        raise ConfigError(f"start_from: {error}") from None
    if chosen == BEST and "replay" in parts:
        raise ConfigError(
            f"start_from.parts: the best checkpoint of {run} holds no replay; leave replay out, or "
            "name another checkpoint by its frames."
        )
    return replace(settings, run=str(run), checkpoint=str(chosen), parts=parts, sha256=sha256)


@dataclass(frozen=True)
class Ancestor:
    """The run that a new one begins from.

    nstep, frame_stack: of the samples from its replay. spaces: the observations and actions of the
    new run, in words.
    """

    settings: StartFromConfig
    nstep: int
    frame_stack: int
    spaces: Mapping[str, str]
    message: Callable[[str], None]

    def take_over(self, agent: Agent, memory: Memory) -> None:
        """Begin with the parts that the settings name; nothing has been trained yet.

        Raises:
            ConfigError: the checkpoint is gone or another one, or a part does not fit.
        """
        run, parts = Path(str(self.settings.run)), self.settings.parts or ()
        frames, state = self._load(run, parts)
        where = f"start_from: {run} at {frames:,} frames"
        try:
            self._check_spaces(state.get("spaces", {}), parts)
            if OF_THE_AGENT & set(parts):
                if not isinstance(agent, BeginsFromAnother):
                    raise Misfit(
                        f"{type(agent).__name__} cannot begin with parts of another run: it has no "
                        "take_over(state, parts)"
                    )
                agent.take_over(state["agent"], parts)
            if "replay" in parts:
                memory.take_over(state["replay"], nstep=self.nstep, frame_stack=self.frame_stack)
        except Misfit as misfit:
            raise ConfigError(f"{where} does not fit this run: {misfit}.") from None
        self.message(f"{where}: this run begins with its {', '.join(parts)}")
        if "replay" in parts:
            self.message(f"start_from: {len(memory):,} transitions of its replay can be sampled")

    def _load(self, run: Path, parts: Collection[str]) -> tuple[int, dict[str, Any]]:
        text = str(self.settings.checkpoint)
        chosen = text if text == BEST else int(text)
        folder = run / "checkpoints"
        if not checkpoint.is_kept(folder, chosen):
            raise ConfigError(
                f"start_from: {run} no longer has the checkpoint {chosen}, from which this run "
                "starts: put it back, or start a new run."
            )
        if checkpoint.digest(folder, chosen) != self.settings.sha256:
            raise ConfigError(
                f"start_from: the checkpoint {chosen} of {run} is no longer the one that this run "
                f"is to begin from (the SHA-256 of its manifest was {self.settings.sha256}): put "
                "that one back, or start a new run."
            )
        return checkpoint.load_at(folder, chosen, logs="replay" in parts)

    def _check_spaces(self, there: Mapping[str, str], parts: Collection[str]) -> None:
        """Compare the spaces. Old checkpoints lack them; there, shapes of weights must do."""
        if not {"networks", "replay"} & set(parts):
            return
        differ = [
            f"{name} are {there[name]} there and {here} here"
            for name, here in self.spaces.items()
            if there.get(name, here) != here
        ]
        if differ:
            raise Misfit(" and ".join(differ))
