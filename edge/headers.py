"""What every answer says to browsers and caches where its route says nothing else."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DEFAULTS = (
    (b"x-content-type-options", b"nosniff"),  # what is not a page is not taken for one
    (b"cache-control", b"no-store"),  # keys, secrets and jobs lie in no cache
    (b"referrer-policy", b"no-referrer"),  # a URL may hold a key or a signature: no page names it to another site
)


class DefaultHeaders:
    """Adds to a response the headers that it lacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                message["headers"] = [*headers, *(pair for pair in _DEFAULTS if pair[0] not in said)]
            await send(message)

        await self._app(scope, receive, answering)
