"""Endpoint watch: reads the folders of the endpoints again every few seconds, so that a change needs no restart.

A job that runs keeps the endpoint with which it started. The warm pool removes containers of an endpoint that changed.
"""

from collections.abc import Callable

import anyio
import anyio.to_thread
from msgspec.structs import replace

from runner.context import HostContext, RunnerContext
from runner.endpoints import LocalEndpoint, load_endpoints
from schemas.endpoint import EndpointInvalid


class EndpointWatch:
    """Keeps `HostContext.endpoints` as the folders have them. `changed` is called after each change."""

    def __init__(self, context: RunnerContext, host: HostContext, changed: Callable[[], None]) -> None:
        self._context = context
        self._host = host
        self._changed = changed

    async def run(self) -> None:
        """Look forever. While a file is not valid, the endpoints stay as they were, and the heartbeat says why."""
        while self._host.endpoint_folders:
            await anyio.sleep(self._context.intervals.image_s)
            if (problem := await self._look()) is not None:
                await self._report_until_valid(problem)

    async def _report_until_valid(self, problem: str) -> None:
        self._context.log.warning("endpoints_not_valid", error=problem)
        with self._context.outage.waiting() as report:
            current: str | None = problem
            while current is not None:
                report(False, f"use the changed endpoints: {current}")
                await anyio.sleep(self._context.intervals.image_s)
                current = await self._look()

    async def _look(self) -> str | None:
        """Read the folders and apply what changed; return what is not valid, or None."""
        try:
            found = await anyio.to_thread.run_sync(load_endpoints, self._host.endpoint_folders, self._host.pool)
        except (EndpointInvalid, OSError) as error:
            return str(error)
        wanted = {name: self._with_image(endpoint) for name, endpoint in found.items()}
        changed = [name for name, endpoint in wanted.items() if self._host.endpoints.get(name) != endpoint]
        removed = self._host.endpoints.keys() - wanted.keys()
        for name in changed:
            self._host.endpoints[name] = wanted[name]
        for name in removed:
            del self._host.endpoints[name]
        if changed or removed:
            self._context.log.info("endpoints_changed", changed=sorted(changed), removed=sorted(removed))
            self._changed()
        return None

    def _with_image(self, endpoint: LocalEndpoint) -> LocalEndpoint:
        """Return the endpoint with the image that is known. Only the process engine runs the folder's other files."""
        current = self._host.endpoints.get(endpoint.config.name)
        if current is None:
            return endpoint
        image = current.image if current.config.image == endpoint.config.image else None
        has_images = self._context.engine.images is not None
        if not has_images:
            return replace(endpoint, image=image)
        return replace(
            endpoint,
            image=image,
            network_image=current.network_image,
            stamp=current.stamp,
            folder_digest=current.folder_digest,
        )
