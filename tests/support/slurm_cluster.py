"""A Slurm cluster on this machine: munged, slurmctld and slurmd of Debian, with two GPUs that are links to /dev/null.

Root only, without systemd and cgroups. Everything is in one folder, and listens on loopback.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.requirements import require
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for_sync

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol")
STOP_TIMEOUT_S = 20.0
SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
ReturnToService=2
KillWait=5
MinJobAge=10
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def slurm_missing() -> str | None:
    """Return why no cluster can run here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "slurmctld and slurmd of the tests run as root only"


class SlurmCluster:
    """One cluster with one node. `environ`: for programs of Slurm, and for what runs them."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.node = socket.gethostname().partition(".")[0]
        self.environ = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        for number in range(2):
            (folder / f"gpu{number}").symlink_to(os.devnull)  # slurmd gives a job the number of a device file only
        settings = SETTINGS.format(host=self.node, folder=folder, ctld_port=ports[0], slurmd_port=ports[1])
        (folder / "slurm.conf").write_text(settings)
        (folder / "gres.conf").write_text(f"NodeName={self.node} Name=gpu File={folder}/gpu[0-1]\n")

    def start(self) -> None:
        self.start_munge()
        self.start_controller()
        self.start_node()

    def start_munge(self, folder: Path | None = None) -> None:
        """Start a munged with a new key. `folder`: of another machine, which the controller does not trust."""
        at = folder or self.folder
        key = at / "munge.key"
        key.unlink(missing_ok=True)
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = (f"--{name}-file={at / f'munge.{name}'}" for name in ("key", "pid", "log", "seed"))
        arguments = ("--foreground", "--force", f"--socket={at / 'munge.sock'}", *files)
        self._start("munged", *arguments, name=f"munged in {at.name}" if folder else "munged")
        wait_for_sync((at / "munge.sock").exists, timeout_s=30)

    def start_controller(self) -> None:
        self._start("slurmctld", "-D")

    def start_node(self) -> None:
        self._start("slurmd", "-D", "-N", self.node)
        wait_for_sync(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T", check=False), timeout_s=60)

    def _start(self, program: str, *arguments: str, name: str = "") -> None:
        with (self.folder / f"{program}.out").open("ab") as log:
            self._processes[name or program] = subprocess.Popen(
                [program, *arguments], env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self, program: str, sent: signal.Signals = signal.SIGTERM) -> None:
        """Stop one of the three programs, or kill it."""
        process = self._processes.pop(program)
        process.send_signal(sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        if process.poll() is None:
            process.kill()
            process.wait()

    def call(self, *argv: str, check: bool = True) -> str:
        """Run a program of Slurm and return what it prints."""
        done = subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: {done.stderr}\n{self.tail()}")
        return done.stdout

    def jobs(self) -> list[str]:
        """Return name and state of each job that has not ended."""
        return self.call("squeue", "--noheader", "--format=%j %T").splitlines()

    def job_ids(self, host: str) -> list[str]:
        """Return the ids of the pilots of a host that have not ended."""
        return self.call("squeue", "--noheader", f"--name=lamplighter-{host}", "--format=%i").split()

    def pids(self, job_id: str) -> list[int]:
        """Return the processes of a job, by the variable that Slurm gives them."""
        mark = f"SLURM_JOB_ID={job_id}".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    def tail(self) -> str:
        """Return the ends of all logs, for a test that failed."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def close(self) -> None:
        """Cancel what runs, and stop everything."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.call("scancel", "--user=root", check=False)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.2)
        self.stop_all()

    def stop_all(self) -> None:
        """Stop every program, the last one first."""
        for program in reversed(list(self._processes)):
            self.stop(program)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Run a cluster in `folder`, or skip the test where it cannot run."""
    require(slurm_missing(), "REQUIRE_SLURM")
    with ExitStack() as stack:
        cluster = SlurmCluster(folder, stack.enter_context(reserve_ports(2)))
        stack.callback(cluster.close)
        cluster.start()
        yield cluster
