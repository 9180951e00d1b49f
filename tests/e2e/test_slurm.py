"""Pilots in a real Slurm cluster: jobs wait, sbatch, the runner joins, runs and ends by itself, whatever goes wrong.

munged, slurmctld and slurmd of Debian run on this machine; the edge switches pilots by the recipe in deploy/power.
"""

import json
import os
import re
import shlex
import signal
import tomllib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.test_up import lamplighter, up
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid
from tests.support.doc_pages import DOCS, read_blocks, run_block
from tests.support.installation import ROOT
from tests.support.job_user import why_no_sandbox
from tests.support.reserved_ports import reserve_ports
from tests.support.slurm_cluster import SlurmCluster, slurm_cluster
from tests.support.wait import wait_for_sync

pytestmark = pytest.mark.timeout(300)

DEADLINE_S = 120.0
POLL_INTERVAL_S = 0.1  # a poll may start a program of Slurm
PILOT = ROOT / "deploy" / "slurm" / "pilot.sh"
RECIPE = ROOT / "deploy" / "power" / "slurm.toml"


class Site:
    """A cluster, and an installation whose only hosts are pilots in it. `http`: as its admin."""

    def __init__(self, cluster: SlurmCluster, data: Path, http: httpx2.Client) -> None:
        self.cluster = cluster
        self.data = data
        self._http = http

    def get(self, path: str) -> Any:
        """Return a document of the edge. What polls does not start a command each time, which takes 0.3 s.

        As every client does, it asks again after a 503: the broker did not answer in time.
        """

        def served() -> httpx2.Response | None:
            answer = self._http.get(path)
            return answer if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE else None

        answer = wait_for_sync(served, timeout_s=DEADLINE_S, interval_s=POLL_INTERVAL_S)
        return answer.raise_for_status().json()

    def submit(self, seconds: float = 0.0) -> str:
        words = ("--seconds", str(seconds), "--steps", "100") if seconds else ()
        done = lamplighter(self.data, "submit", "echo", "--text", "pilot", *words, "--json")
        assert done.returncode == 0, done.stderr
        job_id: str = json.loads(done.stdout)["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
        return found

    def hosts(self) -> dict[str, dict[str, Any]]:
        return {host["id"]: host for host in self.get("/v1/hosts")["hosts"]}

    def wait_for_status(self, job_id: str, wanted: str) -> dict[str, Any]:
        self.until(lambda: self.job(job_id)["status"] == wanted, f"{job_id} is not {wanted}: {self.job(job_id)}")
        return self.job(job_id)

    def wait_until_empty(self) -> None:
        """Wait until no pilot is left in Slurm, and no host of the token is enrolled."""
        self.until(lambda: not self.cluster.jobs(), f"pilots are left: {self.cluster.jobs()}")
        self.until(lambda: self.get("/v1/host-tokens")["tokens"][0]["hosts"] == 0, "hosts are left")

    def pilot_of(self, job_id: str) -> str:
        """Return the id of the Slurm job in which the job runs."""
        (pilot,) = self.cluster.job_ids(self.wait_for_status(job_id, "running")["host"])
        return pilot

    def events(self, job_id: str) -> list[str]:
        """Return the types of the job's events, in their order, without progress."""
        return [row["event"]["type"] for row in self.get(f"/v1/jobs/{job_id}/history")]

    def wait_for_starts(self, job_id: str, *wanted: str) -> None:
        """Wait until the job was started and released in exactly this order."""

        def starts() -> list[str]:
            return [event for event in self.events(job_id) if event in {"started", "released"}]

        self.until(lambda: len(starts()) >= len(wanted), f"{job_id} did not reach {wanted}")
        assert starts() == list(wanted)

    def cancel(self, job_id: str) -> None:
        done = lamplighter(self.data, "cancel", job_id)
        assert done.returncode == 0, done.stderr
        self.wait_for_status(job_id, "cancelled")

    def until(self, is_true: Callable[[], bool], otherwise: str) -> None:
        try:
            wait_for_sync(is_true, timeout_s=DEADLINE_S, interval_s=POLL_INTERVAL_S)
        except TimeoutError:
            pytest.fail(f"{otherwise}\n{self.hosts()}\n{self.cluster.tail()}\n{self.pilot_logs()}", pytrace=False)

    def pilot_logs(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in sorted(self.cluster.folder.glob("pilot-*.log")))


def declare(cluster: SlurmCluster) -> str:
    """Return the recipe, with what the pilots of this test need."""
    (recipe,) = tomllib.loads(RECIPE.read_text())["hosts"].values()
    env = {
        "SLURM_PILOT": str(PILOT),
        "PILOT_UNTIL_IDLE_S": "3",
        "LAMPLIGHTER_WARM__ON": "0",
        "LAMPLIGHTER_GRACE_S": "1",
        "LD_LIBRARY_PATH": str(cluster.folder / "nvml"),
        "NVIDIA_STUB_STATE": str(cluster.folder / "nvml" / "state"),
        "SBATCH_OUTPUT": str(cluster.folder / "pilot-%j.log"),
        "SBATCH_OPEN_MODE": "append",
    }
    written = "".join(f'{name} = "{value}"\n' for name, value in env.items())
    rules = {name: recipe[name] for name in ("driver", "on", "off", "states", "inherit", "min_on", "idle_after")}
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in rules.items())
    return f"[hosts.slurm-1]\n{lines}[hosts.slurm-1.env]\n{written}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Follow docs/slurm.md as it stands: its first command starts the edge, the others make the token of the pilots."""
    folder = tmp_path_factory.mktemp("slurm")
    home = folder / "home"
    for made in (folder, home, home / "images"):
        made.mkdir(mode=0o711, exist_ok=True)
        made.chmod(0o711)  # jobs run as another user
    (home / "images" / "echo").symlink_to(ROOT / "images" / "echo")
    (folder / "nvml").mkdir()
    StubNvml(folder / "nvml", count=4)
    (commands,) = read_blocks(DOCS / "slurm.md", "sh")
    first, _, rest = commands.partition("\n")
    with slurm_cluster(folder) as cluster, pytest.MonkeyPatch.context() as patch, reserve_ports(2) as ports:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.environ[name])
        patch.setenv("HOME", str(home))
        config = folder / "lamplighter.toml"
        config.write_text(declare(cluster))
        here = {"login.example.com": "127.0.0.1", "lamplighter.toml": str(config)}
        program, verb, *words = (here.get(word, str(Path(word).expanduser())) for word in shlex.split(first))
        assert (program, verb) == ("lamplighter", "up")
        listen = ("--listen", "127.0.0.1", "--tls-port", str(ports[0]), "--broker-port", str(ports[1]))
        with up(folder / "data", *words, *listen) as (_, said):
            done = run_block("sh", rest, folder, LAMPLIGHTER_URL=said["url"], LAMPLIGHTER_KEY=said["key"])
            assert done.returncode == 0, done.stderr
            key = {"Authorization": f"Bearer {said['key']}"}
            with httpx2.Client(base_url=said["url"], headers=key, timeout=60, verify=False) as http:
                yield Site(cluster, folder / "data", http)


