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

    Ctrl-C, or a notebook's interrupt, saves and returns the unfinished run; `resume=run`
    continues it.

    Args:
        overrides: as on the command line, `"agent.lr=1e-4"`.
        env: the env's name; or an env, which stays as it is; or a function that makes one. A run
            whose env only this program can make is resumed with `env=` too. Or a
            `gymnasium.vector.VectorEnv`, whose members are then trained on; it stays open.
        make_eval_env: makes one env like the members of a VectorEnv, for evaluations; None: the
            VectorEnv tells how, or there are none.
        callbacks: objects that see the run (`rlearly.training.callbacks.Callback`), besides those
            that `callback=` names. A run that had some is resumed with them too.
        progress: print what the command prints.
        settings: all keys of `python -m rlearly.train --help`. Write two underscores for a dot, as
            in `agent__lr=1e-4`, or a dict for a group, as in `replay={"capacity": 100_000}`.

    Raises:
        ConfigError: a setting is wrong, or the request cannot be met; nothing was trained.
        RunFailed: the env failed or learning diverged; the last checkpoint is from before it.

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
        raise RunFailed(f"{ended.failure}.".replace("..", "."))
    return Run(ended.folder)
