"""The network of a container with egress: a second container, which owns it, and the proxy of the runner.

The network container has Docker's network `none`: a loopback interface and nothing else. Its program listens there and
hands the listening socket to the runner (`runner.egress.listener_program`). Only then is the job's container created,
and it shares this network. So the job finds its proxy at once, and nothing else exists that it could reach. No bridge,
no firewall rule and no right of the runner beyond Docker is needed; decision 101 names the alternatives.

Its program needs Python 3, which the job's own image usually has.
"""

import asyncio
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from runner.egress import listener_program
from runner.egress.proxy import EgressProxy, ServedListener, proxy_env
from runner.engines.docker_container_config import LABEL_PREFIX, container_config
from runner.engines.port import ContainerLimits, ContainerSpec, EngineError
from schemas.endpoint_parts import EgressPolicy

PROXY_PORT = 3128
CONTROL_MOUNT, CONTROL_SOCKET = "/control", "proxy.sock"
LISTEN_TIMEOUT_S = 30.0
PYTHON_HINT = (
    'network = "egress" needs python3 in the image; if it has none, set egress.image in the settings of the runner to '
    "an image with python3, as in python:3.12-slim, which it then pulls"
)
OWN_IMAGE_HINT = "egress.image in the settings of the runner must name an image with python3, as in python:3.12-slim"
LISTEN_POLL_S = 0.02
NETWORK_LABEL = f"{LABEL_PREFIX}network"  # on a job's container: the network container
OWNER_LABEL = f"{LABEL_PREFIX}network_of"  # on a network container: installation and host
ALLOW_LABEL = f"{LABEL_PREFIX}network_allow"
LIMITS = ContainerLimits(memory_mb=64, cpus=0.5, pids=16)

_log = structlog.get_logger("runner")


