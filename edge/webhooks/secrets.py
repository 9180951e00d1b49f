"""What an operator may say about webhooks."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta, Struct, structs

from bus.interface import RevisionConflict, Table, TableRow
from edge.core.clock import Clock, Entropy
from edge.core.error_handling import translate_errors
from edge.outbound.signature import is_secret, make_secret
from schemas.problems import FieldError, ProblemError
from schemas.webhook import DISABLED_URL_LIMIT, WebhookConfig


class WebhookSettings(Struct, frozen=True):
    """`secret`: signs for owners who have set none of their own (`whsec_` and 24 to 64 bytes in base64); without it
    each gets one.

    `timeout_s` of one try, answer included. `at_once` tries in all, `at_once_each` to one receiver.
    """

    secret: str = ""
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    at_once: Annotated[int, Meta(ge=1)] = 64
    at_once_each: Annotated[int, Meta(ge=1)] = 4

    def __post_init__(self) -> None:
        if self.secret and not is_secret(self.secret):
            raise ValueError("`secret` must be whsec_ and 24 to 64 bytes in base64, as Standard Webhooks writes it")


# MERGED edge/webhooks/secrets.py: An owner's signing secret, and the URLs that want nothing more.


ROTATION_GRACE = timedelta(hours=24)  # how long the old secret signs too
_SECRET_BYTES = 32
_CONFLICT_RETRIES_LIMIT = 20


class WebhookSecretStore:
    """`default`: the secret of owners who have set none; empty: each gets one of its own when it is first needed."""

    def __init__(self, table: Table[WebhookConfig], clock: Clock, entropy: Entropy, default: str = "") -> None:
        self._table = table
        self._clock = clock
        self._entropy = entropy
        self._default = default

    async def get(self, owner: str) -> WebhookConfig:
        """What holds for `owner` now. Raises BusError."""
        row = await self._table.get(owner)
        if row is not None:
            return row.value
        if self._default:
            return self._new_config(self._default)
        made = self._new_config(make_secret(self._entropy(_SECRET_BYTES)))
        try:
            await self._table.create(owner, made)
        except RevisionConflict:  # another edge was first
            return await self.get(owner)
        return made

    async def rotate(self, owner: str, secret: str | None = None) -> WebhookConfig:
        """A new secret, the client's or a random one; the old one signs beside it for ROTATION. Raises Refused."""
        if secret is not None and not is_secret(secret):
            fault = FieldError("$.secret", "is not whsec_ and 24 to 64 bytes in base64")
            raise ProblemError("input_invalid", f"{fault.path}: {fault.message}", errors=(fault,))
        fresh = secret or make_secret(self._entropy(_SECRET_BYTES))
        now = self._clock()
        with translate_errors():
            old = (await self.get(owner)).secret
            return await self._update(
                owner, secret=fresh, created_at=now, previous=old, previous_until=now + ROTATION_GRACE
            )

    async def disable_receiver(self, owner: str, url: str) -> None:
        """The receiver at `url` said that it is gone: nothing of this owner goes there any more. Raises BusError."""
        known = (await self.get(owner)).disabled_urls
        kept = dict(sorted({**known, url: self._clock()}.items(), key=lambda item: item[1])[-DISABLED_URL_LIMIT:])
        await self._update(owner, disabled_urls=kept)

    async def enable_receiver(self, owner: str, url: str) -> None:
        """It is back. Raises BusError."""
        known = (await self.get(owner)).disabled_urls
        if url in known:
            await self._update(owner, disabled_urls={other: at for other, at in known.items() if other != url})

    async def _update(self, owner: str, **fields: object) -> WebhookConfig:
        for _ in range(_CONFLICT_RETRIES_LIMIT):
            row: TableRow[WebhookConfig] | None = await self._table.get(owner)
            changed: WebhookConfig = structs.replace(await self.get(owner) if row is None else row.value, **fields)
            try:
                if row is None:
                    await self._table.create(owner, changed)
                else:
                    await self._table.update(owner, changed, row.revision)
            except RevisionConflict:
                continue
            return changed
        raise RevisionConflict(f"the webhook settings of {owner} changed {_CONFLICT_RETRIES_LIMIT} times meanwhile")

    def _new_config(self, secret: str) -> WebhookConfig:
        return WebhookConfig(secret=secret, created_at=self._clock())
