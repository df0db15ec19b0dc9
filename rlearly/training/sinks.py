"""Where metrics go: local files always, wandb on request."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlearly.config.schema import RunConfig, WandbConfig
from rlearly.config.structured import as_dict
from rlearly.core.errors import ConfigError
from rlearly.core.types import Progress, Sink
from rlearly.system.atomic import write
from rlearly.system.disk import sync
from rlearly.system.output import as_unicode
from rlearly.system.process import Restored
from rlearly.training.run_directory import WANDB_ID

log = logging.getLogger(__name__)


class JsonLines:
    """metrics.jsonl, the record of the run: one row per line, each with `frames` and `steps`.

    Loading a state removes the rows written after it, so a resumed run has no duplicates.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stream = path.open("a", buffering=1, encoding="utf-8")

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None:
        row = {"frames": at.frames, "steps": at.steps, **metrics}
        self.stream.write(json.dumps(row) + "\n")

    def video(self, at: Progress, path: str) -> None:
        """Videos are in the run's videos folder."""

    def state_dict(self) -> dict[str, Any]:
        self.stream.flush()
        sync(self.stream.fileno())  # a checkpoint relies on these rows
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

            folder = str(self.folder.absolute())  # a relative one may look like a URL, as in s3:
            self._writer = SummaryWriter(folder, purge_step=self.purge_from)
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
    """One wandb run; the x axis is `frames`.

    wandb chooses its id at the first start (WANDB_RUN_ID, or a new one). It is kept in the run
    directory, and a resumed run continues under it.
    """

    def __init__(self, config: WandbConfig, run_dir: Path, run_config: Mapping[str, Any]):
        self.config = config
        self.run_dir = run_dir
        self.run_config = run_config
        file = run_dir / WANDB_ID
        _wandb_service.__enter__()
        try:
            stored = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
            self.run = self._start(stored)
            write(file, self.run.id)
        except Exception as error:  # whatever wandb makes of the network, settings and variables
            _wandb_service.__exit__()
            reason = textwrap.shorten(str(error).partition(" [type=")[0], 200).rstrip(".")
            remedy = "fix that, or add wandb.mode=disabled"
            if config.mode == "online":
                remedy = "log in with `wandb login`, or add wandb.mode=offline"
            raise ConfigError(
                f"wandb.mode={config.mode}: wandb did not start ({reason}); {remedy}."
            ) from None
        if stored not in ("", self.run.id):
            log.warning(
                "wandb: this run had the id %s and continues under %s.", stored, self.run.id
            )
        self.run.define_metric("frames")
        self.run.define_metric("*", step_metric="frames")

    def _start(self, run_id: str) -> Any:
        """The wandb run of an id; of a new one, if it is empty or was deleted on the server."""
        import wandb

        agent = self.run_config["agent_name"]
        try:
            return wandb.init(
                id=run_id or None,
                resume="allow",
                mode=self.config.mode,  # pyright: ignore[reportArgumentType]
                project=self.config.project,
                entity=self.config.entity,
                group=self.config.group,
                name=as_unicode(
                    "-".join((agent, self.run_config["env"]["name"], self.run_dir.name))
                ),
                dir=str(self.run_dir),
                config=dict(self.run_config),
                settings=wandb.Settings(
                    init_timeout=30,
                    silent=True,
                    disable_git=True,  # of the repository around the working folder
                ),
            )
        except wandb.Error as error:
            if not run_id or "previously created and deleted" not in str(error):
                raise
            log.warning("wandb: the run %s was deleted on the server.", run_id)
            return self._start("")

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
                log.warning("%s failed and is switched off: %s", type(sink).__name__, error)
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
        others.append(Wandb(config.wandb, folder, as_dict(config)))
    return Sinks(JsonLines(folder / "metrics.jsonl"), others)
