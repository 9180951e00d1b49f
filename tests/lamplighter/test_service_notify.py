"""The protocol of sd_notify(3), as a service manager hears it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest

from lamplighter.cli.process_setup import ServiceNotifier


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{folder}/notify")
        heard.setblocking(False)
        yield heard


def test_states_are_sent_to_the_socket_and_its_variables_reach_no_child(manager: socket.socket):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = ServiceNotifier.from_environment(environ)
    assert environ == {}
    notifier.ready()
    notifier.stopping(12.5)
    assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=12500000"


def test_an_abstract_socket_is_reached():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"lamplighter-test-{os.getpid()}"
        heard.bind(f"\0{name}")
        heard.setblocking(False)
        ServiceNotifier(f"@{name}").ready()
        assert heard.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address: str | None):
    ServiceNotifier(address).ready()


async def test_the_watchdog_hears_of_a_process_only_while_it_is_alive(manager: socket.socket):
    alive, asked, asked_again = [True, False], anyio.Event(), anyio.Event()

    async def is_alive() -> bool:
        (asked_again if asked.is_set() else asked).set()
        return alive.pop(0) if alive else False

    notifier = ServiceNotifier(manager.getsockname(), watchdog_s=0.03)
    async with notifier.pinging(is_alive):
        await asked_again.wait()
    assert manager.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        manager.recv(100)


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}])
async def test_the_watchdog_of_another_process_is_not_pinged(manager: socket.socket, variables: dict[str, str]):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), **variables}
    async with ServiceNotifier.from_environment(environ).pinging():
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_a_manager_that_reads_nothing_does_not_stop_us(tmp_path: Path, manager: socket.socket):
    notifier = ServiceNotifier(manager.getsockname())
    for _ in range(10_000):
        notifier.ready()
