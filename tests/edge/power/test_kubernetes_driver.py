"""The Kubernetes driver where the API server, the cluster or the Pod misbehaves. tests/contract has what goes well."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec import Struct

from edge.power.driver_calls import call_driver, query_driver
from edge.power.drivers import kubernetes
from edge.power.drivers.kubernetes import (
    END_VARIABLE,
    HOST_VARIABLE,
    KubernetesDriver,
    PilotPod,
    describe_pilot,
    pilot_manifest,
    pod_name,
    read_access,
)
from schemas.host_config import KubernetesHostConfig
from schemas.power import PowerCallFailed, PowerCallOutcome, PowerCallResult, PowerVerb, ReportedPower
from tests.support.kubernetes_api import NAMESPACE, KubernetesApi

POD = "lamplighter-gpu-1"
TIMEOUT_S = 20.0
UNANSWERED_S = 1.0  # for a start whose Pod nobody answers; long enough to read it once under load
SCHEDULED = {"type": "PodScheduled", "status": "True"}
REFUSED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}


class Cluster(Struct):
    """An API server without a node: a test says what the scheduler and the kubelet would."""

    api: KubernetesApi
    driver: KubernetesDriver
    token_file: Path
    ahead: timedelta = timedelta(0)

    async def call(self, verb: PowerVerb = PowerVerb.START) -> PowerCallResult:
        return await call_driver(self.driver, verb, "call-1", TIMEOUT_S)

    async def start_with(self, **status: Any) -> PowerCallResult:
        """Start while a node answers each new Pod with this status."""

        async def answer() -> None:
            while True:
                changed = self.api.changed
                if POD in self.api.pods and self.api.pods[POD]["status"]["phase"] == "Pending":
                    self.api.pods[POD]["status"].update(status)
                await changed.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            result = await self.call()
            tasks.cancel_scope.cancel()
        return result


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(kubernetes, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(kubernetes, "SETTLE_S", TIMEOUT_S / 2)
    token_file = tmp_path / "token"
    token_file.write_text("token-1")
    api = KubernetesApi()
    container = {"name": "runner", "image": "pilot:1", "env": [{"name": HOST_VARIABLE, "value": "wrong"}]}
    api.pod_templates["lamplighter-pilot"] = {"template": {"spec": {"containers": [container]}}}
    async with api.serve() as server:
        declared = KubernetesHostConfig(server=server, token_file=token_file, namespace=NAMESPACE, drain_s=33.0)
        made = Cluster(api, KubernetesDriver("gpu-1", declared, {}, lambda: datetime.now(UTC) + made.ahead), token_file)
        yield made


async def test_a_pod_names_its_host_and_is_made_once(cluster: Cluster) -> None:
    assert (await cluster.start_with(phase="Running")).outcome is PowerCallOutcome.DONE
    pod = cluster.api.pods[POD]
    assert pod["metadata"]["labels"]["lamplighter/pilot"] == POD
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["containers"][0]["env"] == [{"name": HOST_VARIABLE, "value": "gpu-1"}]
    assert (await cluster.call()).outcome is PowerCallOutcome.DONE
    assert cluster.api.requests.count("create pods") == 1


def test_the_runner_of_a_pod_with_a_deadline_is_told_it() -> None:
    spec = {"containers": [{"name": "runner"}], "activeDeadlineSeconds": 3600}
    told = {"name": END_VARIABLE, "value": "3600"}
    assert pilot_manifest({"spec": spec}, "gpu-1")["spec"]["containers"][0]["env"][1:] == [told]
    own = {"name": END_VARIABLE, "value": "60"}
    spec["containers"] = [{"name": "runner", "env": [own]}]
    assert own in (env := pilot_manifest({"spec": spec}, "gpu-1")["spec"]["containers"][0]["env"])
    assert told not in env


async def test_another_edge_was_first(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pod appears between the look and the creation: 409 is no error."""
    create = KubernetesDriver._create

    async def create_twice(driver: KubernetesDriver) -> None:
        await create(driver)
        cluster.api.set_status(POD, phase="Running")
        await create(driver)

    monkeypatch.setattr(KubernetesDriver, "_create", create_twice)
    assert (await cluster.call()).outcome is PowerCallOutcome.DONE
    assert len(cluster.api.pods) == 1


async def test_a_pod_without_a_node_is_no_capacity_and_stays_in_line(cluster: Cluster) -> None:
    for _ in range(2):
        result = await cluster.start_with(conditions=[REFUSED])
        assert result == PowerCallResult(
            PowerCallOutcome.NO_CAPACITY, f"Pod {POD} waits for a node: 0/3 nodes are available"
        )
    assert cluster.api.requests.count("create pods") == 1
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.PENDING
    cluster.api.set_status(POD, conditions=[SCHEDULED])
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.STARTING
    cluster.driver._settle_s = UNANSWERED_S
    assert (await cluster.call()).outcome is PowerCallOutcome.DONE


