"""Authenticate the client of a socket, by its handshake or by its first message."""

from anyio import fail_after
from msgspec import Struct

from edge.core.error_handling import translate_errors
from edge.core.messages import choose_language
from edge.facades.gateway.frames import AnySocket, receive_frame
from edge.http.auth import (
    authenticate_throttled,
    is_still_valid,
    read_client_address,
    read_credential,
    resolve_owner,
)
from edge.http.dependencies import EdgeServices
from edge.jobs.view import Asker
from schemas.auth import ApiKey, Scope
from schemas.gateway_protocol import EnvelopeType, read_frame
from schemas.installation import AuditAction
from schemas.problems import ProblemError
from schemas.texts import Language

AUTH_TIMEOUT_S = 10.0


class SocketCaller(Struct, frozen=True):
    """An authenticated client. `credential`: its key or token as sent. `address`: for the audit log."""

    credential: str
    key: ApiKey
    owner: str
    language: Language
    address: str = ""

    @property
    def asker(self) -> Asker:
        """Return the language and key that job views are built for."""
        return Asker(self.language, self.key.id)

    def require_scope(self, scope: Scope) -> None:
        """Raise ProblemError `forbidden` if the key lacks `scope`."""
        if not self.key.allows(scope):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    async def record(self, services: EdgeServices, action: AuditAction, subject: str) -> None:
        """Record in the audit log what the client did to `subject`, a job or an asset of its owner."""
        await services.audit.record(action, subject, by=self.key.id, client=self.address, owner=self.owner)

    async def is_still_valid(self, services: EdgeServices) -> bool:
        """Return whether the key is still valid. It may have been revoked."""
        return await is_still_valid(services, self.key, self.credential)


def credential_from_handshake(socket: AnySocket) -> str | None:
    """Return the key or token of the handshake."""
    return read_credential(socket) or socket.query_params.get("key")


async def authenticate_socket(socket: AnySocket, services: EdgeServices, text: str) -> SocketCaller:
    """Return the caller with the key or token `text`. Raises ProblemError `unauthorized` or `unavailable`."""
    with translate_errors():
        key = await authenticate_throttled(socket, services, text)
    if key is None:
        raise ProblemError(
            "unauthorized",
            "the key is missing or not valid: send one as a bearer header, as ?key=, or in a first message `auth`",
        )
    owner = resolve_owner(key, socket.query_params.get("owner"))
    # Existing clients of this envelope compare the Chinese texts and send no Accept-Language.
    language = choose_language(socket.headers.get("accept-language"), key.language or Language.ZH)
    return SocketCaller(text, key, owner, language, read_client_address(socket))


async def read_auth_message(socket: AnySocket, within_s: float) -> str:
    """Return the key of `{"type": "auth", "payload": {"license_key": …}}`.

    Raises ProblemError `unauthorized`, also when no message arrives in time, and ClientGone.
    """
    try:
        with fail_after(within_s):
            message = read_frame(await receive_frame(socket))
    except TimeoutError as error:
        raise ProblemError(
            "unauthorized", f"no key arrived within {within_s:.0f} s: send the message `auth` first"
        ) from error
    text = message.payload.get("license_key")
    if message.type != EnvelopeType.AUTH or not isinstance(text, str):
        raise ProblemError("unauthorized", "the first message must be `auth` with payload.license_key")
    return text
