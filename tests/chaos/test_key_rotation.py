"""The key that seals secrets is replaced, and SIGKILL ends the edge at each step.

Every secret stays readable, also for another edge with the same key file, and the rotation can be finished.
"""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import httpx2
import pytest
from msgspec import Struct

from edge.core.clock import utc_now
from edge.owners.secret_keys import SecretKeyFile
from edge.owners.secrets import OLD_KEY_KEPT_S, SecretStore
from schemas.endpoint import Endpoint
from tests.chaos.chaos_installation import MODULES
from tests.chaos.fault_points import FOLDER_ENV, CallSide, FaultPoints
from tests.support.command import run_lamplighter
from tests.support.installation import Installation, RunningInstallation, run_installation, wait_until_ready
from tests.support.wait import wait_for

VALUES = {"ann": "hf_the-value-of-ann", "bob": "hf_the-value-of-bob", "nobody": "hf_of-the-installation"}
NEW_FILE_WRITTEN = "disk.fsync.secrets.key.part"  # and not renamed yet
NEEDS_TOKEN = Endpoint(name="tts", image="tts", secrets=("HF_TOKEN",))


class KeyRotation(Struct, frozen=True):
    """A running edge that can be killed at its fault points. `old_id` is the key before the rotation."""

    running: RunningInstallation
    faults: FaultPoints
    old_id: str

    @property
    def file(self) -> Path:
        """The key file of the edge."""
        return self.running.installation.folder / "edge" / "secrets.key"

    @property
    def part(self) -> Path:
        """The new key file until it is renamed."""
        return self.file.with_name("secrets.key.part")

    async def start_edge(self) -> None:
        """Start the edge, armed or not, without waiting until it is ready."""
        await self.running.installation.start_edge(**{FOLDER_ENV: str(self.running.installation.folder / "faults")})

    async def call(self, *, finish: bool) -> None:
        """Do what `lamplighter secrets rotate-key` does; the edge may die meanwhile."""
        with suppress(httpx2.HTTPError):
            await self.running.admin._http.post("/v1/secret-key/rotate", params={"finish": finish})

    async def kill_at(self, point: str, side: CallSide, begin: Callable[[], Awaitable[None]]) -> None:
        """Kill the edge with SIGKILL where it stops after `begin`; every secret can be read then."""
        self.faults.arm(point, side)

        async def has_stopped() -> bool:
            edge = self.running.installation.edge
            return edge.is_running and self.faults.reached(point, side, edge.pid)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            await wait_for(has_stopped, timeout_s=60)
            await self.running.installation.edge.kill()
        await self.check_readable()

    async def check_readable(self) -> None:
        """Read every secret as an edge does that starts now."""
        store = SecretStore(self.running.bus.secrets, SecretKeyFile(self.file), utc_now)
        assert {owner: (await store.open_for_job(NEEDS_TOKEN, owner))["HF_TOKEN"] for owner in VALUES} == VALUES

    async def count_sealed_by_old_key(self) -> int:
        rows = await self.running.bus.secrets.rows()
        return sum(row.value.key_id == self.old_id for row in rows.values())


@pytest.fixture
async def rotation(tmp_path: Path) -> AsyncIterator[KeyRotation]:
    installation = Installation(tmp_path, "process", None, MODULES)
    faults = FaultPoints(tmp_path / "faults")
    async with run_installation(installation, **{FOLDER_ENV: str(tmp_path / "faults")}) as running:
        await running.ann.set_secret("HF_TOKEN", VALUES["ann"])
        await running.admin.set_secret("HF_TOKEN", VALUES["bob"], owner="bob")
        await running.admin.set_secret("HF_TOKEN", VALUES["nobody"], installation=True)
        old_id = SecretKeyFile(tmp_path / "edge" / "secrets.key").keys.sealing_id
        yield KeyRotation(running, faults, old_id)
        print(installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.mark.long(9)
async def test_an_edge_that_is_killed_while_it_replaces_the_key_loses_no_secret(rotation: KeyRotation):
    running = rotation.running

    async def rotate() -> None:
        await wait_until_ready(running.ann)
        await rotation.call(finish=False)

    async def finish() -> None:
        await wait_until_ready(running.ann)
        await rotation.call(finish=True)

    await rotation.kill_at(NEW_FILE_WRITTEN, CallSide.AFTER, rotate)
    assert rotation.part.exists()
    assert SecretKeyFile(rotation.file).keys.old_ids == ()
    await rotation.start_edge()
    await rotation.kill_at("key_file.atomic_write", CallSide.AFTER, rotate)
    assert SecretKeyFile(rotation.file).keys.old_ids == (rotation.old_id,)
    assert await rotation.count_sealed_by_old_key() == 3
    await rotation.kill_at("secrets.update", CallSide.AFTER, rotation.start_edge)  # it seals again at its start
    assert await rotation.count_sealed_by_old_key() == 2
    await rotation.start_edge()

    async def is_sealed_again() -> bool:
        return await rotation.count_sealed_by_old_key() == 0

    await wait_for(is_sealed_again, timeout_s=60)
    a_minute_ago = time.time() - OLD_KEY_KEPT_S - 1
    os.utime(rotation.file, (a_minute_ago, a_minute_ago))
    await rotation.kill_at(NEW_FILE_WRITTEN, CallSide.AFTER, finish)
    assert rotation.part.exists()
    assert SecretKeyFile(rotation.file).keys.old_ids == (rotation.old_id,)
    await rotation.start_edge()
    await rotation.kill_at("key_file.atomic_write", CallSide.AFTER, finish)
    assert not rotation.part.exists()
    assert SecretKeyFile(rotation.file).keys.old_ids == ()
    await rotation.start_edge()
    await wait_until_ready(running.ann)
    key = running.installation.keys["admin"]
    argv = ("secrets", "rotate-key", "--finish", "--url", running.installation.url, "--key", key)
    done = await run_lamplighter(*argv)
    assert (done.returncode, done.stdout.endswith("seals all secrets (3)\n")) == (0, True), done.stderr
    keys = SecretKeyFile(rotation.file).keys
    assert keys.old_ids == ()
    assert keys.sealing_id != rotation.old_id
    await rotation.check_readable()