async def test_a_scheduler_that_does_not_answer_is_no_capacity(cluster: Cluster) -> None:
    cluster.driver._settle_s = UNANSWERED_S
    result = await cluster.call()
    assert result.outcome is PowerCallOutcome.NO_CAPACITY
    assert "the scheduler has not looked at the Pod yet" in result.why


async def test_a_quota_that_is_used_up_is_no_capacity(cluster: Cluster) -> None:
    cluster.api.pod_quota = 0
    result = await cluster.call()
    assert result.outcome is PowerCallOutcome.NO_CAPACITY
    assert "exceeded quota" in result.why


@pytest.mark.parametrize("reason", sorted(kubernetes.IMAGE_FAULTS))
async def test_an_image_that_cannot_be_pulled_is_a_failure_and_leaves_no_pod(cluster: Cluster, reason: str) -> None:
    waiting = {"reason": reason, "message": "pilot:1: not found"}
    status = [{"name": "runner", "state": {"waiting": waiting}}]
    result = await cluster.start_with(conditions=[SCHEDULED], containerStatuses=status)
    assert result.outcome is PowerCallOutcome.FAILED
    assert f"{reason}: pilot:1: not found; correct PodTemplate lamplighter-pilot" in result.why
    assert cluster.api.pods == {}


@pytest.mark.parametrize(
    "ended",
    [
        {"phase": "Succeeded"},
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        {"phase": "Failed", "containerStatuses": [{"name": "r", "state": {"terminated": {"exitCode": 4}}}]},
    ],
)
async def test_a_pod_that_has_ended_is_off_and_is_replaced(cluster: Cluster, ended: dict[str, Any]) -> None:
    await cluster.start_with(phase="Running")
    first = cluster.api.pods[POD]["metadata"]["uid"]
    cluster.api.set_status(POD, **ended)
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.OFF
    assert (await cluster.start_with(phase="Running")).outcome is PowerCallOutcome.DONE
    assert cluster.api.pods[POD]["metadata"]["uid"] != first


async def test_a_deletion_leaves_time_to_drain_and_a_start_waits_for_its_end(cluster: Cluster) -> None:
    cluster.api.pod_templates["lamplighter-pilot"]["template"]["spec"]["nodeName"] = "node-1"
    await cluster.start_with(phase="Running")
    assert (await cluster.call(PowerVerb.STOP)).outcome is PowerCallOutcome.DONE
    assert cluster.api.pods[POD]["metadata"]["deletionGracePeriodSeconds"] == 33
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.STOPPING
    again = await cluster.call()
    assert (again.outcome, again.why) == (
        PowerCallOutcome.FAILED,
        f"Pod {POD} is still ending: the call is repeated later",
    )


@pytest.mark.parametrize("verb", list(PowerVerb))
async def test_a_pod_on_a_lost_node_is_removed_once_its_grace_is_long_over(cluster: Cluster, verb: PowerVerb) -> None:
    cluster.api.pod_templates["lamplighter-pilot"]["template"]["spec"]["nodeName"] = "node-1"
    await cluster.start_with(phase="Running")
    await cluster.call(PowerVerb.STOP)
    lost = cluster.api.pods[POD]["metadata"]["uid"]
    await cluster.call(PowerVerb.STOP)
    assert POD in cluster.api.pods
    cluster.ahead = timedelta(seconds=33 + kubernetes.LOST_AFTER_S + 1)
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.OFF
    result = await (cluster.start_with(phase="Running") if verb is PowerVerb.START else cluster.call(verb))
    assert result.outcome is PowerCallOutcome.DONE
    assert lost not in [pod["metadata"]["uid"] for pod in cluster.api.pods.values()]


async def test_a_pod_of_somebody_else_is_not_touched(cluster: Cluster) -> None:
    cluster.api.pods[POD] = {"metadata": {"name": POD, "uid": "theirs"}, "spec": {}, "status": {"phase": "Running"}}
    for verb in PowerVerb:
        result = await cluster.call(verb)
        assert result.outcome is PowerCallOutcome.FAILED
        assert "is not a pilot of ours" in result.why
    assert cluster.api.requests.count("delete pods") == 0


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (401, "correct token_file"),
        (403, "apply deploy/kubernetes/access.yaml"),
        (422, "correct the PodTemplate"),
        (429, "the call is repeated later"),
        (500, "see its log"),
    ],
)
async def test_a_refusal_says_what_to_do_and_nothing_of_the_host(cluster: Cluster, code: int, remedy: str) -> None:
    cluster.api.fail_next(code, code)
    result = await cluster.call()
    assert result.outcome is PowerCallOutcome.FAILED
    assert remedy in result.why
    assert "\n" not in result.why
    cluster.api.fail_next(code, code)
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.UNKNOWN


