"""Training commands in processes that start at once; see zygote.py."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Zygote:
    def __init__(self):
        paths = [str(HERE.parent), str(HERE)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    def start(self, words, log, die_at=None, number=signal.SIGKILL, **environ):
        """The pid of `python -m rlearly.train WORDS`, whose output goes to the end of `log`."""
        words = [str(word) for word in words]
        return self._ask(words=words, log=str(log), die_at=die_at, number=number, environ=environ)

    def wait(self, pid):
        """Its exit status; negative: the signal that ended it."""
        return self._ask(wait=pid)

    def run(self, *words, log, **more):
        """Its exit status, and what it said."""
        at = log.stat().st_size if log.exists() else 0
        status = self.wait(self.start(words, log, **more))
        return status, log.read_text(encoding="utf-8")[at:]

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)

    def _ask(self, **asked):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
