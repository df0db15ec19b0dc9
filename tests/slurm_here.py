"""Run a real SLURM with two nodes on this machine, for tests: no control groups, no database.

It needs root and Debian's slurmctld, slurmd, slurm-client and munge. All its files are in one
folder.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONTROL_PORT, NODE_PORTS = 26817, "27001-27002"

CONFIG = """
ClusterName=rlearly
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
# cred_expire: a requeued job waits for its old credential to run out, 120 s otherwise
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={base}/state
SlurmctldPidFile={base}/slurmctld.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdSpoolDir={base}/spool.%n
SlurmdLogFile={base}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# without it a preempted job gets SIGTERM alone, which submitit ignores
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=10
InactiveLimit=0
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=20
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=2 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """The programs that are not installed, and root if we are not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    gone = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    return gone if os.geteuid() == 0 else [*gone, "root"]


class Slurm:
    """Starts the daemons, and stops them by their pid files."""

    def __init__(self, base: Path):
        self.base = base
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool.n1", "spool.n2"):
            (base / name).mkdir(parents=True, exist_ok=True)
        base.chmod(0o755)
        self.config = base / "slurm.conf"
        self.config.write_text(
            CONFIG.format(base=base, host=host, port=CONTROL_PORT, ports=NODE_PORTS),
            encoding="utf-8",
        )
        key = base / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)

    def start(self):
        os.environ["SLURM_CONF"] = str(self.config)
        munge = {
            name: self.base / f"munge{end}"
            for name, end in {
                "key-file": ".key",
                "socket": ".sock",
                "pid-file": "d.pid",
                "log-file": "d.log",
                "seed-file": ".seed",
            }.items()
        }
        flags = [f"--{name}={path}" for name, path in munge.items()]
        self._run("/usr/sbin/munged", *flags, "--num-threads=2", "--force")
        self._run("/usr/sbin/slurmctld", "-f", self.config, "-i")
        for node in ("n1", "n2"):
            self.start_node(node)
        until(lambda: self.nodes() == {"n1": "idle", "n2": "idle"}, 60, "two idle nodes")

    def start_node(self, node):
        self._run("/usr/sbin/slurmd", "-f", self.config, "-N", node)

    def kill_node(self, node):
        """Kill the daemon of a node and its jobs, as if the machine were lost.

        All are stopped first, so that none can report the end of another to the controller.
        """
        jobs = self.ask("squeue", "-h", "-t", "R", "-w", node, "-o", "%A").split()
        doomed = [self._pid(f"slurmd.{node}")]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                title = (process / "cmdline").read_bytes().decode(errors="replace")
                mine = f"SLURM_CONF={self.config}".encode() in environment
                if any(
                    title.startswith(f"slurmstepd: [{job}.")
                    or (mine and f"SLURM_JOB_ID={job}".encode() in environment)
                    for job in jobs
                ):
                    doomed.append(int(process.name))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def nodes(self):
        lines = self.ask("sinfo", "-h", "-N", "-o", "%N %T").split("\n")
        return dict(line.split() for line in lines if line)

    def states(self):
        """Job number -> state."""
        lines = self.ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").split("\n")
        return dict(line.split() for line in lines if line)

    def ask(self, *command):
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    def stop(self):
        subprocess.run(["scancel", "-u", "root"], check=False)
        time.sleep(1)
        for name in ("slurmd.n1", "slurmd.n2", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(self._pid(name), 15)
        os.environ.pop("SLURM_CONF", None)

    def _pid(self, name):
        return int((self.base / f"{name}.pid").read_text(encoding="utf-8"))

    def _run(self, *command):
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def until(holds, seconds, what):
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.3)
