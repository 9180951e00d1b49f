"""Several machines on one: network namespaces on a switch. Root only; it uses addresses of its own namespaces only.

The test itself is in the switch's namespace, so that its sockets are there. The bridge lies in a namespace of its own
too: on the machine's own network, a Docker engine's firewall would block it.
"""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from tests.support.namespaces import enter_namespace, exec_prefix, run_command, why_no_namespaces
from tests.support.requirements import require

NET = "10.231.9"
SWITCH = f"{NET}.254"


class NamespaceMachine(Struct, frozen=True):
    """One machine. `inside`: what stands in front of an argv that runs there."""

    number: int
    address: str
    inside: tuple[str, ...]
    switch: str

    def disconnect(self) -> None:
        """Drop all packets to and from the machine; nothing is rejected."""
        self._link("down")

    def connect(self) -> None:
        """Connect it to the network again."""
        self._link("up")

    def _link(self, how: str) -> None:
        run_command("ip", "-n", self.switch, "link", "set", f"m{self.number}", how)


def _switch(name: str) -> None:
    run_command("ip", "netns", "add", name)
    run_command("ip", "-n", name, "link", "add", "bridge", "type", "bridge")
    run_command("ip", "-n", name, "addr", "add", f"{SWITCH}/24", "dev", "bridge")
    for link in ("lo", "bridge"):
        run_command("ip", "-n", name, "link", "set", link, "up")


def _machine(number: int, switch: str, name: str) -> NamespaceMachine:
    port, address = f"m{number}", f"{NET}.{number}"
    run_command("ip", "netns", "add", name)
    run_command("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "wire", "netns", name)
    run_command("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    run_command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "wire")
    for link in ("lo", "wire"):
        run_command("ip", "-n", name, "link", "set", link, "up")
    return NamespaceMachine(number, address, exec_prefix(name), switch)


@contextmanager
def create_machines(count: int) -> Iterator[tuple[NamespaceMachine, ...]]:
    """Create `count` machines, with the calling thread at the switch until the end. Skips where that is impossible."""
    require(why_no_namespaces(), "REQUIRE_NETNS")
    mark = secrets.token_hex(3)
    switch, names = f"ll-switch-{mark}", [f"ll-machine-{mark}-{number}" for number in range(1, count + 1)]
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _switch(switch)
        made = tuple(_machine(number, switch, name) for number, name in enumerate(names, 1))
        with Path(f"/run/netns/{switch}").open("rb") as namespace:
            enter_namespace(namespace.fileno())
        yield made
    finally:
        enter_namespace(home)
        os.close(home)
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
