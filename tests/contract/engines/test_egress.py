"""Jobs with a way out, on a real engine: what they reach, and each trick to reach something else."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.egress.proxy import EgressProxy, EgressRules
from runner.engines import docker as docker_engine
from runner.engines import docker_egress
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.docker_egress import OWNER_LABEL
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec, EngineUnavailable, StartFailed
from schemas.endpoint_parts import EgressPolicy
from tests.contract.engines.socket_gate import LEAKY, open_gate
from tests.support.docker_images import run_docker
from tests.support.image_registry import build_small_image
from tests.support.internet import OWN, SITE, public_site
from tests.support.namespaces import EDGE
from tests.support.wait import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180), pytest.mark.long(15)]

PROGRAM = Path(__file__).with_name("egress_program.py").read_text()
INSTALLATION = "egress-test"
BROKER = "11.22.33.45"
NAMES: dict[str, Sequence[str]] = {
    "site.example": [SITE],
    "other.example": [SITE],
    "a.sub.example": [SITE],
    "sub.example": [SITE],
    "broker.example": [BROKER],
    "alias.example": [BROKER],
    "inner.example": [EDGE],
    "mixed.example": [SITE, EDGE],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "zone.example": ["fe80::1%eth0"],
    "localhost": ["127.0.0.1", "::1"],
}
UNREACHABLE = "OSError: [Errno 101] Network is unreachable"


@pytest.fixture(scope="module", autouse=True)
def internet() -> Iterator[None]:
    with public_site():
        yield


class Names:
    """A resolver that answers from NAMES. The answer for rebind.example is public once, and then this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        if name == "rebind.example":
            return [SITE] if self.asked.count(name) == 1 else [EDGE]
        if name not in NAMES:
            raise OSError("no such name")
        return NAMES[name]


class Jobs:
    """Runs jobs of egress_program.py."""

    def __init__(self, engine: DockerEngine, image: str, folder: Path) -> None:
        self.engine = engine
        self._image = image
        self._folder = folder

    async def start(
        self, name: str, allow: tuple[str, ...], *calls: Any, image: str = "", network_image: str | None = None
    ) -> str:
        (self._folder / name).mkdir()
        return await self.engine.start(
            ContainerSpec(
                identity=ContainerIdentity(installation=INSTALLATION, host=self._folder.name, owner="ann", job=name),
                image=image or self._image,
                job_dir=self._folder / name / "job",
                entrypoint_override=("python3", "-c", PROGRAM, json.dumps(calls)),
                limits=ContainerLimits(128, 1.0),
                egress=EgressPolicy(allow),
                network_image=network_image,
            )
        )

    async def read(self, handle: str) -> list[Any]:
        output = b""
        async for chunk in self.engine.output(handle, None):
            output += chunk.data
        assert (await self.engine.wait(handle)).code == 0, output
        found: list[Any] = json.loads(output.splitlines()[-1])
        return found

    async def ask(self, allow: tuple[str, ...], *calls: Any) -> list[Any]:
        """Run a job that makes the calls; return what came of each."""
        handle = await self.start("j", allow, *calls)
        try:
            return await self.read(handle)
        finally:
            await self.engine.remove(handle)


@asynccontextmanager
async def open_engine(url: str, names: Names, **settings: Any) -> AsyncIterator[DockerEngine]:
    rules = EgressRules(denied=("broker.example",), resolve=names)
    async with DockerEngine(DockerSettings(base_url=url, **settings), EgressProxy(rules)) as engine:
        yield engine


@pytest.fixture
async def names() -> Names:
    return Names()


@pytest.fixture
async def jobs(docker_url: str, echo_image: str, names: Names, tmp_path: Path) -> AsyncIterator[Jobs]:
    async with open_engine(docker_url, names) as engine:
        yield Jobs(engine, echo_image, tmp_path)
    async with open_engine(docker_url, names) as engine:
        for found in await engine.find(INSTALLATION, tmp_path.name):
            await engine.remove(found.handle)


def told(answer: Any) -> Any:
    """Return what the site says that it got."""
    assert answer[0] == 200, answer
    return json.loads(answer[1])


async def test_a_job_reaches_public_sites_and_nothing_of_its_host(jobs: Jobs, names: Names) -> None:
    name, address, posted, *direct = await jobs.ask(
        (),
        ("get", "http://site.example/a?b=c"),
        ("get", f"http://{SITE}/"),
        ("get", "http://site.example/form", "body"),
        ("interfaces",),
        ("lookup", "site.example"),
        *(("direct", host, port) for host in (SITE, OWN, EDGE, "172.17.0.1", "169.254.169.254") for port in (80, 4222)),
    )
    assert told(name) == {"host": "site.example", "path": "/a?b=c", "body": ""}
    assert told(address)["host"] == SITE
    assert told(posted)["body"] == "body"
    assert direct == [["lo"], "no answer", *[UNREACHABLE] * 10]
    assert names.asked.count("site.example") == 2  # once for each request


