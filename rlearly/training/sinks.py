"""Where metrics go: local files always, wandb on request."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlearly.config.schema import RunConfig, WandbConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import Progress, Sink
from rlearly.system.process import Restored

log = logging.getLogger(__name__)


class JsonLines:
    """metrics.jsonl, the record of the run: one row per line, each with `frames` and `steps`.

    Loading a state removes the rows written after it, so a resumed run has no duplicates.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stream = path.open("a", buffering=1)

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None:
        row = {"frames": at.frames, "steps": at.steps, **metrics}
        self.stream.write(json.dumps(row) + "\n")

    def video(self, at: Progress, path: str) -> None:
        """Videos are in the run's videos folder."""

    def state_dict(self) -> dict[str, Any]:
        self.stream.flush()
        os.fsync(self.stream.fileno())  # a checkpoint relies on these rows
        return {"bytes": self.path.stat().st_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.flush()
        if self.path.stat().st_size < state["bytes"]:
            log.warning("%s is shorter than at the checkpoint: rows were lost.", self.path)
            whole_rows = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, whole_rows)
        else:
            os.truncate(self.path, state["bytes"])

    def close(self) -> None:
        self.stream.close()


class TensorBoard:
    """Event files, opened at the first write; `tensorboard --logdir runs` shows them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.purge_from: int | None = None
        """Frames from which events of earlier starts are superseded."""
        self._writer: Any = None

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self.purge_from)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, at.frames)

    def video(self, at: Progress, path: str) -> None:
        """TensorBoard shows only GIFs; the mp4 files are in the run's videos folder."""

    def close(self) -> None:
        if self._writer is not None:
            queue = self._writer.file_writer.event_writer._event_queue
            self._writer.close()
            queue.join_thread()  # the writer does not wait for it


class Wandb:
    """One wandb run, resumed under the same id; the x axis is `frames`."""

    def __init__(self, config: WandbConfig, run_dir: Path, run_config: Mapping[str, Any]):
        import wandb

        id_file = run_dir / "wandb_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:8])
        _wandb_service.__enter__()
        try:
            self.run = wandb.init(
                id=id_file.read_text(),
                resume="allow",
                mode=config.mode,  # pyright: ignore[reportArgumentType]
                project=config.project,
                entity=config.entity,
                group=config.group,
                name=f"{run_config['agent_name']}-{run_config['env']['name']}-{run_dir.name}",
                dir=str(run_dir),
                config=dict(run_config),
                settings=wandb.Settings(init_timeout=30, silent=True),
            )
        except (wandb.Error, OSError) as error:
            _wandb_service.__exit__()
            raise ConfigError(
                f"wandb.mode={config.mode}: wandb did not start "
                f"({str(error).splitlines()[0].rstrip('.')}); "
                "log in with `wandb login`, or add wandb.mode=offline."
            ) from None
        self.run.define_metric("frames")
        self.run.define_metric("*", step_metric="frames")

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None:
        self.run.log({"frames": at.frames, "steps": at.steps, **metrics})

    def video(self, at: Progress, path: str) -> None:
        import wandb

        self.run.log({"frames": at.frames, "eval/video": wandb.Video(path, format="mp4")})

    def close(self) -> None:
        self.run.finish()
        _wandb_service.__exit__()


def _read_wandb_service() -> Callable[[], None]:
    import wandb

    running = "WANDB_SERVICE" in os.environ  # of other runs in this process
    return (lambda: None) if running else wandb.teardown


_wandb_service = Restored(_read_wandb_service)
"""wandb's process and threads, which end with the last run that uses them."""


class Sinks:
    """Several sinks as one.

    A sink that fails, other than the record, is reported once and removed.
    """

    def __init__(self, record: JsonLines, others: Sequence[Sink]):
        self.record = record
        self.others = list(others)

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None:
        self.record.write(at, metrics)
        self._each("write", at, metrics)

    def video(self, at: Progress, path: str) -> None:
        self._each("video", at, path)

    def _each(self, method: str, *args: Any) -> None:
        for sink in list(self.others):
            try:
                getattr(sink, method)(*args)
            except Exception as error:  # a third-party tracker must not end the run
                log.warning("%s failed and is off from here: %s", type(sink).__name__, error)
                self.others.remove(sink)

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.record.load_state_dict(state["record"])

    def close(self) -> None:
        self.record.close()
        self._each("close")


def make_sinks(config: RunConfig, folder: Path, events: TensorBoard) -> Sinks:
    """The run's record, TensorBoard, and wandb if it is enabled."""
    others: list[Sink] = [events]
    if config.wandb.mode != "disabled":
        plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
        others.append(Wandb(config.wandb, folder, plain))
    return Sinks(JsonLines(folder / "metrics.jsonl"), others)
