"""Power driver for Kubernetes: a host is a Pod in which a runner runs (a pilot).

On: a Pod is created from a PodTemplate of the cluster. Off: the Pod is deleted, with time to drain. The Pod has a fixed
name for each host, so a repeated call creates nothing twice.

    Pod                                       reported    a start call
    does not exist, Succeeded, Failed         off         creates it (and removes the one that has ended)
    Pending, not assigned to a node           pending     NoCapacity, with the scheduler's reason; it stays in line
    Pending, its image cannot be pulled       error       PowerCallFailed, with the kubelet's reason; it is removed
    Pending otherwise                         starting    done
    Running                                   on          done
    being deleted                             stopping    PowerCallFailed: repeated later
    being deleted, long after its grace       off         removes it without its node, and creates it
    Unknown (its node is lost)                unknown     PowerCallFailed: repeated later

The client is plain HTTP: three verbs on one kind of object need no library (docs/decisions/105). Token and CA are read
again for each call, because Kubernetes rotates them.
"""

import hashlib
import re
import ssl
from collections.abc import Callable, Collection, Hashable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio
import httpx2
import msgspec
import structlog
from msgspec import Struct

from schemas.host_config import KubernetesHostConfig
from schemas.power import ClusterPowerDriver, NoCapacity, PowerCallFailed, ReportedPower

ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # in every Pod with a service account
PILOT_LABEL = "lamplighter/pilot"  # the name of the Pod: a Pod without it is never touched
HOST_VARIABLE = "LAMPLIGHTER_HOST"
END_VARIABLE = "LAMPLIGHTER_ENDS_AFTER_S"
REQUEST_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.5
SETTLE_S = 10.0  # how long a start call waits for the scheduler's and the kubelet's first answer
LOST_AFTER_S = 30.0  # a Pod that should have ended so long ago is on a node that does not answer
IMAGE_FAULTS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
)

_log = structlog.get_logger()