REFUSED = {
    "http://inner.example/": "inner.example is a private address",
    "http://mixed.example/": "mixed.example is a private address",
    "http://metadata.example/latest/meta-data/": "metadata.example is a link-local address",
    "http://mapped.example/": "mapped.example is an IPv4 address in IPv6",
    "http://zone.example/": "zone.example resolves to an address of one link",
    "http://broker.example/": "broker.example belongs to Lamplighter itself",
    "http://alias.example/": f"alias.example belongs to Lamplighter itself ({BROKER})",
    "http://localhost./": "localhost is a loopback address",
    f"http://{OWN}/": f"{OWN} is this host itself",
    f"http://{EDGE}:8000/": f"{EDGE} is a private address",
    "http://169.254.169.254/": "169.254.169.254 is a link-local address",
    "http://100.64.0.1/": "100.64.0.1 is a carrier's shared address",
    "http://224.0.0.1/": "224.0.0.1 is a multicast address",
    "http://0.0.0.0/": "0.0.0.0 is an unspecified address",
    "http://2130706433/": "2130706433 is neither a name nor an address",
    "http://0x7f.1/": "0x7f.1 is neither a name nor an address",
    "http://0177.0.0.1/": "0177.0.0.1 is neither a name nor an address",
    "http://127.1/": "127.1 is neither a name nor an address",
    "http://[::1]/": "::1 is a loopback address",
    "http://[fd00:ec2::254]/": "fd00:ec2::254 is a private address",
    "http://[fe80::1]/": "fe80::1 is a link-local address",
    "http://[::ffff:169.254.169.254]/": "::ffff:169.254.169.254 is an IPv4 address in IPv6",
    "http://[64:ff9b::a9fe:a9fe]/": "64:ff9b::a9fe:a9fe is an address behind NAT64",
    "http://[2002:a9fe:a9fe::1]/": "2002:a9fe:a9fe::1 is an IPv4 address in IPv6",
    "http://site.example/inner": f"{EDGE} is a private address",  # a redirect
}


async def test_every_way_round_is_refused_and_says_why(jobs: Jobs) -> None:
    tunnels = ["inner.example:443", f"{EDGE}:22", "169.254.169.254:80", "[::1]:4222", "localhost:4222", "127.1:80"]
    answers = await jobs.ask(
        (), *(("get", url) for url in REFUSED), *(("tunnel", authority) for authority in tunnels), ("tunnel", "x")
    )
    refused = dict(zip(REFUSED, answers, strict=False))
    wrong = {
        url: answer
        for url, answer in refused.items()
        if answer[0] != 403 or f"lamplighter: {REFUSED[url]}" not in answer[1]
    }
    assert wrong == {}
    assert answers[len(REFUSED) :] == [*["403"] * len(tunnels), "400"]


async def test_a_name_that_resolves_to_this_machine_a_moment_later_is_refused(jobs: Jobs, names: Names) -> None:
    first, second = await jobs.ask((), *[("get", "http://rebind.example/")] * 2)
    assert told(first)["host"] == "rebind.example"  # one look-up, and the address that it gave
    assert (second[0], names.asked.count("rebind.example")) == (403, 2)


async def test_a_job_reaches_no_other_job_no_network_container_and_no_socket_of_the_runner(
    jobs: Jobs, tmp_path: Path
) -> None:
    other = await jobs.start("other", (), ("listen", 4222), ("wait_for", "/job/out/go"))
    out = anyio.Path(tmp_path / "other" / "job" / "out")

    async def listens() -> bool:
        return await (out / "listens").exists()

    await wait_for(listens)
    sockets = ("/control/proxy.sock", "/var/run/docker.sock", str(tmp_path / "other" / "job-network" / "proxy.sock"))
    *reached, processes = await jobs.ask(
        (),
        ("direct", "127.0.0.1", 4222),
        ("tunnel", "127.0.0.1:4222"),
        *(("unix", path) for path in (*sockets, "@/control/proxy.sock")),
        ("take", "127.0.0.1", 3128),
        ("take", "0.0.0.0", 3128),
        ("processes",),
    )
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    missing, taken = "No such file or directory", "Address already in use"
    assert reached == [refused, "403", *[missing] * 3, "Connection refused", taken, taken]
    assert processes == ["docker-init", "python3"]
    await (out / "go").touch()
    await jobs.read(other)
    await jobs.engine.remove(other)


