"""A run directory as an object: its settings, metrics and checkpoints, and its trained policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.system.process import restored_process

if TYPE_CHECKING:
    from rlearly.api.export import Exported
    from rlearly.api.figure import InlineFigure
    from rlearly.api.policy import Policy
    from rlearly.core.types import Agent
    from rlearly.envs.raw_view import RawEnv, RawView
    from rlearly.training.evaluation import Evaluation


def load(path: str | Path, *, env: Any = None) -> Run:
    """The run in a directory, finished or not.

    Args:
        path: the directory; `DIRECTORY@FRAMES`, `DIRECTORY@best` or `DIRECTORY@newest` chooses the
            checkpoint that is played, by default the newest.
        env: the env, or a function that makes it, if only this program can make the run's env.

    Raises:
        ConfigError: it is no run directory, or it has no such checkpoint.
    """
    from rlearly.api.given import give_again

    folder, checkpoint = split_path(path)
    if env is not None:
        give_again(folder, env)
    run = Run(folder, checkpoint)
    run.config  # noqa: B018  # a wrong path is refused now
    if checkpoint is not None:
        run.frames  # noqa: B018
    return run


def split_path(path: str | Path) -> tuple[Path, int | str | None]:
    """(directory, checkpoint) of `DIRECTORY@CHECKPOINT`; the checkpoint is None if none is named.

    Raises:
        ConfigError: what follows the @ is not a checkpoint.
    """
    text = str(path)
    folder, at, name = text.rpartition("@")
    if not at or Path(text).exists():
        return Path(text), None
    if name == "newest":
        return Path(folder), None
    if name == "best":
        return Path(folder), "best"
    if not name.isdecimal():
        raise ConfigError(
            f"Expected RUN_DIR, RUN_DIR@FRAMES, RUN_DIR@best or RUN_DIR@newest, received {text}."
        )
    return Path(folder), int(name)


def export(
    run: str | Path | Run,
    path: str | Path | None = None,
    *,
    format: str | None = None,
    episodes: int = 2,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write the policy of a run as ONNX or TorchScript: raw observations -> the env's own actions.

    Flattening, normalising, scaling of images and scaling of actions are in the file. It is written
    only if its actions match the policy's in test episodes: continuous ones to within 1e-5 of their
    range, discrete ones in 99 % of the steps. The manifest lists its inputs: one for each part of
    an observation, with a leading batch axis, and, if the agent stacks images, "frames": the newest
    images, oldest first.

    Args:
        run: a run or its directory; `DIRECTORY@FRAMES` or `DIRECTORY@best` chooses a checkpoint.
        path: of the file, ending in .onnx or .pt; None: policy.onnx or policy.pt in the directory.
        format: onnx or torchscript; None: by the path's suffix, otherwise onnx.
        episodes: to play for the check.
        seed: of these episodes.
        overwrite: whether to replace an existing file.

    Raises:
        ConfigError: a package is missing, the agent cannot be exported, the path cannot be written,
            or the file's actions differ from the policy's.
    """
    from rlearly.api.export import write_policy

    found = run if isinstance(run, Run) else load(run)
    if found.checkpoint is None:  # a run that trains on would change it meanwhile
        found = Run(found.path, found.frames)
    return write_policy(
        found, path, format=format, episodes=episodes, seed=seed, overwrite=overwrite
    )


