"""`python -m rlearly.sweep agent=drm,drqv2 env=dog_run seeds=10`: many runs with one command."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.sweep")

from pathlib import Path

from rlearly.api.launch import SweepConfig, cancel, split, start, status, sync
from rlearly.config.help import key_lines
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import BAD_REQUEST, DONE, STATUS_HELP
from rlearly.experiments.study import STUDIES, Study, shipped
from rlearly.system.command import as_command, call_instead

call_instead(__name__, "rlearly.api.sweep:sweep")
USAGE = """Usage: python -m rlearly.sweep agent=A,B env=X,Y seeds=N [key=value ...]
       python -m rlearly.sweep study=NAME [key=value ...]
       python -m rlearly.sweep status=SWEEP_DIR [watch=true]
       python -m rlearly.sweep cancel=SWEEP_DIR
       python -m rlearly.sweep sync=SWEEP_DIR

Values separated by commas make a grid; quote a value that contains a comma, as in
"env.normalize='obs,reward'". Keys that are not listed here are those of `rlearly.train` and apply
to all runs. Repeat a command to continue its sweep: finished runs are skipped, stopped and failed
ones are started again.
"""


@as_command
def main(arguments: list[str]) -> int:
    """Run a sweep, or show, cancel or sync one; returns the exit status."""
    if "--help" in arguments or "-h" in arguments or not arguments:
        print(help_text())
        return DONE if arguments else BAD_REQUEST
    config, overrides = split(arguments)
    for verb in (status, cancel, sync):
        folder = getattr(config, verb.__name__)
        if folder is not None:
            if overrides:
                raise ConfigError(
                    f"{verb.__name__}: cannot be combined with {overrides[0]!r}; leave it out."
                )
            return verb(Path(folder).absolute(), config)
    return start(config, overrides)


def help_text() -> str:
    lines = [USAGE, "Keys (type, default)", *key_lines(SweepConfig, ""), ""]
    lines += ["Keys of a study file, which is YAML", *key_lines(Study, ""), ""]
    lines += [f"Shipped studies: {', '.join(shipped())}. To write one, copy one of {STUDIES}."]
    lines += [STATUS_HELP]
    return "\n".join(lines)
