"""Two machines on one: network namespaces with a link between them, and a firewall that blocks connections to the host.

The test itself is in the namespace of broker and edge, so that its sockets and processes are there. What is started
with `at_host` in front runs in the other. Root only; it uses addresses of its own namespaces only.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import Struct

from tests.support.requirements import require

EDGE, HOST = "10.231.8.1", "10.231.8.2"
CLONE_NEWNET = 0x40000000
HOW = "run as root with iproute2, iptables and util-linux"


class HostNetwork(Struct, frozen=True):
    """`at_host`: what stands in front of an argv that runs on the host's side."""

    at_host: tuple[str, ...]

    def cut(self, port: int) -> None:
        """Reject the host's connections to `port` from now on."""
        run_command(*self.at_host, "iptables", "-I", *_refuse_rule(port))

    def heal(self, port: int) -> None:
        """Stop rejecting them."""
        run_command(*self.at_host, "iptables", "-D", *_refuse_rule(port))


def _refuse_rule(port: int) -> list[str]:
    return f"OUTPUT -p tcp --dport {port} -j REJECT --reject-with tcp-reset".split()


def run_command(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)


def enter_namespace(file: int) -> None:
    """Move this thread, and what it starts from now on, to that namespace (os.setns needs Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _create_namespaces(edge: str, host: str) -> None:
    for name in (edge, host):
        run_command("ip", "netns", "add", name)
    run_command("ip", "-n", edge, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", host)
    for name, address in ((edge, EDGE), (host, HOST)):
        run_command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "wire")
        for link in ("lo", "wire"):
            run_command("ip", "-n", name, "link", "set", link, "up")
    rules = (
        "-P INPUT DROP",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    )
    for rule in rules:
        run_command(*exec_prefix(host), "iptables", *rule.split())


def exec_prefix(name: str) -> tuple[str, ...]:
    return "nsenter", f"--net=/run/netns/{name}", "--"


def why_no_namespaces() -> str | None:
    """Return why namespaces cannot be created here; None when they can."""
    lacking = [program for program in ("ip", "iptables", "nsenter") if shutil.which(program) is None]
    if os.geteuid() != 0 or lacking:
        return f"no network namespaces here (root: {os.geteuid() == 0}, lacking: {lacking}): {HOW}"
    name = f"ll-try-{secrets.token_hex(3)}"
    try:
        run_command("ip", "netns", "add", name)
        run_command(*exec_prefix(name), "iptables", "-L", "-n")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here ({error.stderr.strip()}): {HOW}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return None


@contextmanager
def host_network() -> Iterator[HostNetwork]:
    """Create both, with the calling thread on the edge's side until the end. Skips where that is impossible."""
    require(why_no_namespaces(), "REQUIRE_NETNS")
    mark = secrets.token_hex(3)
    edge, host = f"ll-edge-{mark}", f"ll-host-{mark}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _create_namespaces(edge, host)
        with Path(f"/run/netns/{edge}").open("rb") as namespace:
            enter_namespace(namespace.fileno())
        yield HostNetwork(exec_prefix(host))
    finally:
        enter_namespace(home)
        os.close(home)
        for name in (edge, host):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def net() -> Iterator[HostNetwork]:
    """Yield the two networks of one module's tests."""
    with host_network() as made:
        yield made
