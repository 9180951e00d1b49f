"""What the power driver says where Slurm is not set up: the programs are Debian's, and what they print is theirs."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.core.messages import CATALOGUE
from edge.power import provider_programs
from edge.power.provider_programs import PilotWaits, SlurmPilot, SlurmRefused
from edge.power.views import CANNOT_POWER_ON
from lamplighter.cli import main
from tests.support.requirements import require
from tests.support.reserved_ports import reserve_ports
from tests.support.slurm_cluster import SlurmCluster, slurm_missing
from tests.support.wait import wait_for_sync

CONFIGURED = Path("/etc/slurm/slurm.conf")
AWAY = "start slurmctld, or correct SlurmctldHost in slurm.conf"
NO_MUNGE = "start munged with the munge.key of the cluster"
NO_CONFIGURATION = "copy the cluster's slurm.conf to /etc/slurm, or set SLURM_CONF for the edge"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster of which nothing runs yet, for whose configuration the programs look."""
    require(slurm_missing(), "REQUIRE_SLURM")
    tmp_path.chmod(0o755)  # munged refuses a folder that others may change
    with reserve_ports(2) as ports:
        cluster = SlurmCluster(tmp_path, ports)
        with (tmp_path / "slurm.conf").open("a") as settings:
            settings.write("MessageTimeout=2\n")  # for how long the programs try again
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, cluster.environ[name])
        yield cluster
        cluster.stop_all()


def pilot(folder: Path, *options: str) -> SlurmPilot:
    script = folder / "pilot.sh"
    script.write_text("#!/bin/sh\n")
    return SlurmPilot("slurm-1", str(script), options)


def check(call: Callable[[], object], error: type[Exception], why: str, advice: str) -> None:
    """Check the error, and that a Chinese reader is told the same: only Slurm's words stay English."""
    with pytest.raises(error, match=re.escape(why)) as raised:
        call()
    said = str(raised.value)
    assert said.endswith(f": {advice}")
    assert "\n" not in said
    blocked = CANNOT_POWER_ON.format(why=f"lamplighter: {said}")
    for told in (said, blocked, f"cannot be powered on: lamplighter: {said}; run it by hand to see why"):
        chinese = CATALOGUE.translate(told)
        assert why in chinese
        assert advice not in chinese


def test_a_machine_without_slurm_conf_is_told_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require(slurm_missing(), "REQUIRE_SLURM")
    monkeypatch.setattr(provider_programs, "SLURM_CALL_TIMEOUT_S", 2.0)  # squeue tries again for 60 s
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    check(pilot(tmp_path).state, SlurmRefused, "cannot stat file", NO_CONFIGURATION)


@pytest.mark.skipif(CONFIGURED.exists(), reason=f"this machine has {CONFIGURED}")
def test_a_machine_that_names_no_slurm_conf_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require(slurm_missing(), "REQUIRE_SLURM")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # Slurm looks for its controller in the DNS
    for call in (pilot(tmp_path).state, pilot(tmp_path).switch_on):
        check(call, SlurmRefused, "Could not establish a configuration source", NO_CONFIGURATION)
    done = CliRunner().invoke(main, ["power-driver", "slurm", "state", "--host", "slurm-1"])
    *_, reason, word = done.stdout.splitlines()
    assert (done.exit_code, word) == (1, "unknown")
    assert reason.endswith(NO_CONFIGURATION)


def test_a_controller_that_does_not_run_is_named(cluster: SlurmCluster):
    cluster.start_munge()
    one = pilot(cluster.folder)
    check(one.state, PilotWaits, "Unable to contact slurm controller", AWAY)
    check(one._submit, PilotWaits, "Unable to contact slurm controller", AWAY)


def test_munge_that_does_not_work_is_told_apart_from_the_controller(
    cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.start_munge()
    cluster.start_controller()
    one = pilot(cluster.folder)
    wait_for_sync(lambda: _answers(cluster), timeout_s=60)
    check(
        pilot(cluster.folder, "--partition=none")._submit,
        SlurmRefused,
        "invalid partition",
        ("correct the #SBATCH lines of its script, or --option"),
    )
    check(
        SlurmPilot("slurm-1", str(cluster.folder / "none.sh"))._submit,
        SlurmRefused,
        "Unable to open file",
        ("set SLURM_PILOT in `env` of the host to its path"),
    )
    other = cluster.folder / "other"
    other.mkdir()
    shutil.copy(cluster.folder / "gres.conf", other)
    here = (cluster.folder / "slurm.conf").read_text()
    (other / "slurm.conf").write_text(here.replace(f"{cluster.folder}/munge.sock", f"{other}/munge.sock"))
    monkeypatch.setenv("SLURM_CONF", str(other / "slurm.conf"))
    for call in (one.state, one._submit):
        check(call, SlurmRefused, "Munge encode failed", NO_MUNGE)
    cluster.start_munge(other)
    for call in (one.state, one._submit):
        check(call, PilotWaits, "Zero Bytes", "compare munge.key and the clock with those of its machine")


def _answers(cluster: SlurmCluster) -> bool:
    return subprocess.run(["squeue"], env=cluster.environ, capture_output=True, check=False).returncode == 0