async def test_fifty_pilots_are_one_list_of_pods(cluster: Cluster) -> None:
    await cluster.start_with(phase="Running")
    cluster.api.requests.clear()
    hosts = ["gpu-1", *(f"pilot-{number}" for number in range(49))]
    states = dict.fromkeys(hosts, ReportedPower.OFF) | {"gpu-1": ReportedPower.ON}
    assert await cluster.driver.states(hosts) == states
    assert cluster.api.requests == ["list pods"]
    cluster.api.verbs -= {"list pods"}  # the role of an earlier release
    assert await cluster.driver.states(hosts) == states
    assert cluster.api.requests.count("get pods") == 50


async def test_a_missing_template_is_named(cluster: Cluster) -> None:
    cluster.api.pod_templates.clear()
    result = await cluster.call()
    assert result.outcome is PowerCallOutcome.FAILED
    assert "podtemplates" in result.why
    assert "pod_template" in result.why


async def test_a_server_that_hangs_fails_the_call_and_the_next_one_works(cluster: Cluster) -> None:
    cluster.api.hang_next()
    result = await call_driver(cluster.driver, PowerVerb.START, "call-1", 0.3)
    assert result.outcome is PowerCallOutcome.FAILED
    assert (await cluster.start_with(phase="Running")).outcome is PowerCallOutcome.DONE


async def test_a_token_that_is_replaced_is_read_again(cluster: Cluster) -> None:
    await cluster.start_with(phase="Running")
    cluster.api.tokens = {"token-2"}
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.UNKNOWN
    cluster.token_file.write_text("token-2\n")
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.ON
    cluster.api.fail_next(401)  # the server learns of the new token a moment later
    assert (await query_driver(cluster.driver, TIMEOUT_S)).power is ReportedPower.ON


async def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    declared = KubernetesHostConfig(server="http://127.0.0.1:9", token_file=tmp_path / "token", namespace="n")
    driver = KubernetesDriver("gpu-1", declared, {}, lambda: datetime.now(UTC))
    result = await call_driver(driver, PowerVerb.START, "call-1", TIMEOUT_S)
    assert result.outcome is PowerCallOutcome.FAILED
    assert result.why.startswith("the API server http://127.0.0.1:9 does not answer (ConnectError")


def test_inside_a_cluster_nothing_needs_to_be_set(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("inner\n")
    (tmp_path / "namespace").write_text("jobs")
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    declared = KubernetesHostConfig()
    with pytest.raises(PowerCallFailed, match="correct token_file, ca_file or namespace"):
        read_access(declared, environ, tmp_path)  # without ca.crt
    plain = KubernetesHostConfig(server="http://k", token_file=tmp_path / "token", namespace="n")
    assert read_access(plain, {}, tmp_path) == ("http://k", "n", "inner", False)
    with pytest.raises(PowerCallFailed, match="the edge is not in a cluster"):
        read_access(declared, {}, tmp_path)


@pytest.mark.parametrize("missing", ["token_file", "namespace"])
def test_a_server_needs_a_token_and_a_namespace(missing: str) -> None:
    declared = {"server": "https://k", "token_file": Path("/t"), "namespace": "n"}
    del declared[missing]
    with pytest.raises(ValueError, match="`server` also needs"):
        KubernetesHostConfig(**declared)


@pytest.mark.parametrize("host", ["gpu-1", "GPU_1", "gpu_1", "-gpu", "a" * 60, "___"])
def test_every_id_of_a_host_has_a_name_that_kubernetes_takes(host: str) -> None:
    name = pod_name(host)
    assert len(name) <= 63
    assert name == name.lower().strip("-")
    assert "_" not in name


def test_names_of_different_hosts_differ() -> None:
    hosts = ["gpu-1", "GPU-1", "gpu_1", "gpu-1-", "a" * 60, "a" * 61]
    assert len({pod_name(host) for host in hosts}) == len(hosts)


def test_a_template_keeps_what_the_operator_wrote() -> None:
    template = {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}, "annotations": {"a": "b"}},
        "spec": {
            "tolerations": [{"key": "nvidia.com/gpu"}],
            "restartPolicy": "Always",
            "containers": [{"name": "runner", "env": [{"name": "A", "value": "1"}]}, {"name": "sidecar"}],
        },
    }
    made = pilot_manifest(template, "gpu-1")
    assert made["metadata"] == {
        "name": POD,
        "labels": {"kueue.x-k8s.io/queue-name": "gpu", "lamplighter/pilot": POD},
        "annotations": {"a": "b"},
    }
    assert made["spec"]["tolerations"] == [{"key": "nvidia.com/gpu"}]
    assert made["spec"]["restartPolicy"] == "Never"
    assert [container["name"] for container in made["spec"]["containers"]] == ["runner", "sidecar"]
    assert made["spec"]["containers"][0]["env"] == [
        {"name": "A", "value": "1"},
        {"name": HOST_VARIABLE, "value": "gpu-1"},
    ]


def test_kueue_holds_a_pod_before_the_scheduler_sees_it() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "by gates: kueue"}
    pod = {"metadata": {"name": POD}, "status": {"phase": "Pending", "conditions": [gated]}}
    assert describe_pilot(msgspec.convert(pod, PilotPod)) == (ReportedPower.PENDING, "by gates: kueue")
