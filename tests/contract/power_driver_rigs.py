"""A rig for each power driver: a machine that it really controls, and ways to make it fail."""

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx2
import msgspec
from libcloud.compute.base import NodeImage
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState
from moto.server import DomainDispatcherApplication, create_backend_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from werkzeug.serving import make_server

from edge.power.drivers.factory import build_installed_driver
from edge.power.drivers.generic import CommandDriver, HttpDriver, PowerRelay, RelayDriver, RelayUnavailable
from edge.power.drivers.kubernetes import KubernetesDriver
from edge.power.drivers.libcloud import LibcloudDriver
from schemas.host_config import (
    CommandHostConfig,
    HttpHostConfig,
    KubernetesHostConfig,
    LibcloudHostConfig,
    ModuleHostConfig,
)
from schemas.power import PowerDriver, PowerDriverReply, ReportedPower
from schemas.webhook import signature_headers
from tests.support.fake_power_driver import FakeCluster, FakePowerDriver
from tests.support.http_server import serve_app
from tests.support.kubelet import Kubelet
from tests.support.kubernetes_api import NAMESPACE, KubernetesApi
from tests.support.wait import wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class DriverRig(Protocol):
    """A driver with its machine. `power`: the real state of the machine, to compare with the driver's report."""

    driver: PowerDriver

    async def power(self) -> ReportedPower: ...
    def sell_out(self, times: int) -> None: ...
    def break_down(self) -> None: ...


RigFactory = Callable[[Path], AbstractAsyncContextManager[DriverRig]]


class FakeDriverRig(DriverRig):
    def __init__(self) -> None:
        cluster = FakeCluster()
        self.driver: FakePowerDriver = FakePowerDriver(cluster=cluster, host="gpu-1")
        FakePowerDriver(cluster=cluster, host="gpu-2")

    async def power(self) -> ReportedPower:
        return self.driver.power

    def sell_out(self, times: int) -> None:
        self.driver.sold_out = times

    def break_down(self) -> None:
        self.driver.broken = True


@asynccontextmanager
async def memory(_: Path) -> AsyncIterator[DriverRig]:
    yield FakeDriverRig()


class InstalledMachine(FakePowerDriver):
    """A driver as a package of others has it."""

    def __init__(self, host: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        assert (host, options["box"], environ) == ("gpu-1", "17", {})
        super().__init__()


class InstalledDriverRig(FakeDriverRig):
    def __init__(self) -> None:
        declared = ModuleHostConfig(module=f"{__name__}:{InstalledMachine.__name__}", options={"box": "17"})
        built = build_installed_driver("gpu-1", declared, {})
        assert isinstance(built, InstalledMachine)
        self.driver = built


@asynccontextmanager
async def module(_: Path) -> AsyncIterator[DriverRig]:
    yield InstalledDriverRig()


DRIVER_PROGRAM = """
import os, pathlib, sys
folder, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if (folder / "broken").exists():
    print("noise\\nno route to the box", file=sys.stderr)
    sys.exit(3)
power = folder / "power"
if verb == "state":
    print("asking...")
    print(power.read_text())
    sys.exit(0)
if verb == "states":
    print("asking...")
    for host in os.environ["LAMPLIGHTER_HOSTS"].split():
        print(host, power.read_text() if host == "gpu-1" else "off")
    sys.exit(0)
stock = folder / "sold_out"
left = int(stock.read_text()) if stock.exists() else 0
if verb == "on" and left:
    stock.write_text(str(left - 1))
    print("none in stock")
    sys.exit(75)
power.write_text({"on": "on", "off": "off"}[verb])
"""


class CommandDriverRig(DriverRig):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "switch.py").write_text(DRIVER_PROGRAM)
        (folder / "power").write_text("off")
        argv = {verb: (sys.executable, str(folder / "switch.py"), str(folder), verb) for verb in ("on", "off", "state")}
        self.driver = CommandDriver("gpu-1", CommandHostConfig(**argv), os.environ)

    async def power(self) -> ReportedPower:
        return ReportedPower((self._folder / "power").read_text())

    def sell_out(self, times: int) -> None:
        (self._folder / "sold_out").write_text(str(times))

    def break_down(self) -> None:
        (self._folder / "broken").touch()


