"""`rlearly.train`: start or resume a run from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.vector import VectorEnv

from rlearly.api.given import give_again, settings_for, single_env_of
from rlearly.api.run import Run
from rlearly.api.settings import overrides_of
from rlearly.core.errors import RunFailed
from rlearly.core.exit_status import FAILED
from rlearly.system.process import restored_process

if TYPE_CHECKING:
    from rlearly.training.callbacks import Callback


def train(
    *overrides: str,
    env: Any = None,
    make_eval_env: Callable[[], gymnasium.Env] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train an agent, in this process, and return the run.

    Ctrl-C, or interrupting a notebook's kernel, saves and returns the unfinished run;
    `resume=run` continues it.

    Args:
        overrides: as on the command line, `"agent.lr=1e-4"`.
        env: the env's name; an env, which is left untouched; a function that makes one; or a
            `gymnasium.vector.VectorEnv`, which is trained on and not closed. If only this program
            can make the env, pass it again to resume the run.
        make_eval_env: makes one env like the members of a VectorEnv, for evaluations; None: it is
            derived from the VectorEnv; if that is impossible, there are no evaluations.
        callbacks: objects that are called during training (`rlearly.training.callbacks.Callback`),
            in addition to those that `callback=` names. Pass them again to resume the run.
        progress: print what the command prints.
        settings: all keys of `python -m rlearly.train --help`. Write two underscores for a dot, as
            in `agent__lr=1e-4`, or a dict for a group, as in `replay={"capacity": 100_000}`.

    Raises:
        ConfigError: a setting is wrong, or the request cannot be met; nothing was trained.
        RunFailed: the env failed or learning diverged; the last checkpoint precedes that.

    Example:
        >>> import rlearly
        >>> run = rlearly.train(
        ...     agent="td3", env="Pendulum-v1", train_frames=300, agent__learning_starts_steps=200,
        ...     eval_every_frames=0, progress=False, run_dir=getfixture("tmp_path") / "run",
        ... )
        >>> run.finished, run.checkpoints
        (True, [300])
    """
    from rlearly.api import session

    with restored_process:
        named: dict[str, Any] = {}
        resumed = settings.get("resume")
        single = single_env_of(env, make_eval_env)
        if env is not None and resumed is not None:
            give_again(Path(getattr(resumed, "path", resumed)), env, single)
        elif env is not None:
            named = settings_for(env, single)
        parts: dict[str, Any] = {"callbacks": callbacks}
        if isinstance(env, VectorEnv):
            parts |= {"vector_env": env, "make_eval_env": make_eval_env}
        words = [*overrides, *overrides_of(named | settings)]
        ended = session.train(words, quiet=not progress, parts=parts)
    if ended.status == FAILED:
        raise RunFailed(ended.failure)
    return Run(ended.folder)
