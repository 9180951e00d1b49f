"""The page for JetStream consumers of others, run as they would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from anyio import to_thread

from bus.port import Bus
from tests.broker import Broker, until
from tests.bus.raw import raw
from tests.bus.samples import key, recorded

PAGE = Path(__file__).parents[2] / "docs" / "following.md"


async def test_the_example_of_the_page_reads_states_as_the_reader(server: Broker, edge: Bus):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for name in ("one", "two"):
        await edge.records.create(key(name), recorded(name))

    async def sourced() -> bool:
        async with raw(server) as broker:
            return (await broker.api("STREAM.INFO.FEED"))["state"]["messages"] == 2

    await until(sourced)
    where = {"NATS_URL": server.url, "READER_PASSWORD": server.passwords["reader"]}
    done = await to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-c", example],
            env=os.environ | where,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["feed.me.one.state submitted queued", "feed.me.two.state submitted queued"]