@asynccontextmanager
async def command(folder: Path) -> AsyncIterator[DriverRig]:
    yield CommandDriverRig(folder)


@asynccontextmanager
async def command_states(folder: Path) -> AsyncIterator[DriverRig]:
    rig = CommandDriverRig(folder)
    argv = {verb: (sys.executable, str(folder / "switch.py"), str(folder), verb) for verb in ("on", "off", "states")}
    rig.driver = CommandDriver("gpu-1", CommandHostConfig(**argv), os.environ)
    yield rig


class RemoteMachine:
    """A machine behind a webhook or a relay: a fake driver that answers in their format."""

    def __init__(self) -> None:
        self.machine = FakePowerDriver()
        self.away = False

    async def answer(self, kind: str, call_id: str) -> PowerDriverReply:
        verb = kind.rpartition(".")[2]
        if verb == "state":
            return PowerDriverReply(await self.machine.state())
        if verb == "start" and self.machine.sold_out:
            self.machine.sold_out -= 1
            return PowerDriverReply(no_capacity=True)
        await (self.machine.start if verb == "start" else self.machine.stop)(call_id)
        return PowerDriverReply(self.machine.power)


class RemoteMachineRig(DriverRig):
    def __init__(self, driver: PowerDriver, box: RemoteMachine) -> None:
        self.driver, self._box = driver, box

    async def power(self) -> ReportedPower:
        return self._box.machine.power

    def sell_out(self, times: int) -> None:
        self._box.machine.sold_out = times

    def break_down(self) -> None:
        self._box.away = True


@asynccontextmanager
async def http(_: Path) -> AsyncIterator[DriverRig]:
    box = RemoteMachine()

    async def receive(request: Request) -> Response:
        body = await request.body()
        expected = signature_headers(request.headers["webhook-id"], NOW, body, SECRET)
        if box.away or any(request.headers[name] != value for name, value in expected.items()):
            return Response(status_code=503 if box.away else 401)
        said: dict[str, Any] = msgspec.json.decode(body)
        assert said["data"]["host"] == "gpu-1"
        return JSONResponse(msgspec.to_builtins(await box.answer(said["type"], request.headers["webhook-id"])))

    app = Starlette(routes=[Route("/power", receive, methods=["POST"])])
    async with serve_app(app) as url, httpx2.AsyncClient(timeout=60) as client:
        declared = HttpHostConfig(url=f"{url}/power", secret=SECRET)
        yield RemoteMachineRig(HttpDriver("gpu-1", declared, client, lambda: NOW, lambda: "question-1"), box)


class FakeRelay(PowerRelay):
    def __init__(self, box: RemoteMachine) -> None:
        self._box = box

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        if self._box.away:
            raise RelayUnavailable
        assert host == "gpu-1"
        return await self._box.answer(kind, call_id)


@asynccontextmanager
async def relay(_: Path) -> AsyncIterator[DriverRig]:
    box = RemoteMachine()
    yield RemoteMachineRig(RelayDriver(FakeRelay(box), "gpu-1"), box)


SOLD_OUT = b"""<?xml version="1.0"?><Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>
<Message>We currently do not have sufficient capacity in the Availability Zone you requested</Message>
</Error></Errors><RequestID>1</RequestID></Response>"""


class FakeEc2:
    """moto's EC2 behind a proxy that reports no capacity, or does not answer."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.sold_out = 0
        self.broken = False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if self.broken:
            start_response("503 Service Unavailable", [("content-type", "text/xml")])
            return [b"<Response><Errors/></Response>"]
        action = environ.get("QUERY_STRING", "")
        if "Action=StartInstances" in action and self.sold_out:
            self.sold_out -= 1
            start_response("500 Internal Server Error", [("content-type", "text/xml")])
            return [SOLD_OUT]
        return self._as_aws(environ, start_response)

    def _as_aws(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Add the slash that AWS has at the end of its namespace. libcloud needs it, and moto 5.2 omits it."""
        began: list[Any] = []
        body = b"".join(self._moto(environ, lambda *head: began.append(head)))
        body = body.replace(b'/doc/2016-11-15"', b'/doc/2016-11-15/"')
        status, headers = began[0][:2]
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("content-length", str(len(body)))])
        return [body]


