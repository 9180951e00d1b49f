"""Pilots on Kubernetes: real edge, broker and runners, on an API server and a kubelet of ours.

The tests of this file share one installation and run in order; each begins and ends with the host off.
"""

import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from anyio import to_thread
from msgspec import Struct

from edge.power.drivers.kubernetes import pod_name
from lamplighter import api
from schemas.events import Started
from schemas.job_view import JobView
from schemas.power import PowerRecord
from schemas.power import PowerState as S
from tests.e2e.power.switched_hosts import FAST_CLOCK_MODULE, OFFERED, RULES, JoinableInstallation
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.doc_pages import DOCS, read_listed_blocks, run_block
from tests.support.installation import ROOT, RunningInstallation, run_installation
from tests.support.job_checks import events_of, read_history, wait_for_reason, wait_until_running
from tests.support.kubelet import UNSCHEDULABLE, Kubelet
from tests.support.kubernetes_api import NAMESPACE, KubernetesApi
from tests.support.reserved_ports import HOST as HOST_ADDRESS
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import retry_bus_call, wait_for

pytestmark = [pytest.mark.long(30), pytest.mark.timeout(240)]
HOST = "k8s-1"
POD = pod_name(HOST)
STATE_TIMEOUT_S = 90.0
JOIN_SECRET = "lamplighter-join"