class Run:
    """A run directory, and the checkpoint in it that is played.

    `rlearly.train` and `rlearly.load` return it. It reads the directory's files when asked, so it
    also follows a run that is still training.
    """

    def __init__(self, path: Path, checkpoint: int | str | None = None):
        self.path = path
        self.checkpoint = checkpoint
        self._policy: Policy | None = None

    @property
    def config(self) -> RunConfig:
        """The run's settings, as config.yaml holds them."""
        from rlearly.config import resolve

        return resolve.load(self.path)

    @property
    def finished(self) -> bool:
        """Whether training is complete: all frames, or ended early by a rule or callback."""
        from rlearly.training import run_directory

        return run_directory.is_done(self.path)

    @property
    def checkpoints(self) -> list[int]:
        """The checkpoints that are kept, by their frames, oldest first."""
        from rlearly.training import checkpoint

        return [int(path.name) for path in checkpoint.list_checkpoints(self.path / "checkpoints")]

    @property
    def frames(self) -> int:
        """Frames of the checkpoint that is played.

        Raises:
            ConfigError: there is no such checkpoint, or none is whole.
        """
        return self._load()[0]

    def metrics(self) -> dict[str, np.ndarray]:
        """A table of all rows that were logged: metric -> values [rows], NaN where a row has none.

        "frames" and "steps" are integers. `pandas.DataFrame(run.metrics())` makes a data frame.

        Raises:
            ConfigError: there is no metrics.jsonl.
        """
        from rlearly.experiments.report.metrics_file import read_rows

        rows = read_rows(self.path)
        names = dict.fromkeys(name for row in rows for name in row)
        table = {}
        for name in names:
            counts = name in ("frames", "steps")
            values = [row.get(name, np.nan) for row in rows]
            table[name] = np.array(values, np.int64 if counts else np.float64)
        return table

    @property
    def policy(self) -> Policy:
        """The trained policy, a function of the env's own observations; it acts on the CPU.

        It is loaded once. If the run was trained on the CPU, its deterministic actions equal those
        of the run's evaluations, bit for bit.

        Raises:
            ConfigError: there is no whole checkpoint, or the env cannot be made here.
        """
        if self._policy is None:
            from rlearly.agents import agent_spec
            from rlearly.api.policy import Policy

            agent, view, step = self.trained_agent()
            config = self.config
            self._policy = Policy(
                agent,
                view,
                step=step,
                threads=config.threads or 1,
                on_policy=agent_spec(config.agent_name).on_policy,
            )
        return self._policy

    def make_env(self, *, videos: bool = False) -> RawEnv:
        """A new env for the policy, with the observations and actions of `policy`.

        Actions are repeated as in training. Unlike in evaluations, the env lacks the state that the
        training env kept across episodes.

        Args:
            videos: `render()` will be called.

        Raises:
            ConfigError: it cannot be made or rendered here.
        """
        from rlearly.envs.raw_view import RawEnv
        from rlearly.training import builder

        with restored_process:
            return RawEnv(builder.make_env(self.config, evaluation=True, videos=videos))

    def trained_agent(self, *, kernels: bool = True, **changes: Any) -> tuple[Agent, RawView, int]:
        """The trained agent on the CPU, how it sees the env, and the agent steps of its training.

        Args:
            kernels: see `builder.make_agent`.
            changes: settings that differ from the run's.
        """
        import torch

        from rlearly import envs
        from rlearly.envs.raw_view import RawView
        from rlearly.training import builder
        from rlearly.training.evaluation import close_env

        _, state = self._load()
        config = self.config
        precision = "fp32" if config.precision == "tf32" else config.precision
        on_cpu = {"device": "cpu", "compile": False, "precision": precision}
        config = replace(config, **(on_cpu | changes))
        with restored_process:
            env = builder.make_env(config, evaluation=True)
            try:
                spec, view = envs.env_spec(env, config.env), RawView.of(env)
            finally:
                close_env(env)
            cpu = torch.device("cpu")
            agent = builder.trained_agent(config, spec, cpu, state, kernels=kernels)
        return agent, view, state["trainer"]["steps"]

    def evaluate(
        self,
        episodes: int = 10,
        *,
        seed: int = 0,
        video: str | Path | None = None,
        video_size: int = 256,
        max_episode_steps: int | None = None,
    ) -> Evaluation:
        """Play whole episodes with the mean action, as `python -m rlearly.evaluate` does.

        Args:
            seed: of the episodes.
            video: path of an mp4 file for the first episode.
            video_size: height and width of the video in pixels, a multiple of 8.
            max_episode_steps: env steps after which an episode is truncated; None: as in training.

        Raises:
            ConfigError: there is no whole checkpoint, or the env cannot be made or rendered here.
            RunFailed: the env failed, or the agent's action is NaN.
        """
        from rlearly.api.play import EvaluateConfig, play

        if not (isinstance(episodes, int) and episodes >= 1):
            raise ConfigError(f"episodes: expected a number of at least 1, received {episodes!r}.")
        if video is not None and not isinstance(video, str | Path):
            raise ConfigError(f"video: expected the path of an mp4 file, received {video!r}.")
        config = self.config
        settings = EvaluateConfig(
            run=str(self.path),
            checkpoint=self.checkpoint,
            episodes=episodes,
            seed=seed,
            video=None if video is None else str(video),
            video_size=0 if video is None else video_size,
            max_episode_steps=max_episode_steps,
            device=config.device,
            threads=config.threads,
        )
        with restored_process:
            return play(settings, message=lambda text: None).evaluation

    def export(self, path: str | Path | None = None, **settings: Any) -> Exported:
        """As `rlearly.export(run, path, **settings)`."""
        return export(self, path, **settings)

    def plot(self) -> InlineFigure:
        """The figure of `python -m rlearly.report run=...`, which a notebook shows."""
        from rlearly.api.figure import InlineFigure
        from rlearly.experiments.report.run_report import RunReport, draw_run

        return InlineFigure(draw_run(RunReport.load(self.path)))

    def _load(self) -> tuple[int, dict[str, Any]]:
        from rlearly.training import checkpoint

        self.config  # noqa: B018  # reports a path that is no run first
        chosen: Any = self.checkpoint
        return checkpoint.load_at(self.path / "checkpoints", chosen)

    def __repr__(self) -> str:
        at = "" if self.checkpoint is None else f"@{self.checkpoint}"
        return f"Run({f'{self.path}{at}'!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows for it."""
        import html

        config = self.config
        state = "finished" if self.finished else "not finished"
        rows = [
            ("run", str(self.path)),
            ("agent, env, seed", f"{config.agent_name}, {config.env.name}, {config.seed}"),
            ("checkpoints", ", ".join(f"{n:,}" for n in self.checkpoints) or "none"),
            ("state", f"{state}, of {config.train_frames:,} frames"),
        ]
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table>{cells}</table>"
