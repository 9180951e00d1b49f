"""A host that is a pilot in a Slurm cluster: on is `sbatch`, off is `scancel`, the state is that of `squeue`.

`lamplighter power-driver slurm` calls it. A pilot that Slurm lets wait is no capacity: the reason is Slurm's own. Uses
the standard library only, so that the program starts fast.
"""

import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CALL_TIMEOUT_S = 20.0
START_PATIENCE_S = 6.0  # for how long `on` watches whether the pilot starts at once
START_CHECK_INTERVAL_S = 1.0
CALL_ID_VARIABLE = "LAMPLIGHTER_CALL"  # for the program that switches the host, not for the pilot
_STATES: Mapping[str, str] = {
    "PENDING": "pending",
    "CONFIGURING": "starting",
    "RUNNING": "on",
    "SUSPENDED": "on",
    "STOPPED": "on",
    "SIGNALING": "on",
    "STAGE_OUT": "stopping",
    "COMPLETING": "stopping",
}
_AWAY_TEXTS = ("unable to contact slurm controller", "connection refused", "timed out", "zero bytes were transmitted")


class SlurmRefused(Exception):
    """Slurm refused a call; the message is Slurm's."""


class PilotWaits(Exception):
    """The pilot has no place in the cluster yet, or Slurm's controller is away. The message says why."""


class PilotJob(NamedTuple):
    """A job of Slurm. `reason`: why it waits, in Slurm's words."""

    id: int
    state: str
    reason: str
    name: str


RunProgram = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_program(argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a program of Slurm. The pilot inherits the environment, as sbatch does it by default."""
    environ = {name: value for name, value in os.environ.items() if name != CALL_ID_VARIABLE}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=CALL_TIMEOUT_S, env=environ)


def job_name(host: str) -> str:
    """Return the name of a pilot's job in Slurm, by which it is found again."""
    return f"lamplighter-{host}"


def find_states(hosts: Collection[str], run: RunProgram = run_program) -> dict[str, str]:
    """Return the power states of the hosts' pilots, by one call of squeue. Raises PilotWaits, SlurmRefused."""
    jobs = _find_jobs([job_name(host) for host in hosts], run)
    return {host: _power_word([job for job in jobs if job.name == job_name(host)]) for host in hosts}


def _power_word(jobs: Collection[PilotJob]) -> str:
    """Return the power state of a pilot with these jobs, as a word of the exit contract."""
    words = [_STATES.get(job.state, "unknown") for job in jobs]
    return next((word for word in ("on", "starting", "pending", "stopping", "unknown") if word in words), "off")


def _find_jobs(names: Sequence[str], run: RunProgram) -> list[PilotJob]:
    """Return the jobs with these names that have not ended, the oldest first."""
    found = _call(run, "squeue", "--me", "--noheader", f"--name={','.join(names)}", "--format=%i|%T|%j|%r")
    rows = (line.split("|", 3) for line in found.splitlines() if line.strip())
    return sorted(PilotJob(int(number), state, reason, name) for number, state, name, reason in rows)


def _call(run: RunProgram, *argv: str) -> str:
    try:
        done = run(argv)
    except OSError as error:
        raise SlurmRefused(f"{argv[0]} cannot be run ({error.strerror}): install slurm-client") from error
    except subprocess.TimeoutExpired as error:
        raise PilotWaits(f"Slurm's controller does not answer {argv[0]} within {CALL_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"
    if any(text in done.stderr.lower() for text in _AWAY_TEXTS):
        raise PilotWaits(f"Slurm's controller is away: {said}")
    raise SlurmRefused(said)


@dataclass(frozen=True)
class SlurmPilot:
    """The pilot of one host. `script`: the batch script. `options`: more arguments for sbatch."""

    host: str
    script: str
    options: tuple[str, ...] = ()
    run: RunProgram = run_program
    sleep: Callable[[float], None] = time.sleep

    def state(self) -> str:
        """Return the power state, as a word of the exit contract. Raises PilotWaits, SlurmRefused."""
        return find_states([self.host], self.run)[self.host]

    def switch_on(self) -> None:
        """Submit the pilot unless it is there. Raises PilotWaits while Slurm has no place for it; SlurmRefused."""
        if not self._live_jobs():
            self._submit()
            self._cancel_all_but_first()
        waited_s = 0.0
        while True:
            jobs = self._live_jobs()
            if not jobs or any(job.state != "PENDING" for job in jobs):
                return  # no job: it has ended already, and `state` says so
            if waited_s >= START_PATIENCE_S:
                raise PilotWaits(f"job {jobs[0].id} waits in Slurm's queue: {jobs[0].reason}")
            self.sleep(START_CHECK_INTERVAL_S)
            waited_s += START_CHECK_INTERVAL_S

    def switch_off(self) -> None:
        """Cancel the pilot; do nothing if it is not there. Raises PilotWaits, SlurmRefused."""
        for job in self._live_jobs():
            self._cancel(job)

    def _submit(self) -> None:
        name = f"--job-name={job_name(self.host)}"
        host = f"--export=ALL,LAMPLIGHTER_HOST={self.host}"
        _call(self.run, "sbatch", "--parsable", name, host, "--no-requeue", *self.options, self.script)

    def _cancel_all_but_first(self) -> None:
        """Keep one pilot: if another edge has submitted one at the same time, both keep that with the lowest id."""
        for job in self._live_jobs()[1:]:
            self._cancel(job)

    def _cancel(self, job: PilotJob) -> None:
        _call(self.run, "scancel", str(job.id))

    def _live_jobs(self) -> list[PilotJob]:
        return [job for job in _find_jobs([job_name(self.host)], self.run) if job.state != "COMPLETING"]