def join_network(config: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Return the create request of a job's container with the network of the container `network`."""
    return {
        **config,
        "NetworkDisabled": False,
        "Env": [*(f"{name}={value}" for name, value in proxy_env(PROXY_PORT).items()), *config["Env"]],
        "Labels": {**config["Labels"], NETWORK_LABEL: network},
        "HostConfig": {**config["HostConfig"], "NetworkMode": f"container:{network}"},
    }


def network_config(spec: ContainerSpec, user: str, profile: str | None) -> dict[str, Any]:
    """Return the create request of the network container for the job's `spec`."""
    source = inspect.getsource(listener_program)
    argv = ("python3", "-I", "-S", "-c", source, str(PROXY_PORT), f"{CONTROL_MOUNT}/{CONTROL_SOCKET}")
    own = ContainerSpec(
        identity=spec.identity,
        image=spec.network_image or spec.image,
        job_dir=spec.job_dir,
        limits=LIMITS,
        entrypoint_override=argv,
    )
    config = container_config(own, user, "cdi", profile)
    control = {"Type": "bind", "Source": str(_control_folder(spec)), "Target": CONTROL_MOUNT}
    allow = spec.egress.allow if spec.egress else ()
    return {
        **config,
        "Labels": {
            OWNER_LABEL: f"{spec.identity.installation}/{spec.identity.host}",
            ALLOW_LABEL: " ".join(allow),
        },
        "WorkingDir": "/",
        "HostConfig": {**config["HostConfig"], "Mounts": [{**control, "ReadOnly": False}]},
    }


def _control_folder(spec: ContainerSpec) -> Path:
    """Return the folder with the socket of the network container. It is beside the job's, and goes with it."""
    return spec.job_dir.with_name(f"{spec.job_dir.name}-network")


class DockerCalls(Protocol):
    """The calls of docker-py's client that are made here."""

    def create_container_from_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Create a container, and return its `Id`."""

    def start(self, container: str) -> None:
        """Start a created container, by its id."""

    def inspect_container(self, container: str) -> dict[str, Any]:
        """Return the description of a container."""

    def logs(self, container: str, *, tail: int) -> bytes:
        """Return the end of a container's output."""

    def containers(self, *, all: bool, filters: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: A002 - its name there
        """List containers with these filters, also stopped ones."""


class EgressNetworks:
    """The network containers of one engine, and their proxies. All methods but `close` block: they run in threads.

    `remove` removes a container that may be gone.
    """

    def __init__(self, proxy: EgressProxy, remove: Callable[[str], None]) -> None:
        self._proxy = proxy
        self._remove_container = remove
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._served: dict[str, ServedListener] = {}
        self._by_container: dict[str, str] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self, client: DockerCalls, spec: ContainerSpec, owner: tuple[int, int], profile: str | None) -> str:
        """Start the network container of a job and its proxy; return its id. Raises EngineError, errors of Docker."""
        control = _control_folder(spec)
        control.mkdir(mode=0o700, exist_ok=True)
        (control / CONTROL_SOCKET).unlink(missing_ok=True)  # of a start that failed
        if os.geteuid() != owner[0]:
            os.chown(control, *owner)
        config = network_config(spec, "{}:{}".format(*owner), profile)
        with self._lock:  # `restore` must not take it for a leftover
            network = str(client.create_container_from_config(config)["Id"])
            self._starting.add(network)
        try:
            client.start(network)
            hint = OWN_IMAGE_HINT if spec.network_image else PYTHON_HINT
            listener = _receive_listener(client, network, control, hint)
            self._serve(network, listener, spec.egress or EgressPolicy())
        except BaseException:
            self.remove(network)
            raise
        return network

    def note_job(self, container: str, network: str) -> None:
        """Record that the job's container exists; the network is removed with it."""
        with self._lock:
            self._by_container[container] = network
            self._starting.discard(network)

    def remove_of(self, container: str) -> None:
        """Remove the network of a job's container that was removed."""
        with self._lock:
            network = self._by_container.pop(container, None)
        if network is not None:
            self.remove(network)

    def remove(self, network: str) -> None:
        """Remove a network container and end its proxy. If Docker does not answer, the next `restore` removes it."""
        self.abandon(network)
        self._remove_container(network)

    def abandon(self, network: str) -> None:
        """End the proxy of a network whose job's container was not made. The next `restore` removes the container."""
        with self._lock:
            served = self._served.pop(network, None)
            self._starting.discard(network)
        if served is not None and self.loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and the proxy with it
                self.loop.call_soon_threadsafe(served.close)

    def restore(self, client: DockerCalls, owner: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Serve the networks of containers that an earlier runner started, and remove networks without a container.

        `rows`: the job's containers of `owner`, as the engine lists them.
        """
        wanted = {row["Labels"][NETWORK_LABEL]: row["Id"] for row in rows if NETWORK_LABEL in row["Labels"]}
        for found in client.containers(all=True, filters={"label": [f"{OWNER_LABEL}={owner}"]}):
            network = str(found["Id"])
            with self._lock:
                is_ours = network in self._served or network in self._starting
            if network not in wanted:
                if not is_ours:
                    self.remove(network)
                continue
            with self._lock:
                self._by_container[wanted[network]] = network
            if not is_ours and found["State"] == "running":
                self._resume(client, network, found)

    def _resume(self, client: DockerCalls, network: str, found: Mapping[str, Any]) -> None:
        control = next(Path(one["Source"]) for one in found["Mounts"] if one["Destination"] == CONTROL_MOUNT)
        allow = found["Labels"].get(ALLOW_LABEL, "").split()
        try:
            self._serve(network, _receive_listener(client, network, control), EgressPolicy(tuple(allow)))
        except (EngineError, OSError) as error:  # the job goes on, and its requests fail
            _log.warning("egress_not_resumed", container=_container_name(found), error=str(error))

    def _serve(self, network: str, listener: socket.socket, policy: EgressPolicy) -> None:
        if self.loop is None:
            raise EngineError("the engine was not opened")

        async def serve() -> ServedListener:
            return self._proxy.serve(listener, policy.allow)

        served = asyncio.run_coroutine_threadsafe(serve(), self.loop).result(LISTEN_TIMEOUT_S)  # unless it has ended
        with self._lock:
            self._served[network] = served

    def close(self) -> None:
        """End the proxies of this process. The networks stay for the next one."""
        for served in self._served.values():
            served.close()


def _container_name(found: Mapping[str, Any]) -> str:
    """Return the first name of a listed container."""
    return str((found.get("Names") or [found["Id"]])[0]).lstrip("/")


def _receive_listener(client: DockerCalls, network: str, control: Path, hint: str = PYTHON_HINT) -> socket.socket:
    """Return the listening socket of a network container, as soon as its program listens. Raises EngineError."""
    deadline = time.monotonic() + LISTEN_TIMEOUT_S
    while True:
        with suppress(OSError):
            return _ask_for_listener(control / CONTROL_SOCKET)
        state = client.inspect_container(network)["State"]
        if not state["Running"]:
            output = client.logs(network, tail=3).decode(errors="replace").strip().splitlines()
            why = output[-1] if output else f"exit code {state['ExitCode']}"
            raise EngineError(f"the container of the network ended ({why}): {hint}")
        if time.monotonic() > deadline:
            raise EngineError(f"the container of the network did not listen within {LISTEN_TIMEOUT_S:.0f} s")
        time.sleep(LISTEN_POLL_S)


def _ask_for_listener(path: Path) -> socket.socket:
    """Connect through a descriptor: the path may be too long for an address. Raises OSError."""
    control_fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(LISTEN_TIMEOUT_S)
            connection.connect(f"/proc/self/fd/{control_fd}")
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    finally:
        os.close(control_fd)
    if len(descriptors) != 1:
        raise OSError("no socket was sent")
    listener = socket.socket(fileno=descriptors[0])
    is_listener = listener.type == socket.SOCK_STREAM and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_INET or not is_listener:
        listener.close()
        raise OSError("what was sent is not a listening socket")
    return listener