class _Waiting(Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _Terminated(Struct, frozen=True, rename="camel"):
    exit_code: int = 0
    reason: str = ""


class _ContainerState(Struct, frozen=True):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(Struct, frozen=True):
    state: _ContainerState = _ContainerState()


class _PodCondition(Struct, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _PodStatus(Struct, frozen=True, rename="camel"):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[_PodCondition, ...] = ()
    init_container_statuses: tuple[_ContainerStatus, ...] = ()
    container_statuses: tuple[_ContainerStatus, ...] = ()


class _PodMetadata(Struct, frozen=True, rename="camel"):
    name: str
    uid: str = ""
    labels: dict[str, str] = {}
    deletion_timestamp: datetime | None = None


class PilotPod(Struct, frozen=True):
    """The part of a Pod that this driver reads."""

    metadata: _PodMetadata
    status: _PodStatus = _PodStatus()


class PilotPodList(Struct, frozen=True):
    """The part of a list of Pods that this driver reads."""

    items: tuple[PilotPod, ...]


class PilotReport(NamedTuple):
    """The state of a pilot, and why; `why` is for people."""

    power: ReportedPower
    why: str


REPORTS_BY_PHASE: Mapping[str, PilotReport] = {
    "Running": PilotReport(ReportedPower.ON, "the Pod runs"),
    "Unknown": PilotReport(ReportedPower.UNKNOWN, "the node of the Pod does not answer"),
}


def describe_pilot(pod: PilotPod | None) -> PilotReport:
    """Return what the Pod of a host says about it. Pure."""
    if pod is None:
        return PilotReport(ReportedPower.OFF, "there is no Pod")
    status = pod.status
    if status.phase in {"Succeeded", "Failed"}:
        return PilotReport(ReportedPower.OFF, _describe_end(status))
    if pod.metadata.deletion_timestamp is not None:
        return PilotReport(ReportedPower.STOPPING, "the Pod is being deleted")
    return REPORTS_BY_PHASE.get(status.phase) or _describe_pending(status)


def _describe_pending(status: _PodStatus) -> PilotReport:
    """Return what a Pod waits for that has not run yet: a node, its image, or the start."""
    scheduled = next((one for one in status.conditions if one.type == "PodScheduled"), None)
    if scheduled is None or scheduled.status != "True":
        why = (scheduled.message or scheduled.reason) if scheduled else "the scheduler has not looked at the Pod yet"
        return PilotReport(ReportedPower.PENDING, why or "no node was found yet")
    for container in (*status.init_container_statuses, *status.container_statuses):
        waiting = container.state.waiting
        if waiting is not None and waiting.reason in IMAGE_FAULTS:
            return PilotReport(ReportedPower.ERROR, f"{waiting.reason}: {waiting.message}")
    return PilotReport(ReportedPower.STARTING, "the Pod starts on its node")


def _describe_end(status: _PodStatus) -> str:
    """Return why a Pod has ended: it was done, it was evicted or preempted, or its runner failed."""
    if status.reason or status.message:  # the kubelet's: Evicted, DeadlineExceeded, NodeShutdown…
        return ": ".join(filter(None, (status.reason, status.message)))
    ends = [one.state.terminated for one in status.container_statuses if one.state.terminated is not None]
    if status.phase == "Succeeded":
        return "its runner ended by itself"
    return next((f"its runner ended with exit code {one.exit_code}" for one in ends), "failed")


def pod_name(host: str) -> str:
    """Return the name of a host's Pod: a DNS label, which an id of a host need not be."""
    slug = re.sub(r"[^a-z0-9-]+", "-", host.lower()).strip("-")[:40].strip("-")
    if slug == host:
        return f"lamplighter-{slug}"
    digest = hashlib.sha256(host.encode()).hexdigest()[:8]
    return f"lamplighter-{f'{slug}-{digest}' if slug else digest}"


def pilot_manifest(template: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return the Pod that is created for a host from the `template` of a PodTemplate."""
    metadata, spec, name = template.get("metadata") or {}, template.get("spec") or {}, pod_name(host)
    containers = [dict(container) for container in spec.get("containers") or ()]
    for container in containers[:1]:  # the runner is the first one
        others = [one for one in container.get("env") or () if one.get("name") != HOST_VARIABLE]
        container["env"] = [*others, {"name": HOST_VARIABLE, "value": host}]
        lifetime_s = spec.get("activeDeadlineSeconds")
        if lifetime_s is not None and END_VARIABLE not in {one.get("name") for one in others}:
            container["env"].append({"name": END_VARIABLE, "value": str(lifetime_s)})
    labels = {**(metadata.get("labels") or {}), PILOT_LABEL: name}
    kept = {key: metadata[key] for key in ("annotations",) if metadata.get(key)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**kept, "name": name, "labels": labels},
        "spec": {**spec, "containers": containers, "restartPolicy": "Never"},
    }


class ClusterAccess(NamedTuple):
    """Address and credentials of the API server. `namespace`: that of the pilots."""

    server: str
    namespace: str
    token: str
    tls: ssl.SSLContext | bool


def read_access(declared: KubernetesHostConfig, environ: Mapping[str, str], account_dir: Path) -> ClusterAccess:
    """Read server, token and CA, from the settings or as Kubernetes gives them to each Pod. Blocking.

    Raises PowerCallFailed.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    inside = f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else None
    server = declared.server or inside
    if server is None:
        raise PowerCallFailed(
            "the edge is not in a cluster: set server, token_file, ca_file and namespace of this host"
        )
    ca_file = declared.ca_file or (account_dir / "ca.crt" if declared.server is None else None)
    try:
        token = (declared.token_file or account_dir / "token").read_text(encoding="ascii").strip()
        namespace = declared.namespace or (account_dir / "namespace").read_text(encoding="ascii").strip()
        tls = ssl.create_default_context(cafile=ca_file) if server.startswith("https:") else False
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise PowerCallFailed(f"{error}: correct token_file, ca_file or namespace of this host") from error
    return ClusterAccess(server.rstrip("/"), namespace, token, tls)


class KubernetesDriver(ClusterPowerDriver):
    """Creates and deletes the Pod of one host, and lists the Pods of all of them. `now` is UTC."""

    def __init__(
        self,
        host: str,
        declared: KubernetesHostConfig,
        environ: Mapping[str, str],
        now: Callable[[], datetime],
        *,
        account_dir: Path = ACCOUNT_DIR,
    ) -> None:
        self._host, self._declared = host, declared
        self._environ, self._account_dir = environ, account_dir
        self._now = now
        self._settle_s = min(SETTLE_S, declared.timeout / 2)
        self._name = pod_name(host)
        self._reported_ends: dict[str, str] = {}  # by name of a Pod, the uid of the last one whose end was logged

    @property
    def can_report_state(self) -> bool:
        return True

    @property
    def cluster(self) -> Hashable | None:
        declared = self._declared
        return "kubernetes", declared.server, declared.namespace, declared.token_file, declared.ca_file

    async def start(self, call_id: str) -> None:
        """Create the Pod, unless it exists, and wait for the first answer of the scheduler and the kubelet."""
        pod = await self._fetch_pod()
        if pod is not None and (pod.status.phase in {"Succeeded", "Failed"} or self._is_lost(pod)):
            self._log_end(pod)
            await self._delete(pod, grace_s=0)
            pod = await self._fetch_pod()
        if pod is None:
            await self._create()
        await self._wait_for_answer()

    async def stop(self, call_id: str) -> None:
        """Delete the Pod; it has `drain_s` to end. One on a node that is lost is removed without waiting for it."""
        pod = await self._fetch_pod()
        if pod is not None:
            await self._delete(pod, grace_s=0 if self._is_lost(pod) else self._declared.drain_s)

    async def state(self) -> ReportedPower:
        return self._reported_power(await self._fetch_pod())

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        """Return the states by one list of Pods; by a request for each, if the role of the edge may not list them."""
        response = await self._request("GET", f"pods?labelSelector={quote(PILOT_LABEL, safe='')}")
        if response.status_code == httpx2.codes.FORBIDDEN:
            return {host: self._reported_power(await self._fetch_pod(pod_name(host))) for host in hosts}
        try:
            found = msgspec.json.decode(_checked(response).content, type=PilotPodList).items
        except msgspec.DecodeError as error:
            raise PowerCallFailed(f"the list of Pods is not one: {error}; correct `server`") from error
        pods = {name: pod for pod in found if (name := pod.metadata.name) == pod.metadata.labels.get(PILOT_LABEL)}
        return {host: self._reported_power(pods.get(pod_name(host))) for host in hosts}

    def _reported_power(self, pod: PilotPod | None) -> ReportedPower:
        if pod is not None and self._is_lost(pod):
            return ReportedPower.OFF
        report = describe_pilot(pod)
        if pod is not None and report.power is ReportedPower.OFF:
            self._log_end(pod)
        return report.power

    def _is_lost(self, pod: PilotPod) -> bool:
        """Return whether the Pod should have ended long ago: only its node could say that it has."""
        deletes_at = pod.metadata.deletion_timestamp  # the end of its grace
        return deletes_at is not None and (self._now() - deletes_at).total_seconds() >= LOST_AFTER_S

    def _log_end(self, pod: PilotPod) -> None:
        name, uid = pod.metadata.name, pod.metadata.uid
        if self._reported_ends.get(name) != uid:
            self._reported_ends[name] = uid
            _log.info("pilot_ended", pod=name, reason=describe_pilot(pod).why)

    async def _wait_for_answer(self) -> None:
        """Wait until the Pod is on a node, or it is known why it is not. Raises NoCapacity, PowerCallFailed."""
        report = None
        with anyio.move_on_after(self._settle_s):
            while True:
                pod = await self._fetch_pod()
                report = describe_pilot(pod)
                is_refused = pod is not None and any(one.status == "False" for one in pod.status.conditions)
                if report.power is not ReportedPower.STARTING and (
                    report.power is not ReportedPower.PENDING or is_refused
                ):
                    break
                await anyio.sleep(POLL_INTERVAL_S)
        if report is None:
            raise PowerCallFailed(f"the API server does not say what became of Pod {self._name}: is it overloaded?")
        await self._raise_for(report)

    async def _raise_for(self, report: PilotReport) -> None:
        where = f"Pod {self._name}"
        match report.power:
            case ReportedPower.ON | ReportedPower.STARTING:
                return
            case ReportedPower.PENDING:
                raise NoCapacity(f"{where} waits for a node: {report.why}")
            case ReportedPower.ERROR:
                if (pod := await self._fetch_pod()) is not None:  # it would try to pull for ever
                    await self._delete(pod, grace_s=0)
                raise PowerCallFailed(f"{where}: {report.why}; correct PodTemplate {self._declared.pod_template}")
            case ReportedPower.STOPPING:
                raise PowerCallFailed(f"{where} is still ending: the call is repeated later")
            case _:
                raise PowerCallFailed(f"{where}: {report.why}; see `kubectl describe pod {self._name}`")

    async def _fetch_pod(self, name: str = "") -> PilotPod | None:
        """Return the Pod of a host, by default this one; None if it does not exist. Raises PowerCallFailed."""
        name = name or self._name
        response = await self._request("GET", f"pods/{name}")
        if response.status_code == httpx2.codes.NOT_FOUND:
            return None
        try:
            pod = msgspec.json.decode(_checked(response).content, type=PilotPod)
        except msgspec.DecodeError as error:
            raise PowerCallFailed(f"the answer about Pod {name} is not a Pod: {error}; correct `server`") from error
        if pod.metadata.labels.get(PILOT_LABEL) != name:
            raise PowerCallFailed(f"Pod {name} is not a pilot of ours: delete or rename it, or use a namespace")
        return pod

    async def _create(self) -> None:
        """Create the Pod. It is no error if another edge was first. Raises NoCapacity where a quota is used up."""
        template = _checked(await self._request("GET", f"podtemplates/{self._declared.pod_template}"))
        try:
            found = msgspec.json.decode(template.content, type=dict[str, Any])["template"]
        except (msgspec.DecodeError, KeyError) as error:
            name = self._declared.pod_template
            raise PowerCallFailed(f"{name} is not a PodTemplate: apply deploy/kubernetes again") from error
        response = await self._request("POST", "pods", pilot_manifest(found, self._host))
        if response.status_code == httpx2.codes.CONFLICT:
            return
        message = _message_of(response)
        if response.status_code == httpx2.codes.FORBIDDEN and "exceeded quota" in message:
            raise NoCapacity(message)
        _checked(response)

    async def _delete(self, pod: PilotPod, grace_s: float) -> None:
        """Delete this Pod, and not another of the same name. A Pod that is gone is no error."""
        options = {"gracePeriodSeconds": round(grace_s), "preconditions": {"uid": pod.metadata.uid}}
        response = await self._request("DELETE", f"pods/{self._name}", options)
        if response.status_code not in {httpx2.codes.NOT_FOUND, httpx2.codes.CONFLICT}:
            _checked(response)

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """Make one call. A 401 is tried once more: the token may have been replaced a moment ago."""
        response = await self._request_once(method, path, body)
        return await self._request_once(method, path, body) if response.status_code == 401 else response

    async def _request_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        access = await anyio.to_thread.run_sync(read_access, self._declared, self._environ, self._account_dir)
        url = f"{access.server}/api/v1/namespaces/{access.namespace}/{path}"
        headers = {"authorization": f"Bearer {access.token}", "accept": "application/json"}
        try:
            async with httpx2.AsyncClient(verify=access.tls, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
                return await client.request(method, url, json=body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = f"{type(error).__name__} {error}".strip()
            raise PowerCallFailed(f"the API server {access.server} does not answer ({reason}): is it up?") from error


# What the answers of the API server mean, and what to do.
_REMEDIES: Mapping[int, str] = {
    401: "the token is not valid: correct token_file",
    403: "the service account may not do this: apply deploy/kubernetes/access.yaml",
    404: "it is not there: apply deploy/kubernetes, and correct `namespace` and `pod_template`",
    422: "the Pod is refused: correct the PodTemplate",
    429: "it has too much to do: the call is repeated later",
}


def _checked(response: httpx2.Response) -> httpx2.Response:
    """Return a successful response. Raises PowerCallFailed for any other."""
    if response.is_success:
        return response
    remedy = _REMEDIES.get(response.status_code, "see its log")
    raise PowerCallFailed(
        f"the API server answered {response.status_code} to {response.request.method} {response.url.path} "
        f"({_message_of(response)}): {remedy}"
    )


def _message_of(response: httpx2.Response) -> str:
    """Return the message of a Status object, in one line."""
    try:
        message = msgspec.json.decode(response.content, type=dict[str, Any]).get("message", "")
    except msgspec.DecodeError:
        message = ""
    return " ".join(str(message).split())[:500]
