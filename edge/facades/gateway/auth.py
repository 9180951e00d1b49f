"""Who is at the other end of a socket, and how it proves that: with the handshake, or with its first message."""

from anyio import fail_after
from msgspec import Struct

from edge.core.error_handling import translate_errors
from edge.core.messages import Language, choose_language
from edge.facades.gateway.frames import AnySocket, receive_frame
from edge.http.auth import authenticate_throttled, is_still_valid, read_credential, resolve_owner
from edge.http.dependencies import EdgeServices
from edge.jobs.view import Asker
from schemas.auth import ApiKey, Scope
from schemas.gateway_protocol import EnvelopeType, read_frame
from schemas.problems import ProblemError

AUTH_TIMEOUT_S = 10.0


class SocketCaller(Struct, frozen=True):
    """A client that was let in. `text`: its key or token as sent."""

    credential: str
    key: ApiKey
    owner: str
    language: Language

    @property
    def asker(self) -> Asker:
        """Whom views are made for."""
        return Asker(self.language, self.key.id)

    def require_scope(self, scope: Scope) -> None:
        """Pass, or raise Refused `forbidden`."""
        if not self.key.allows(scope):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    async def is_still_valid(self, parts: EdgeServices) -> bool:
        """Whether the key has not been revoked since."""
        return await is_still_valid(parts, self.key, self.credential)


def credential_from_handshake(socket: AnySocket) -> str | None:
    """The key or token that came with the handshake."""
    return read_credential(socket) or socket.query_params.get("key")


async def authenticate_socket(socket: AnySocket, parts: EdgeServices, text: str) -> SocketCaller:
    """The caller whose key or token is `text`. Raises Refused for a stranger's, and while the broker is away."""
    with translate_errors():
        key = await authenticate_throttled(socket, parts, text)
    if key is None:
        raise ProblemError(
            "unauthorized", "no valid key: send one as a bearer header, ?key=, or a first message `auth`"
        )
    owner = resolve_owner(key, socket.query_params.get("owner"))
    # Programs that speak this envelope compare the Chinese texts, and send no Accept-Language.
    language = choose_language(socket.headers.get("accept-language"), key.language or Language.ZH)
    return SocketCaller(text, key, owner, language)


async def read_auth_message(socket: AnySocket, within_s: float) -> str:
    """The key in `{"type": "auth", "payload": {"license_key"}}`. Raises Refused, also when none comes in time; Gone."""
    try:
        with fail_after(within_s):
            message = read_frame(await receive_frame(socket))
    except TimeoutError as error:
        raise ProblemError("unauthorized", f"no key came within {within_s:.0f} s") from error
    text = message.payload.get("license_key")
    if message.type != EnvelopeType.AUTH or not isinstance(text, str):
        raise ProblemError("unauthorized", "the first message must be `auth` with payload.license_key")
    return text