@pytest.mark.long(15)
def test_jobs_that_wait_start_a_pilot_that_ends_by_itself(site: Site) -> None:
    jobs = [site.submit() for _ in range(3)]
    for job in jobs:
        done = site.wait_for_status(job, "succeeded")
        assert done["host"].startswith("slurm-")
        assert done["isolation"] == ("process" if why_no_sandbox() else "bubblewrap")
    site.wait_until_empty()
    assert "idle for 3 s: the runner ends" in site.pilot_logs()


@pytest.mark.long(25)
def test_clients_are_told_why_slurm_lets_a_pilot_wait(site: Site) -> None:
    hog = site.cluster.call("sbatch", "--parsable", "--gres=gpu:2", "--output=/dev/null", "--wrap", "sleep 600").strip()
    job = site.submit()

    def is_told() -> bool:
        return any("Slurm's queue: Resources" in why for host in site.hosts().values() for why in host["waits"])

    site.until(is_told, "no host is told why it waits")
    site.until(lambda: "Slurm's queue: Resources" in site.job(job)["message"], "the job is not told why it waits")
    site.cluster.call("scancel", hog)
    site.wait_for_status(job, "succeeded")
    site.wait_until_empty()


LONG_S = 300.0  # a job that runs until its test cancels it


@pytest.mark.long(40)
def test_a_pilot_ends_before_its_time_limit_and_gives_its_job_back(site: Site) -> None:
    """The limit is brought forward while the job runs. Slurm looks at limits twice a minute."""
    job = site.submit(LONG_S)
    pilot = site.pilot_of(job)
    assert re.search(r"ends_in_s=1[34]\d\d\d ", site.pilot_logs())  # the limit of pilot.sh: 4 hours
    assigned = "1 of 4 (CUDA_VISIBLE_DEVICES=0)"  # Slurm gave one of two, and NVML shows four
    site.until(lambda: site.hosts()["slurm-1"]["gpus_assigned"] == assigned, "the pilot's GPUs are not told")
    assert [gpu["uuid"] for gpu in site.hosts()["slurm-1"]["gpus"]] == [gpu_uuid(0)]
    site.cluster.call("scontrol", "update", f"JobId={pilot}", "TimeLimit=1")
    site.wait_for_starts(job, "started", "released")
    site.cancel(job)
    site.wait_until_empty()


@pytest.mark.long(20)
def test_a_preempted_pilot_gives_its_job_back(site: Site) -> None:
    job = site.submit(LONG_S)
    pilot = site.pilot_of(job)
    site.cluster.call("scancel", "--signal=TERM", "--batch", pilot)
    site.wait_for_starts(job, "started", "released", "started")
    assert site.pilot_of(job) != pilot
    site.cancel(job)
    site.wait_until_empty()


@pytest.mark.long(45)
def test_the_job_of_a_node_that_fails_runs_again_elsewhere(site: Site) -> None:
    job = site.submit(LONG_S)
    pilot = site.pilot_of(job)
    site.cluster.stop("slurmd", signal.SIGKILL)
    for pid in site.cluster.pids(pilot):
        os.kill(pid, signal.SIGKILL)
    site.cluster.call("scontrol", "update", f"NodeName={site.cluster.node}", "State=DOWN", "Reason=test")
    site.cluster.call("scontrol", "update", f"NodeName={site.cluster.node}", "State=RESUME")
    site.cluster.start_node()
    site.wait_for_starts(job, "started", "released", "started")
    site.cancel(job)
    site.wait_until_empty()


@pytest.mark.long(15)
def test_a_restart_of_the_controller_disturbs_no_job(site: Site) -> None:
    """The last one: a controller that was killed before it saved its state gives the id of a job to another one."""
    job = site.submit(seconds=4)
    site.pilot_of(job)
    site.cluster.stop("slurmctld", signal.SIGKILL)
    site.wait_for_status(job, "succeeded")
    site.cluster.start_controller()
    assert site.events(job).count("started") == 1
    site.wait_until_empty()
