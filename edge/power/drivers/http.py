"""Power driver that sends signed webhooks.

It posts `{"type": "power.start|stop|state", "timestamp", "data": {"host", "call_id"}}` to the URL in the settings.
Any 2xx means that the call was accepted; the body is a `PowerDriverReply`. The call's id is the webhook's id, so that a
receiver can ignore a repeated call.
"""

from collections.abc import Callable
from datetime import datetime

import httpx2
import msgspec

from schemas.host_config import HttpHostConfig
from schemas.power import ReportedPower
from schemas.power_driver import PowerCallFailed, PowerDriver, PowerDriverReply, parse_reply
from schemas.webhook import signature_headers


class HttpDriver(PowerDriver):
    """Sends webhooks. `client`: the caller closes it. `new_id`: creates the id of a state request."""

    def __init__(
        self,
        host: str,
        declared: HttpHostConfig,
        client: httpx2.AsyncClient,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._host = host
        self._declared = declared
        self._client = client
        self._now = now
        self._new_id = new_id

    @property
    def can_report_state(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        await self._post("power.start", call_id)

    async def stop(self, call_id: str) -> None:
        await self._post("power.stop", call_id)

    async def state(self) -> ReportedPower:
        return (await self._post("power.state", self._new_id())).state

    async def _post(self, kind: str, call_id: str) -> PowerDriverReply:
        at = self._now()
        body = msgspec.json.encode(
            {"type": kind, "timestamp": at, "data": {"host": self._host, "call_id": call_id}},
        )
        headers = {"content-type": "application/json", **signature_headers(call_id, at, body, self._declared.secret)}
        try:
            response = await self._client.post(self._declared.url, content=body, headers=headers)
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            ValueError,
        ) as error:  # ValueError: a host name that idna cannot decode
            raise PowerCallFailed(
                f"{self._declared.url} does not answer ({type(error).__name__}): is it up?"
            ) from error
        if not response.is_success:
            raise PowerCallFailed(f"{self._declared.url} answered {response.status_code}: see its log")
        return parse_reply(response.content)
