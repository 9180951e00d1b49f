"""A runner that is about to be killed: starts one echo job on a real engine, prints its handle, and follows it.

python -m tests.contract.engines.start_and_follow ENGINE HOST FOLDER INPUT
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.contract.engines.engine_rigs import (
    docker_engine_rig,
    nobody_engine_rig,
    process_engine_rig,
    sandbox_engine_rig,
)
from tests.support.docker_images import ECHO_IMAGE


async def main(engine: str, name: str, root: Path, given: str) -> None:
    """Start and follow; does not return while the job runs."""
    url = os.environ.get("DOCKER_HOST", "")
    makers = {"process": process_engine_rig, "nobody": nobody_engine_rig, "sandbox": sandbox_engine_rig}
    made = (
        docker_engine_rig(root, name, url, {"echo": ECHO_IMAGE}) if engine == "docker" else makers[engine](root, name)
    )
    async with made as host:
        handle = await host.echo(**json.loads(given))
        async for chunk in host.engine.output(handle, None):
            if b"step 3 " in chunk.data:
                sys.stdout.write(f"{handle} {chunk.cursor.offset} {chunk.cursor.position}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