class Cluster(Struct):
    """A cluster of one node, and the installation that starts its hosts there."""

    api: KubernetesApi
    kubelet: Kubelet
    token_file: Path
    running: RunningInstallation

    @property
    def pilot(self) -> dict[str, Any]:
        """The container of the PodTemplate."""
        container: dict[str, Any] = self.api.pod_templates["lamplighter-pilot"]["template"]["spec"]["containers"][0]
        return container

    async def record(self) -> PowerRecord:
        row = await retry_bus_call(lambda: self.running.bus.power_records.get(HOST))
        assert row is not None
        return row.value

    async def wait_for_state(self, *states: S) -> PowerRecord:
        async def there() -> PowerRecord | None:
            record = await self.record()
            return record if record.state in states else None

        found: PowerRecord = await wait_for(there, timeout_s=STATE_TIMEOUT_S)
        return found

    async def submit(self, **given: Any) -> JobView:
        return await self.running.ann.submit("echo", **given)

    async def wait_until_succeeded(self, job: JobView) -> JobView:
        ended = await self.running.ann.wait(job.id)
        assert ended.status == "succeeded"
        return ended

    async def count_starts(self, job: JobView) -> int:
        return len(events_of(await read_history(self.running, job.id), Started))


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("pilots")
    folder.chmod(0o711)
    api_server, token_file = KubernetesApi(), folder / "token"
    token_file.write_text("token-1")
    with reserve_ports(1) as (port,):
        installation = JoinableInstallation(folder, HOST_ADDRESS, port)
        async with api_server.serve() as server:
            given = {"driver": "kubernetes", "server": server, "token_file": str(token_file), "namespace": NAMESPACE}
            rules = {**given, **RULES, "boot_timeout": 30.0, "drain_s": 10.0, "timeout": 4.0}
            lines = (f"{name} = {value!r}\n" for name, value in rules.items())
            (folder / "lamplighter.toml").write_text(f"[hosts.{HOST}]\n{''.join(lines)}")
            async with run_installation(installation, OFFERED) as running:
                api_server.pod_templates["lamplighter-pilot"] = pilot_template(installation.joining_environ(HOST))
                token = await to_thread.run_sync(make_token, folder, installation)
                environ = {**BYTECODE_ENVIRON, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
                async with Kubelet(api_server, folder, environ, slots=0).run() as kubelet:
                    kubelet.secrets[JOIN_SECRET] = {"token": token}
                    yield Cluster(api_server, kubelet, token_file, running)


def make_token(folder: Path, installation: JoinableInstallation) -> str:
    """Make the token of the pilots by the command of docs/kubernetes.md. Blocking."""
    lines = "\n".join(read_listed_blocks(DOCS / "kubernetes.md", "text")).splitlines()
    (command,) = (line for line in lines if line.startswith("lamplighter hosts token "))
    admin = {"LAMPLIGHTER_URL": installation.url, "LAMPLIGHTER_KEY": installation.keys["admin"]}
    done = run_block("sh", command, folder, **admin)
    assert done.returncode == 0, done.stderr
    return (folder / "token.txt").read_text().strip()


def pilot_template(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the PodTemplate of deploy/kubernetes/pilot.yaml, with the program and the settings of these pilots."""
    template: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "pilot.yaml").read_text())
    (container,) = template["template"]["spec"]["containers"]
    (join,) = (one for one in container["env"] if one["name"] == "LAMPLIGHTER_JOIN")
    assert container["args"][:2] == ["runner", "--until-idle"]
    assert join["valueFrom"]["secretKeyRef"]["name"] == JOIN_SECRET
    container["image"] = "pilot:1"
    container["command"] = [sys.executable, "-m", FAST_CLOCK_MODULE]
    container["env"] = [join, *({"name": name, "value": value} for name, value in settings.items())]
    template["template"]["spec"]["terminationGracePeriodSeconds"] = 10
    return template


@pytest.fixture
async def cluster(home: Cluster) -> AsyncIterator[Cluster]:
    """Lend the cluster to a test, with room for one Pod."""
    await home.wait_for_state(S.OFF)
    home.kubelet.allow(1)
    yield home
    print(home.running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def test_a_job_waits_for_room_runs_in_a_pod_and_the_pod_is_deleted(cluster: Cluster) -> None:
    cluster.kubelet.allow(0)
    job = await cluster.submit(text="hello")
    blocked = await cluster.wait_for_state(S.BLOCKED)
    assert blocked.why == f"no capacity: Pod {POD} waits for a node: {UNSCHEDULABLE}"
    await wait_for_reason(cluster.running, job.id, "host_blocked")
    told = (await cluster.running.ann.job(job.id)).message
    assert told == f"No GPU host is free yet: Pod {POD} waits for a node: {UNSCHEDULABLE}"
    cluster.kubelet.allow(1)
    await cluster.wait_until_succeeded(job)
    assert await cluster.count_starts(job) == 1
    record = await cluster.wait_for_state(S.OFF)
    assert cluster.api.pods == {}
    assert {S.BLOCKED, S.ONLINE, S.DRAINING, S.STOPPING} <= {change.state for change in record.history}


async def test_a_pod_for_which_no_job_waits_any_more_is_withdrawn(cluster: Cluster) -> None:
    cluster.kubelet.allow(0)
    job = await cluster.submit()
    await cluster.wait_for_state(S.BLOCKED)
    assert POD in cluster.api.pods
    await cluster.running.ann.cancel(job.id)
    await cluster.wait_for_state(S.OFF)
    assert cluster.api.pods == {}


async def test_an_eviction_loses_nothing_and_runs_nothing_twice_at_once(cluster: Cluster) -> None:
    """The runner drains when it gets TERM: it stops the job and gives it back at no cost."""
    job = await cluster.submit(seconds=4.0)
    await wait_until_running(cluster.running, job.id)
    cluster.kubelet.evict(POD)
    ended = await cluster.wait_until_succeeded(job)
    assert await cluster.count_starts(job) == 2
    assert ended.attempt == 2
    await cluster.wait_for_state(S.ONLINE, S.DRAINING, S.STOPPING, S.OFF)
    if POD in cluster.api.pods and cluster.api.pods[POD]["status"]["phase"] == "Running":
        cluster.kubelet.end(POD)  # as after `--until-idle`: its host is off
    await cluster.wait_for_state(S.OFF)


async def test_the_job_of_a_node_that_is_lost_runs_again_in_another_pod(cluster: Cluster) -> None:
    """The node cannot say that the Pod has ended: after its grace the edge counts it as off, and removes it."""
    job = await cluster.submit(seconds=2.0)
    await wait_until_running(cluster.running, job.id)
    lost = cluster.api.pods[POD]["metadata"]["uid"]
    cluster.kubelet.lose_node(POD)
    await cluster.wait_until_succeeded(job)
    assert await cluster.count_starts(job) == 2
    assert POD not in cluster.api.pods or cluster.api.pods[POD]["metadata"]["uid"] != lost


async def test_a_wrong_image_is_a_fault_and_trouble_with_the_api_server_is_waited_out(cluster: Cluster) -> None:
    """The operator corrects the image. Then the token was replaced, one answer does not come, and one is an error."""
    cluster.pilot["image"] = "missing:1"
    cluster.kubelet.missing_images.add("missing:1")
    job = await cluster.submit()
    fault = await cluster.wait_for_state(S.FAULT)
    assert 'ImagePullBackOff: Back-off pulling image "missing:1"' in fault.why
    assert cluster.api.pods == {}
    await wait_for_reason(cluster.running, job.id, "host_fault")
    cluster.pilot["image"] = "pilot:1"
    cluster.api.tokens = {"token-2"}
    cluster.token_file.write_text("token-2")
    cluster.api.fail_next(401, 500)
    cluster.api.hang_next()
    await cluster.running.admin.call(api.set_power(HOST, "auto", None))
    await cluster.wait_until_succeeded(job)
    assert await cluster.count_starts(job) == 1
