"""`python -m rlearly.teacher run=<run dir> out=teacher.h5`: record a trained agent's snapshots."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.teacher")

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.fields import setting
from rlearly.config.structured import from_overrides, refuse_folders
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import DONE, STATUS_HELP
from rlearly.system.command import as_command, importing

if TYPE_CHECKING:
    import gymnasium

    from rlearly.envs.snapshots.dataset import Snapshots


USAGE = """python -m rlearly.teacher run=RUN_DIR out=teacher.h5
python -m rlearly.teacher model=FILE env=Hopper-v5 out=teacher.h5
python -m rlearly.teacher model=FILE.zip env=Hopper-v5 trust=true out=teacher.h5
python -m rlearly.teacher hub=OWNER/NAME env=Hopper-v5 out=teacher.h5"""


@dataclass(frozen=True)
class TeacherConfig:
    """Which agent to record, named by exactly one of `run`, `model` and `hub`."""

    run: str | None = setting(None, "run directory of an rlearly agent")
    checkpoint: Any = setting(
        None, "checkpoint of the run, by its number of frames, or best; null: the newest"
    )
    model: str | None = setting(
        None, "model file of Stable-Baselines3 (.zip) or CleanRL (.cleanrl_model)"
    )
    trust: bool = setting(
        False, "load a .zip or .pkl, which runs code: only if you trust its author"
    )
    normalize: str | None = setting(
        None, "VecNormalize's .pkl of a .zip; null: the one beside it; none: play without"
    )
    algo: str | None = setting(None, "algorithm of a .zip, as in PPO; null: recognised")
    hub: str | None = setting(None, "Hugging Face model id: OWNER/NAME")
    file: str | None = setting(None, "model file in that repository; null: its only one")
    env: str | None = setting(None, "id of the env, needed with model= and hub=")
    kwargs: dict[str, Any] = setting({}, "extra arguments of gymnasium.make")
    max_episode_steps: int | None = setting(
        None, "env steps after which an episode is truncated; null: the env's own limit", at_least=1
    )
    out: str = setting("teacher.h5", "file to write")
    overwrite: bool = setting(False, "whether to replace an existing file")
    episodes: int = setting(10, "episodes to play with the mean action", at_least=1)
    best_episodes: int | None = setting(
        None, "keep only this many episodes, those of highest return; null: all", at_least=1
    )
    every_steps: int = setting(10, "agent steps between snapshots", at_least=1)
    seed: int = setting(0, "seed of the episodes", at_least=0)


@dataclass(frozen=True)
class Teacher:
    """A trained agent: its env, its policy and value function of one observation, its origin."""

    env: gymnasium.Env
    policy: Callable[[Any], Any]
    value: Callable[[Any], float] | None
    description: dict[str, Any]


@as_command
def main(overrides: list[str]) -> int:
    """Record with these settings; returns the exit status."""
    if "--help" in overrides or "-h" in overrides or not overrides:
        from rlearly.config.help import command_help

        print(command_help(USAGE, TeacherConfig), STATUS_HELP, sep="\n")
        return DONE
    refuse_folders(overrides, TeacherConfig, "run")
    record(from_overrides(TeacherConfig(), overrides))
    return DONE


def record(config: TeacherConfig) -> Snapshots:
    """Play the teacher, write its snapshots, and print one line per episode.

    Raises:
        ConfigError: the request cannot be met, and nothing was written; or another process wrote
            the file in the meantime, and the message says where these snapshots are.
        RunFailed: the env failed; only OUT.failure.json was written.
    """
    with importing():
        from rlearly.envs.snapshots import recording
        from rlearly.system import machine
        from rlearly.training import failure
        from rlearly.training.evaluation import close_env

    out = Path(config.out)
    if not out.parent.is_dir():
        raise ConfigError(f"out: there is no folder {out.parent}; make it, or name another file.")
    if out.is_dir():
        raise ConfigError(f"out: {out} is a folder; name a file in it, as in {out}/teacher.h5.")
    if not os.access(out.parent, os.W_OK):  # before an hour of episodes
        raise ConfigError(
            f"out: the folder {out.parent} is not writable; name a file in another one."
        )
    if out.exists() and not config.overwrite:
        raise ConfigError(f"out: {out} exists; name another file, or add overwrite=true.")
    named = [name for name in ("run", "model", "hub") if getattr(config, name)]
    if len(named) != 1:
        raise ConfigError(
            "Expected exactly one of run=, model= and hub=, received "
            f"{' and '.join(n + '=' for n in named) or 'none'}."
        )
    cut = {"max_episode_steps": config.max_episode_steps} if config.max_episode_steps else {}
    on_cpu = machine.computing(1, machine.choose_device("cpu"))
    with on_cpu if config.run else contextlib.nullcontext():
        teacher = from_run(config) if config.run else from_model(config)
        failure.clear_beside(out)
        try:
            recorded = recording.record(
                teacher.env,
                teacher.policy,
                value=teacher.value,
                episodes=config.episodes,
                every_steps=config.every_steps,
                seed=config.seed,
                **cut,
                provenance=teacher.description,
                on_episode=lambda episode, total, steps: print(
                    f"episode {episode}: return {total:.2f} in {steps} steps", flush=True
                ),
            )
        except RunFailed as failed:
            raise RunFailed(f"{failed}. {failure.dump_beside(out, failed)}.") from failed
        finally:
            close_env(teacher.env)
    recorded = recorded.select(best_episodes=config.best_episodes)
    try:
        recorded.save(out, overwrite=config.overwrite)
    except FileExistsError:  # it was not there at the start
        free = save_under_free_name(recorded, out)
        raise ConfigError(
            f"out: another process has just written {out}; these snapshots are in {free}."
        ) from None
    size = out.stat().st_size / 1e6
    values = "values unknown"
    if teacher.value is not None:
        values = f"values {recorded.values.min():.1f} to {recorded.values.max():.1f}"
    print(f"{len(recorded)} snapshots of {recorded.env_id}, {values} -> {out} ({size:.1f} MB)")
    return recorded


def save_under_free_name(snapshots: Snapshots, out: Path) -> Path:
    """Save as NAME-2.h5 instead of NAME.h5, or with the first number that is free."""
    for number in itertools.count(2):
        path = out.with_name(f"{out.stem}-{number}{out.suffix}")
        with contextlib.suppress(FileExistsError):
            snapshots.save(path, overwrite=False)
            return path
    raise AssertionError


def from_run(config: TeacherConfig) -> Teacher:
    """The agent of an rlearly run, with its critic's values."""
    from dataclasses import replace

    from rlearly import envs
    from rlearly.config import resolve
    from rlearly.core.spaces import stack_observations
    from rlearly.system import machine
    from rlearly.training import builder, checkpoint

    run = Path(str(config.run))
    run_config = replace(resolve.load(run), device="cpu", threads=1)
    run_config = resolve.with_time_limit(run_config, config.max_episode_steps)
    device = machine.choose_device("cpu")
    frames, state = checkpoint.load_at(run / "checkpoints", config.checkpoint)
    env = builder.make_evaluation_env(
        run_config,
        videos=False,
        kept=builder.kept_in(state),
        attributes=builder.attributes_in(state),
        message=print,
    ).once()
    spec = envs.env_spec(env, run_config.env)
    agent = builder.trained_agent(run_config, spec, device, state)
    step = state["trainer"]["steps"]
    print(f"{run_config.agent_name} on {run_config.env.name} at {frames:,} frames")
    return Teacher(
        env,
        policy=lambda obs: agent.act(stack_observations([obs]), step=step, explore=False)[0],
        value=lambda obs: float(agent.value(stack_observations([obs]))[0]),
        description={
            "teacher": run_config.agent_name,
            "run": run.name,
            "frames": frames,
            "seed_of_run": run_config.seed,
            "env_rules": run_config.env.rules,
        },
    )


def from_model(config: TeacherConfig) -> Teacher:
    """A model of Stable-Baselines3, loaded by it, or of CleanRL, read as plain weights."""
    from rlearly.config.schema import EnvConfig
    from rlearly.envs.gymnasium_envs import make_registered
    from rlearly.envs.snapshots.pretrained import from_hub, read_model

    if config.env is None:
        raise ConfigError(
            "env: expected the id of the env that the model plays, as in env=Hopper-v5."
        )
    path = from_hub(config.hub, config.file) if config.hub else Path(str(config.model))
    limit = config.max_episode_steps
    env = make_registered(
        EnvConfig(config.env, "gymnasium", max_episode_steps=limit, kwargs=config.kwargs)
    )
    model = read_model(path, env, trust=config.trust, normalize=config.normalize, algo=config.algo)
    print(
        " ".join(
            [f"{model.algorithm} ({model.library}) on {config.env}, from {path}.", *model.notes]
        )
    )
    return Teacher(
        env,
        policy=model.act,
        value=model.value if model.has_critic else None,
        description={
            "teacher": f"{model.library} {model.algorithm}",
            "model": config.hub or path.name,
            "notes": list(model.notes),
        },
    )
