"""The programs behind `lamplighter power-driver`: pilots in a Slurm cluster, and rented GPU boxes.

The power driver `command` starts them. They use the standard library only, so that a program starts fast.

A pilot is a host that runs as a job of Slurm: on is `sbatch`, off is `scancel`, the state is that of `squeue`. While
a pilot waits in Slurm's queue, the program reports no capacity, with the reason that Slurm gives.

A rented box is powered on and off by its provider's API. The state is read before an order is sent, because no
provider promises that repeated orders are harmless.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode
from urllib.request import Request, urlopen

SLURM_CALL_TIMEOUT_S = 20.0
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


class SlurmRefused(Exception):
    """Slurm refused a call. The message says why, in Slurm's words, and what to do."""


class PilotWaits(Exception):
    """The pilot has no place in the cluster yet, or Slurm's controller is away. The message says why."""


# The first row with a text that a program of Slurm printed, in lower case: what to raise, and its message.
_COMPLAINTS: Sequence[tuple[tuple[str, ...], type[Exception], str]] = (
    (
        ("cannot stat file", "could not establish a configuration source"),
        SlurmRefused,
        (
            "Slurm is not configured on this machine ({why}): copy the cluster's slurm.conf to /etc/slurm, or set "
            "SLURM_CONF for the edge"
        ),
    ),
    (
        ("munge encode failed", "munge decode failed", "authentication"),
        SlurmRefused,
        "munge does not work on this machine ({why}): start munged with the munge.key of the cluster",
    ),
    (
        ("zero bytes were transmitted",),
        PilotWaits,
        "Slurm's controller closed the connection ({why}): compare munge.key and the clock with those of its machine",
    ),
    (
        ("unable to contact slurm controller", "connection refused", "timed out"),
        PilotWaits,
        "Slurm's controller is away ({why}): start slurmctld, or correct SlurmctldHost in slurm.conf",
    ),
    (
        ("unable to open file",),
        SlurmRefused,
        "the pilot's script cannot be read ({why}): set SLURM_PILOT in `env` of the host to its path",
    ),
    (
        ("invalid partition", "invalid account", "invalid qos", "invalid generic resource"),
        SlurmRefused,
        "Slurm refuses an option of the pilot ({why}): correct the #SBATCH lines of its script, or --option",
    ),
)


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
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SLURM_CALL_TIMEOUT_S, env=environ)


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
    except subprocess.TimeoutExpired as error:  # without its slurm.conf, a program tries again for a minute
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr
        raise _explain(said or "") or PilotWaits(
            f"Slurm's controller does not answer {argv[0]} within {SLURM_CALL_TIMEOUT_S:.0f} s: "
            "see the log of slurmctld"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"
    raise _explain(done.stderr) or SlurmRefused(f"{argv[0]} of Slurm failed: {said}")


def _explain(stderr: str) -> Exception | None:
    """Return the error for the first complaint of `stderr` that is known, with what its line says."""
    for texts, error, message in _COMPLAINTS:
        for line in stderr.splitlines():
            if any(text in line.lower() for text in texts):
                return error(message.format(why=line.rpartition("error: ")[2].strip()))
    return None


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


API_TIMEOUT_S = 30

# Neither provider documents a code for "sold out"; these are words of their messages. Add the one that you meet.
NO_CAPACITY_TEXTS = ("资源不足", "库存不足", "无可用", "售罄", "insufficient", "not enough", "sold out", "no resource")

COMPSHARE_STATES: Mapping[str, str] = {
    "Initializing": "starting",
    "Starting": "starting",
    "Running": "on",
    "Rebooting": "starting",
    "Stopping": "stopping",
    "Stopped": "off",
    "Install Fail": "error",
}
AUTODL_STATES: Mapping[str, str] = {
    "creating": "starting",
    "starting": "starting",
    "running": "on",
    "shutting_down": "stopping",
    "shutdown": "off",
    "stopped": "off",
    "error": "error",
}
REACHED_STATES: Mapping[str, frozenset[str]] = {
    "on": frozenset({"on", "starting"}),
    "off": frozenset({"off", "stopping"}),
}


class ProviderRefused(Exception):
    """The provider refused a call; the message is the provider's."""

    @property
    def is_sold_out(self) -> bool:
        """Whether the provider has no free GPU."""
        return any(word in str(self).lower() for word in NO_CAPACITY_TEXTS)


class RentedBox(Protocol):
    """A box at a provider. All calls raise ProviderRefused, OSError, or ValueError for an answer that is not JSON."""

    def state(self) -> str:
        """Return the power state, as a word of the exit contract of the `command` driver."""
        ...

    def order(self, verb: str) -> None:
        """Ask the provider to start or stop the box."""
        ...


def switch(box: RentedBox, verb: str) -> None:
    """Order the box on or off, unless it is there already or on its way."""
    if box.state() not in REACHED_STATES[verb]:
        box.order(verb)


def _fetch(request: Request) -> Any:
    with urlopen(request, timeout=API_TIMEOUT_S) as response:  # noqa: S310 - the provider's address
        return json.load(response)


@dataclass(frozen=True)
class CompShareBox(RentedBox):
    """A box at UCloud CompShare. `host` is its id, uhost-…"""

    public_key: str
    private_key: str
    region: str
    zone: str
    host: str
    url: str = "https://api.ucloud.cn"

    def state(self) -> str:
        boxes = self._call("DescribeCompShareInstance", **{"UHostIds.0": self.host})["UHostSet"]
        if not boxes:
            raise ProviderRefused(f"there is no box {self.host}")
        return COMPSHARE_STATES.get(boxes[0].get("State", ""), "unknown")

    def order(self, verb: str) -> None:
        action = {"on": "StartCompShareInstance", "off": "StopCompShareInstance"}[verb]
        self._call(action, UHostId=self.host, Region=self.region, Zone=self.zone)

    def _call(self, action: str, **parameters: str) -> Any:
        """Make one signed call: SHA-1 of the sorted names and values and the private key (UCloud's "signature")."""
        signed = {"Action": action, "PublicKey": self.public_key, **parameters}
        text = "".join(f"{name}{value}" for name, value in sorted(signed.items())) + self.private_key
        signed["Signature"] = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - what the provider asks for
        answer = _fetch(Request(f"{self.url}/?{urlencode(signed)}"))  # noqa: S310
        if answer.get("RetCode") != 0:
            raise ProviderRefused(f"{action}: {answer.get('RetCode')} {answer.get('Message', '')}")
        return answer


@dataclass(frozen=True)
class AutoDlBox(RentedBox):
    """A container instance "Pro" at AutoDL, the only kind with an API. `instance` is its id, pro-…"""

    token: str
    instance: str
    url: str = "https://api.autodl.com"

    def state(self) -> str:
        return AUTODL_STATES.get(self._call("GET", "status"), "unknown")

    def order(self, verb: str) -> None:
        if verb == "on":
            self._call("POST", "power_on", payload="gpu")
        else:
            self._call("POST", "power_off")

    def _call(self, method: str, path: str, **parameters: str) -> Any:
        """Make one call. A GET has its parameters in the query, although the provider's own example sends a body."""
        url = f"{self.url}/api/v1/dev/instance/pro/{path}"
        sent = {"instance_uuid": self.instance, **parameters}
        headers = {"Authorization": self.token, "Content-Type": "application/json"}
        if method == "GET":
            answer = _fetch(Request(f"{url}?{urlencode(sent)}", headers=headers))  # noqa: S310
        else:
            answer = _fetch(Request(url, data=json.dumps(sent).encode(), headers=headers, method=method))  # noqa: S310
        if answer.get("code") != "Success":
            raise ProviderRefused(f"{path}: {answer.get('code')} {answer.get('msg', '')}")
        return answer.get("data")
