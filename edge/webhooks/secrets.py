"""Webhook settings, and for each owner the signing secret and the disabled receivers."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta, Struct, structs

from bus.interface import RevisionConflict, Table, TableRow
from edge.core.clock import Clock, Entropy
from edge.core.error_handling import translate_errors
from edge.outbound.signature import is_secret, make_secret
from schemas.problems import FieldError, ProblemError
from schemas.webhook import DISABLED_URL_LIMIT, WebhookConfig

ROTATION_GRACE = timedelta(hours=24)  # how long the previous secret also signs
_SECRET_BYTES = 32
_CONFLICT_RETRIES_LIMIT = 20


class WebhookSettings(Struct, frozen=True):
    """Settings of webhooks.

    `secret`: signs for owners without a secret of their own (`whsec_` and 24 to 64 bytes in base64). If it is empty,
    a secret is created for each owner. `timeout_s`: for one attempt, including the response.
    `at_once`: concurrent attempts. `at_once_each`: concurrent attempts to one receiver.
    """

    secret: str = ""
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    at_once: Annotated[int, Meta(ge=1)] = 64
    at_once_each: Annotated[int, Meta(ge=1)] = 4

    def __post_init__(self) -> None:
        if self.secret and not is_secret(self.secret):
            raise ValueError("`secret` must be whsec_ followed by 24 to 64 bytes in base64 (Standard Webhooks)")


class WebhookSecretStore:
    """The webhook configuration of each owner. `default`: the secret of owners without one; empty: create one each."""

    def __init__(self, table: Table[WebhookConfig], clock: Clock, entropy: Entropy, default: str = "") -> None:
        self._table = table
        self._clock = clock
        self._entropy = entropy
        self._default = default

    async def get(self, owner: str) -> WebhookConfig:
        """Return the configuration of `owner`; create it if there is neither a row nor a default. Raises BusError."""
        row = await self._table.get(owner)
        if row is not None:
            return row.value
        if self._default:
            return self._new_config(self._default)
        config = self._new_config(make_secret(self._entropy(_SECRET_BYTES)))
        try:
            await self._table.create(owner, config)
        except RevisionConflict:  # another edge was first
            return await self.get(owner)
        return config

    async def rotate(self, owner: str, secret: str | None = None) -> WebhookConfig:
        """Set `secret` or a random one; the previous one also signs for ROTATION_GRACE. Raises ProblemError."""
        if secret is not None and not is_secret(secret):
            fault = FieldError("$.secret", "is not whsec_ followed by 24 to 64 bytes in base64")
            raise ProblemError("input_invalid", f"{fault.path}: {fault.message}", errors=(fault,))
        new_secret = secret or make_secret(self._entropy(_SECRET_BYTES))
        now = self._clock()
        with translate_errors():
            old = (await self.get(owner)).secret
            return await self._update(
                owner, secret=new_secret, created_at=now, previous=old, previous_until=now + ROTATION_GRACE
            )

    async def disable_receiver(self, owner: str, url: str) -> None:
        """Stop deliveries of `owner` to a receiver that answered 410 Gone. Raises BusError."""
        known = (await self.get(owner)).disabled_urls
        urls = dict(sorted({**known, url: self._clock()}.items(), key=lambda item: item[1])[-DISABLED_URL_LIMIT:])
        await self._update(owner, disabled_urls=urls)

    async def enable_receiver(self, owner: str, url: str) -> None:
        """Resume deliveries of `owner` to `url`. Raises BusError."""
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
        raise RevisionConflict(
            f"the webhook settings of {owner} changed {_CONFLICT_RETRIES_LIMIT} times during one update: try again"
        )

    def _new_config(self, secret: str) -> WebhookConfig:
        return WebhookConfig(secret=secret, created_at=self._clock())
