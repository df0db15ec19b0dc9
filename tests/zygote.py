"""A process that has imported everything and forks a training command on request, so that killing
and resuming it hundreds of times does not wait for imports. Reads JSON lines, answers with JSON.

{"words": [...], "log": FILE, "die_at": N | null, "number": SIGNAL, "environ": {...}} -> pid; at its
Nth call that writes, syncs, renames or deletes something the command gets that signal.
{"wait": pid} -> its exit status, negative: a signal.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import gymnasium  # noqa: F401
import tensorboardX  # noqa: F401
import tiny_envs  # noqa: F401
import torch._dynamo  # noqa: F401  what optimizers import when they are made

from rlearly import train
from rlearly.agents import drm, ppo, sac, td3  # noqa: F401
from rlearly.training import builder, checkpoint, sinks  # noqa: F401


def main():
    checkpoint.SMALL_BYTES, checkpoint.CHUNK_BYTES = 1500, 20_000  # of tiny runs too
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                os._exit(run(**asked))
        print(json.dumps(answer), flush=True)


def run(words, log, die_at, environ, number):
    os.setpgid(0, 0)
    os.environ.update(environ)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    if die_at is not None:
        arm(die_at, number)
    status = train.main(words)
    sys.stdout.flush()
    return status


def arm(calls, number):
    """Count the calls that change a file; at the last one the process gets a signal."""
    left = [calls]

    def deadly(function):
        def counted(*words, **more):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return function(*words, **more)

        return counted

    for owner, names in (
        (Path, ("rename", "replace", "unlink", "mkdir", "write_text")),
        (os, ("fsync", "truncate")),
        (shutil, ("rmtree",)),
        (checkpoint._HashedFile, ("write",)),
        (sinks.JsonLines, ("write",)),
    ):
        for name in names:
            setattr(owner, name, deadly(getattr(owner, name)))


if __name__ == "__main__":
    main()
