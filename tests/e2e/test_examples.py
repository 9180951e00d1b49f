"""The examples in the docstrings of both clients, against a real edge and a real runner."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from lamplighter import AsyncClient, Client, JobFailed, NotFound, api, async_client
from lamplighter import client as sdk
from tests.e2e.conftest import process_only
from tests.e2e.docstring_examples import examples_of, list_documented, run_example
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.wait import wait_for

pytestmark = process_only
HOST_SECTION = '[hosts.gpu-9]\ndriver = "command"\non = ["true"]\noff = ["true"]\nstate = ["echo", "off"]\n'
CLIENTS = (Client, AsyncClient)
SHOWN = [thing for thing in list_documented(sdk, async_client, *CLIENTS) if thing not in CLIENTS]
NAMES = {"contextlib": contextlib, "api": api, "JobFailed": JobFailed, "NotFound": NotFound}


@pytest.fixture(scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: object, engine: str, engine_url: str | None
) -> AsyncIterator[RunningInstallation]:
    """Run an edge with two hosts: `gpu-1` works, `gpu-9` is declared and off."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "lamplighter.toml").write_text(HOST_SECTION)
    async with run_new_installation(folder, engine, engine_url) as running:
        await running.installation.start_runner(LAMPLIGHTER_SLOTS="4")
        await wait_for(partial(is_listed, running, "gpu-1"))
        yield running


async def is_listed(running: RunningInstallation, host: str) -> bool:
    return any(found.id == host for found in await running.admin.hosts())


@pytest.mark.parametrize("thing", SHOWN, ids=lambda thing: getattr(thing, "__qualname__", thing.__name__))
async def test_it_does_what_its_docstring_shows(
    running: RunningInstallation, thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    examples = examples_of(thing)
    assert examples, "a public method has an example"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello.txt").write_text("hello\n")
    key = running.admin._http.headers["authorization"].partition(" ")[2]
    names = NAMES | {"url": running.installation.url, "key": key, "Client": Client, "AsyncClient": AsyncClient}
    awaiting = any("await" in example.source or "async" in example.source for example in examples)
    each = partial(all_of, examples, names, awaiting, tmp_path / "digests.json")
    await (each() if awaiting else to_thread.run_sync(partial(anyio.run, each)))


async def all_of(examples: list[Any], names: dict[str, Any], awaiting: bool, cache: Path) -> None:
    """Run the examples with the client that they are for; the blocking client gets an event loop of its own."""
    async with AsyncClient(names["url"], names["key"], cache=cache) as other:
        with Client(names["url"], names["key"], cache=cache) as client:
            given = names | {"client": other if awaiting else client}
            for example in examples:
                await run_example(example, given)
