"""A small scheduler and kubelet for `KubernetesApi`: it starts the process of a Pod's first container.

The process gets the variables of the container, and a new folder in LAMPLIGHTER_DATA, as an emptyDir. A deletion sends
TERM, and KILL after the grace. With a Pod end all processes that name its folder, as those of its control group would.
The rest of a node is left out: images, other volumes, probes, GPUs.
"""

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import Process, TaskGroup

from tests.support.kubernetes_api import KubernetesApi

UNSCHEDULABLE = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


class Kubelet:
    """One node. `slots`: how many Pods fit. `missing_images` cannot be pulled. Logs of Pods are files in `folder`."""

    def __init__(self, api: KubernetesApi, folder: Path, environ: Mapping[str, str], slots: int = 1) -> None:
        self.api = api
        self.slots = slots
        self.missing_images: set[str] = set()
        self.secrets: dict[str, dict[str, str]] = {}
        self._folder = folder
        self._environ = environ
        self._processes: dict[str, Process] = {}  # by the uid of the Pod
        self._evicted: dict[str, dict[str, str]] = {}
        self._started: set[str] = set()
        self._lost: set[str] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Kubelet"]:
        """Run the Pods for the duration of the block; at its end their processes are killed."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()
                for process in self._processes.values():
                    _send(process, signal.SIGKILL)

    def allow(self, slots: int) -> None:
        """Change how many Pods fit, as an autoscaler does."""
        self.slots = slots
        self.api.notify()

    def evict(self, name: str, reason: str = "Evicted", message: str = "The node was low on resource: memory.") -> None:
        """Evict a Pod, as for a preemption or a drain of its node: its process gets TERM, and it stays as Failed."""
        self._evicted[self.api.pods[name]["metadata"]["uid"]] = {"reason": reason, "message": message}
        self.end(name)

    def end(self, name: str) -> None:
        """Let the runner of a Pod end by itself, as after `--until-idle`."""
        _send(self._processes[self.api.pods[name]["metadata"]["uid"]], signal.SIGTERM)

    def lose_node(self, name: str) -> None:
        """Take the power from the node of a Pod: its processes are gone, and no kubelet ends the Pod in the API.

        The control plane deletes the Pod, as after `tolerationSeconds`.
        """
        pod = self.api.pods[name]
        self._lost.add(pod["metadata"]["uid"])
        _send(self._processes[pod["metadata"]["uid"]], signal.SIGKILL)
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        self.api.set_status(name, phase="Unknown", reason="NodeLost", conditions=[ready])
        self.api.begin_deletion(name, grace_s=1.0)

    async def _watch(self, tasks: TaskGroup) -> None:
        while True:
            changed = self.api.changed
            for name, pod in list(self.api.pods.items()):
                self._look_at(name, pod, tasks)
            await changed.wait()

    def _look_at(self, name: str, pod: dict[str, Any], tasks: TaskGroup) -> None:
        uid = pod["metadata"]["uid"]
        if pod["status"]["phase"] != "Pending" or uid in self._started:
            return
        if sum("nodeName" in other["spec"] for other in self.api.pods.values() if _is_living(other)) >= self.slots:
            refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNSCHEDULABLE}
            if pod["status"]["conditions"] != [refused]:
                self.api.set_status(name, conditions=[refused])
            return
        self._started.add(uid)
        pod["spec"]["nodeName"] = "node-1"
        self.api.set_status(name, conditions=[{"type": "PodScheduled", "status": "True"}])
        tasks.start_soon(self._run_pod, name, pod)

    async def _run_pod(self, name: str, pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        if container["image"] in self.missing_images:
            waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{container["image"]}"'}
            self.api.set_status(name, containerStatuses=[{"name": container["name"], "state": {"waiting": waiting}}])
            return
        volume = self._folder / pod["metadata"]["uid"]
        volume.mkdir(mode=0o711)
        given = {one["name"]: self._value_of(one) for one in container.get("env", ())}
        environ = {**self._environ, **given, "LAMPLIGHTER_DATA": str(volume / "data")}
        argv = [*container.get("command", ()), *container.get("args", ())]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = await anyio.open_process(
                argv, stdin=DEVNULL, stdout=log, stderr=STDOUT, env=environ, start_new_session=True
            )
        self._processes[pod["metadata"]["uid"]] = process
        self.api.set_status(name, phase="Running")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_when_deleted, pod, process)
            code = await process.wait()
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(_kill_all, volume)
        self._record_end(name, pod, container["name"], code)

    def _record_end(self, name: str, pod: dict[str, Any], container: str, code: int) -> None:
        if self.api.pods.get(name) is not pod or pod["metadata"]["uid"] in self._lost:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self.api.remove(name)
        elif pod["status"]["phase"] == "Running":
            ended = {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed"}
            state = [{"name": container, "state": {"terminated": ended}}]
            evicted = self._evicted.get(pod["metadata"]["uid"], {})
            phase = "Failed" if code or evicted else "Succeeded"
            self.api.set_status(name, phase=phase, containerStatuses=state, **evicted)

    async def _end_when_deleted(self, pod: dict[str, Any], process: Process) -> None:
        while "deletionTimestamp" not in pod["metadata"]:
            await self.api.changed.wait()
        _send(process, signal.SIGTERM)
        await anyio.sleep(pod["metadata"]["deletionGracePeriodSeconds"])
        _send(process, signal.SIGKILL)

    def _value_of(self, variable: Mapping[str, Any]) -> str:
        if "value" in variable:
            return str(variable["value"])
        key = variable["valueFrom"]["secretKeyRef"]
        return self.secrets[key["name"]][key["key"]]


def _kill_all(volume: Path) -> None:
    """Kill every process whose arguments or variables name this folder: jobs of the process engine leave the group."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(volume).encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def _is_living(pod: Mapping[str, Any]) -> bool:
    return pod["status"]["phase"] not in {"Succeeded", "Failed"}


def _send(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
