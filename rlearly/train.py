"""`python -m rlearly.train agent=drm env=dog_run`: train one agent on one env with one seed."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.train")

import sys

from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, STATUS_HELP
from rlearly.system.command import as_command, call_instead

call_instead(__name__, "rlearly.api.training:train")


@as_command
def main(overrides: list[str]) -> int:
    """Train with these overrides; returns the exit status.

    The process is left as it was found, except for what `system.process.restored_process` and
    `system.machine.computing` name.
    """
    if "--help" in overrides or "-h" in overrides or not overrides:
        from rlearly.config.help import train_help

        text = train_help([word for word in overrides if not word.startswith("-")])
        print(text, STATUS_HELP, sep="\n")
        return DONE
    if "--cfg" in overrides:
        return show_config(overrides)
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        raise ConfigError(f"There is no option {unknown[0]}; there are --help and --cfg job.")
    from rlearly.api.session import train

    ended = train(overrides)
    if ended.failure:
        print(f"rlearly: {ended.failure}", file=sys.stderr)
    return ended.status


def show_config(overrides: list[str]) -> int:
    from rlearly.config.resolve import compose

    at = overrides.index("--cfg")
    if overrides[at + 1 : at + 2] != ["job"]:
        raise ConfigError("--cfg: expected `--cfg job`, which prints the config and exits.")
    print(as_yaml(compose(overrides[:at] + overrides[at + 2 :])), end="")
    return DONE