async def test_an_allow_list_holds_for_urls_tunnels_and_the_names_inside_tunnels(jobs: Jobs) -> None:
    allow = ("site.example", "*.sub.example")
    *urls, wanted, outside, by_address, fronted, nameless = await jobs.ask(
        allow,
        *(
            ("get", f"http://{name}/")
            for name in ("site.example", "a.sub.example", "sub.example", "other.example", SITE)
        ),
        ("tunnel", "site.example:443", "site.example"),
        ("tunnel", "other.example:443", "other.example"),
        ("tunnel", f"{SITE}:443", "site.example"),
        ("tunnel", "site.example:443", "other.example"),
        ("tunnel", "site.example:443"),
    )
    assert [status for status, _ in urls] == [200, 200, 403, 403, 403]
    assert "other.example is not in `allow` of the endpoint, which has site.example, *.sub.example" in urls[3][1]
    assert (wanted, outside, by_address) == ("reached", "403", "403")
    assert (fronted, nameless) == ("closed", "closed")


def list_networks(docker_url: str, folder: Path) -> list[str]:
    """Return the network containers of the host of this test."""
    listed = run_docker(docker_url, "ps", "-aq", "--filter", f"label={OWNER_LABEL}={INSTALLATION}/{folder.name}")
    return listed.stdout.split()


async def test_the_next_runner_serves_the_job_on_and_leaves_no_network_behind(
    jobs: Jobs, docker_url: str, tmp_path: Path
) -> None:
    gate = "/job/out/go"
    handle = await jobs.start(
        "j", ("site.example",), ("wait_for", gate), ("get", "http://site.example/"), ("get", f"http://{SITE}/")
    )
    await jobs.engine.__aexit__()  # the first runner process ends
    async with open_engine(docker_url, Names()) as engine:
        (found,) = await engine.find(INSTALLATION, tmp_path.name)
        assert found.handle == handle
        (tmp_path / "j" / "job" / "out" / "go").touch()
        _, allowed, refused = await Jobs(engine, "", tmp_path).read(handle)
        assert (allowed[0], refused[0]) == (200, 403)
        assert len(list_networks(docker_url, tmp_path)) == 1
        await engine.remove(handle)
        assert list_networks(docker_url, tmp_path) == []
        left = await Jobs(engine, jobs._image, tmp_path).start("left", (), ("interfaces",))
        run_docker(docker_url, "rm", "-f", left)  # as a crash between the two removals leaves it
        assert len(list_networks(docker_url, tmp_path)) == 1
    async with open_engine(docker_url, Names()) as engine:
        assert await engine.find(INSTALLATION, tmp_path.name) == []
        assert list_networks(docker_url, tmp_path) == []


@LEAKY
@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("step", ["network_config", "_receive_listener", "join_network"])
async def test_a_daemon_that_goes_away_while_a_network_is_made_leaves_nothing_when_it_is_back(
    jobs: Jobs, docker_url: str, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop = asyncio.get_running_loop()
    module = docker_egress if step != "join_network" else docker_engine
    real = getattr(module, step)
    async with open_gate(tmp_path, docker_url) as way, open_engine(way.url, names) as engine:

        def shut_then(*arguments: Any) -> Any:
            asyncio.run_coroutine_threadsafe(way.shut(), loop).result()
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, step, shut_then)
            with pytest.raises(EngineUnavailable):
                await Jobs(engine, jobs._image, tmp_path).start("lost", ("site.example",), ("interfaces",))
        way.open()
        assert await engine.find(INSTALLATION, tmp_path.name) == []
        assert list_networks(docker_url, tmp_path) == []
        assert engine._networks._served == {}
        again = Jobs(engine, jobs._image, tmp_path)
        assert await again.ask((), ("interfaces",)) == [["lo"]]
        assert list_networks(docker_url, tmp_path) == []


async def test_an_image_without_python_says_what_to_set(jobs: Jobs, docker_url: str, tmp_path: Path) -> None:
    image = build_small_image(docker_url, "lamplighter-test-no-python", tmp_path / "image")
    with pytest.raises(StartFailed, match=r"set egress\.image in the settings"):
        await jobs.start("j", (), image=image)
    with pytest.raises(StartFailed, match=r"egress\.image .* must name an image with python3"):
        await jobs.start("k", (), network_image=image)
    assert await jobs.engine.find(INSTALLATION, tmp_path.name) == []
