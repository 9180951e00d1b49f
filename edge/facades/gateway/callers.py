"""Who is at the other end of a socket, and how it proves that: with the handshake, or with its first message."""

from anyio import fail_after
from msgspec import Struct

from edge.auth.keys import owner_for, presented, recognised, still_known
from edge.facades.gateway.wire import AnySocket, next_frame
from edge.parts import Parts
from edge.services.messages import Language, choose_language
from edge.services.refusals import refusing
from edge.services.view import Asker
from schemas.access import ApiKey, Scope
from schemas.envelope import Kind, read
from schemas.errors import Refused

AUTH_WITHIN_S = 10.0


class Caller(Struct, frozen=True):
    """A client that was let in. `text`: its key or token as sent."""

    text: str
    key: ApiKey
    owner: str
    language: Language

    @property
    def asker(self) -> Asker:
        """Whom views are made for."""
        return Asker(self.language, self.key.id)

    def needs(self, scope: Scope) -> None:
        """Pass, or raise Refused `forbidden`."""
        if not self.key.allows(scope):
            raise Refused("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    async def still_known(self, parts: Parts) -> bool:
        """Whether the key has not been revoked since."""
        return await still_known(parts, self.key, self.text)


def carried(socket: AnySocket) -> str | None:
    """The key or token that came with the handshake."""
    return presented(socket) or socket.query_params.get("key")


async def admit(socket: AnySocket, parts: Parts, text: str) -> Caller:
    """The caller whose key or token is `text`. Raises Refused for a stranger's, and while the broker is away."""
    with refusing():
        key = await recognised(socket, parts, text)
    if key is None:
        raise Refused("unauthorized", "no valid key: send one as a bearer header, ?key=, or a first message `auth`")
    owner = owner_for(key, socket.query_params.get("owner"))
    # Programs that speak this envelope compare the Chinese texts, and send no Accept-Language.
    language = choose_language(socket.headers.get("accept-language"), key.language or Language.ZH)
    return Caller(text, key, owner, language)


async def first_message(socket: AnySocket, within_s: float) -> str:
    """The key in `{"type": "auth", "payload": {"license_key"}}`. Raises Refused, also when none comes in time; Gone."""
    try:
        with fail_after(within_s):
            message = read(await next_frame(socket))
    except TimeoutError as error:
        raise Refused("unauthorized", f"no key came within {within_s:.0f} s") from error
    text = message.payload.get("license_key")
    if message.type != Kind.AUTH or not isinstance(text, str):
        raise Refused("unauthorized", "the first message must be `auth` with payload.license_key")
    return text