@contextmanager
def serve_fake_ec2(cloud: FakeEc2) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, cloud, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Ec2DriverRig(DriverRig):
    """A machine of moto that is created and read by libcloud."""

    def __init__(self, cloud: FakeEc2, port: int) -> None:
        self._cloud = cloud
        options: dict[str, str | int | bool] = {
            "host": "127.0.0.1",
            "port": port,
            "secure": False,
            "signature_version": "4",
        }
        self._ec2 = get_driver("ec2")("key", "secret", **options)
        image = NodeImage("ami-12c6146b", "any", self._ec2)
        size = self._ec2.list_sizes()[0]
        self.node = self._ec2.create_node(name="gpu-1", image=image, size=size)
        self._ec2.stop_node(self.node)
        declared = LibcloudHostConfig(
            provider="ec2", node=self.node.id, key_env="CLOUD_KEY", secret_env="CLOUD_SECRET", options=options
        )
        self.driver = LibcloudDriver(declared, {"CLOUD_KEY": "key", "CLOUD_SECRET": "secret"})

    async def power(self) -> ReportedPower:
        nodes = await anyio.to_thread.run_sync(self._ec2.list_nodes)
        state = next(node.state for node in nodes if node.id == self.node.id)
        return ReportedPower.ON if state == NodeState.RUNNING else ReportedPower.OFF

    def sell_out(self, times: int) -> None:
        self._cloud.sold_out = times

    def break_down(self) -> None:
        self._cloud.broken = True


@asynccontextmanager
async def libcloud(_: Path) -> AsyncIterator[DriverRig]:
    cloud = FakeEc2()
    with serve_fake_ec2(cloud) as port:
        yield await anyio.to_thread.run_sync(Ec2DriverRig, cloud, port)


class PodRig(DriverRig):
    """A Pod on one node, whose process sleeps. The node has no room while it is sold out."""

    def __init__(self, api: KubernetesApi, kubelet: Kubelet, server: str, token_file: Path) -> None:
        self._api, self._kubelet = api, kubelet
        self._sold_out = 0
        declared = KubernetesHostConfig(
            server=server, token_file=token_file, namespace=NAMESPACE, pod_template="pilot", timeout=10.0
        )
        rig = self

        class CountedDriver(KubernetesDriver):
            async def start(self, call_id: str) -> None:
                try:
                    await super().start(call_id)
                finally:
                    rig.count_start()

        self.driver = CountedDriver("gpu-1", declared, {}, lambda: datetime.now(UTC))

    def count_start(self) -> None:
        self._sold_out = max(0, self._sold_out - 1)
        self._kubelet.allow(0 if self._sold_out else 1)

    async def power(self) -> ReportedPower:
        async def is_settled() -> bool:
            return not any("deletionTimestamp" in pod["metadata"] for pod in self._api.pods.values())

        await wait_for(is_settled)
        return ReportedPower.ON if self._api.pods else ReportedPower.OFF

    def sell_out(self, times: int) -> None:
        self._sold_out = times
        self._kubelet.allow(0)

    def break_down(self) -> None:
        self._api.fail_next(*[500] * 20)


@asynccontextmanager
async def kubernetes(folder: Path) -> AsyncIterator[DriverRig]:
    api = KubernetesApi()
    container = {"name": "runner", "image": "pilot", "command": ["sleep", "600"]}
    api.pod_templates["pilot"] = {"template": {"spec": {"containers": [container]}}}
    (folder / "token").write_text("token-1\n")
    async with api.serve() as server, Kubelet(api, folder, {"PATH": os.environ["PATH"]}).run() as kubelet:
        yield PodRig(api, kubelet, server, folder / "token")


CLUSTERS = ("command_states", "kubernetes", "memory")  # of which one call reports several hosts
RIGS: dict[str, RigFactory] = {
    "memory": memory,
    "command": command,
    "command_states": command_states,
    "http": http,
    "relay": relay,
    "libcloud": libcloud,
    "module": module,
    "kubernetes": kubernetes,
}
