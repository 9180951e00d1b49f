"""The power driver of Slurm pilots against a scripted Slurm; tests/e2e/test_slurm.py runs it against the real one."""

import subprocess
from collections.abc import Sequence

import pytest

from edge.power.provider_programs import START_PATIENCE_S, PilotWaits, SlurmPilot, SlurmRefused, find_states

AWAY = "squeue: error: Unable to contact slurm controller (connect failure)"


class ScriptedSlurm:
    """Programs of Slurm. `queue`: rows of squeue; a submitted pilot is `state`. `failures`: stderr by program."""

    def __init__(self, state: str = "RUNNING", reason: str = "None") -> None:
        self.state, self.reason = state, reason
        self.queue: dict[int, str] = {}
        self.failures: dict[str, str] = {}
        self.calls: list[str] = []
        self.slept: list[float] = []
        self.looks = 0  # calls of squeue
        self.rival = False  # another edge submits a pilot just before
        self.lacks_programs = self.hangs = False

    def pilot(self) -> SlurmPilot:
        return SlurmPilot("slurm-1", "/pilot.sh", ("--partition=gpu",), self.run, self.slept.append)

    def run(self, argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        if self.lacks_programs:
            raise FileNotFoundError(2, "No such file or directory")
        if self.hangs:
            raise subprocess.TimeoutExpired(list(argv), 20)
        program = argv[0]
        if program in self.failures:
            return subprocess.CompletedProcess(argv, 1, "", self.failures[program] + "\n")
        said = ""
        if program == "squeue":
            self.looks += 1
            said = "".join(
                f"{number}|{state}|lamplighter-slurm-1|{self.reason}\n" for number, state in self.queue.items()
            )
        else:
            self.calls.append(" ".join(argv))
        if program == "sbatch":
            for _ in range(1 + self.rival):
                self.queue[17 + len(self.queue)] = self.state
        if program == "scancel":
            del self.queue[int(argv[1])]
        return subprocess.CompletedProcess(argv, 0, said, "")


@pytest.mark.parametrize(
    ("queue", "word"),
    [
        ([], "off"),
        (["PENDING"], "pending"),
        (["CONFIGURING"], "starting"),
        (["RUNNING"], "on"),
        (["SUSPENDED"], "on"),
        (["COMPLETING"], "stopping"),
        (["COMPLETING", "PENDING"], "pending"),
        (["COMPLETING", "RUNNING"], "on"),
        (["SPECIAL_EXIT"], "unknown"),
    ],
)
def test_the_state_is_that_of_the_queue(queue: list[str], word: str):
    slurm = ScriptedSlurm()
    slurm.queue = dict(enumerate(queue))
    assert slurm.pilot().state() == word


def test_one_look_at_the_queue_reports_many_pilots():
    slurm = ScriptedSlurm(reason="Resources|and more")
    slurm.queue = {7: "PENDING"}
    hosts = [f"slurm-{number}" for number in range(50)]
    assert find_states(hosts, slurm.run) == dict.fromkeys(hosts, "off") | {"slurm-1": "pending"}
    assert slurm.looks == 1
    slurm.failures["squeue"] = AWAY
    with pytest.raises(PilotWaits, match="controller is away"):
        find_states(hosts, slurm.run)


def test_on_submits_one_pilot_that_knows_its_host():
    slurm = ScriptedSlurm()
    for _ in range(2):  # a call whose answer was lost is repeated
        slurm.pilot().switch_on()
    (call,) = slurm.calls
    assert call.split() == [
        *("sbatch", "--parsable", "--job-name=lamplighter-slurm-1", "--export=ALL,LAMPLIGHTER_HOST=slurm-1"),
        *("--no-requeue", "--partition=gpu", "/pilot.sh"),
    ]


def test_of_two_edges_that_submit_at_once_one_pilot_stays():
    slurm = ScriptedSlurm()
    slurm.rival = True
    slurm.pilot().switch_on()
    assert (slurm.queue, slurm.calls[1:]) == ({17: "RUNNING"}, ["scancel 18"])


def test_a_pilot_that_waits_is_no_capacity_in_slurms_words():
    slurm = ScriptedSlurm("PENDING", "Resources")
    for _ in range(2):
        with pytest.raises(PilotWaits, match="job 17 waits in Slurm's queue: Resources"):
            slurm.pilot().switch_on()
    assert sum(slurm.slept) == 2 * START_PATIENCE_S
    assert len(slurm.calls) == 1


def test_off_cancels_what_is_there_and_nothing_else():
    slurm = ScriptedSlurm()
    slurm.pilot().switch_off()
    slurm.queue = {3: "PENDING", 4: "COMPLETING"}
    slurm.pilot().switch_off()
    assert slurm.calls == ["scancel 3"]


def test_a_controller_that_is_away_is_no_fault_of_the_host():
    slurm = ScriptedSlurm()
    slurm.failures["squeue"] = AWAY
    for ask in (slurm.pilot().switch_on, slurm.pilot().switch_off, slurm.pilot().state):
        with pytest.raises(PilotWaits, match="controller is away"):
            ask()
    slurm.hangs = True
    with pytest.raises(PilotWaits, match="does not answer squeue"):
        slurm.pilot().state()


def test_what_slurm_refuses_is_said():
    slurm = ScriptedSlurm()
    slurm.failures["sbatch"] = "sbatch: error: invalid partition specified: gpu"
    with pytest.raises(SlurmRefused, match="invalid partition"):
        slurm.pilot().switch_on()
    slurm.lacks_programs = True
    with pytest.raises(SlurmRefused, match="install slurm-client"):
        slurm.pilot().state()
