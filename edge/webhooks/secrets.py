"""Webhook settings, and for each owner the signing secret and the disabled receivers."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct, structs

from bus.compare_and_set import update_row
from bus.interface import Table
from edge.core.clock import Clock, Entropy
from edge.core.error_handling import translate_errors
from schemas.problems import FieldError, ProblemError
from schemas.settings_schema import SECRET
from schemas.webhook import DISABLED_URL_LIMIT, WebhookConfig, is_secret, make_secret

ROTATION_GRACE = timedelta(hours=24)  # how long the previous secret also signs
_SECRET_BYTES = 32


class WebhookSettings(Struct, frozen=True):
    """The `[webhooks]` section: secrets, targets and retries."""

    secret: Annotated[str, SECRET] = ""
    """Signs the webhooks of owners without a secret of their own: `whsec_` and 24 to 64 bytes in base64. Empty: a
    secret is created for each owner.
    """
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    """How long one attempt may take, including the response."""
    at_once: Annotated[int, Meta(ge=1)] = 64
    """Attempts at the same time."""
    at_once_each: Annotated[int, Meta(ge=1)] = 4
    """Attempts at the same time to one receiver."""

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
        return self._new_config() if self._default else await self._update(owner, lambda config: config)

    async def rotate(self, owner: str, secret: str | None = None) -> WebhookConfig:
        """Set `secret` or a random one; the previous one also signs for ROTATION_GRACE. Raises ProblemError."""
        if secret is not None and not is_secret(secret):
            fault = FieldError("$.secret", "is not whsec_ followed by 24 to 64 bytes in base64")
            raise ProblemError("input_invalid", f"{fault.path}: {fault.message}", errors=(fault,))
        new_secret = secret or make_secret(self._entropy(_SECRET_BYTES))
        now = self._clock()
        with translate_errors():
            return await self._update(
                owner,
                lambda config: structs.replace(
                    config,
                    secret=new_secret,
                    created_at=now,
                    previous=config.secret,
                    previous_until=now + ROTATION_GRACE,
                ),
            )

    async def disable_receiver(self, owner: str, url: str) -> None:
        """Stop deliveries of `owner` to a receiver that answered 410 Gone. Raises BusError."""
        now = self._clock()

        def disable(config: WebhookConfig) -> WebhookConfig:
            urls = sorted({**config.disabled_urls, url: now}.items(), key=_disabled_at)
            return structs.replace(config, disabled_urls=dict(urls[-DISABLED_URL_LIMIT:]))

        await self._update(owner, disable)

    async def enable_receiver(self, owner: str, url: str) -> None:
        """Resume deliveries of `owner` to `url`. Raises BusError."""

        def enable(config: WebhookConfig) -> WebhookConfig:
            urls = {other: at for other, at in config.disabled_urls.items() if other != url}
            return structs.replace(config, disabled_urls=urls)

        if url in (await self.get(owner)).disabled_urls:
            await self._update(owner, enable)

    async def _update(self, owner: str, change: Callable[[WebhookConfig], WebhookConfig]) -> WebhookConfig:
        """Change the configuration of `owner`, and create it first if it does not exist."""
        new = self._new_config()
        row = (await update_row(self._table, owner, lambda config: change(config or new))).row
        return new if row is None else row.value

    def _new_config(self) -> WebhookConfig:
        return WebhookConfig(
            secret=self._default or make_secret(self._entropy(_SECRET_BYTES)), created_at=self._clock()
        )


def _disabled_at(item: tuple[str, datetime]) -> datetime:
    return item[1]
