"""An owner's signing secret, and the URLs that want nothing more."""

from datetime import timedelta

from msgspec import structs

from bus.port import Conflict, Row, Table
from edge.outbound.signature import is_secret, make_secret
from edge.services.clock import Clock, Entropy
from edge.services.refusals import refusing
from schemas.errors import FieldError, Refused
from schemas.webhook import KEPT_DISABLED, Hooks

ROTATION = timedelta(hours=24)  # how long the old secret signs too
_SECRET_BYTES = 32
_TRIES = 20


class Secrets:
    """`default`: the secret of owners who have set none; empty: each gets one of its own when it is first needed."""

    def __init__(self, table: Table[Hooks], clock: Clock, entropy: Entropy, default: str = "") -> None:
        self._table = table
        self._clock = clock
        self._entropy = entropy
        self._default = default

    async def of(self, owner: str) -> Hooks:
        """What holds for `owner` now. Raises BusError."""
        row = await self._table.get(owner)
        if row is not None:
            return row.value
        if self._default:
            return self._fresh(self._default)
        made = self._fresh(make_secret(self._entropy(_SECRET_BYTES)))
        try:
            await self._table.create(owner, made)
        except Conflict:  # another edge was first
            return await self.of(owner)
        return made

    async def rotate(self, owner: str, secret: str | None = None) -> Hooks:
        """A new secret, the client's or a random one; the old one signs beside it for ROTATION. Raises Refused."""
        if secret is not None and not is_secret(secret):
            fault = FieldError("$.secret", "is not whsec_ and 24 to 64 bytes in base64")
            raise Refused("input_invalid", f"{fault.path}: {fault.message}", errors=(fault,))
        fresh = secret or make_secret(self._entropy(_SECRET_BYTES))
        now = self._clock()
        with refusing():
            old = (await self.of(owner)).secret
            return await self._change(owner, secret=fresh, made_at=now, previous=old, previous_until=now + ROTATION)

    async def disable(self, owner: str, url: str) -> None:
        """The receiver at `url` said that it is gone: nothing of this owner goes there any more. Raises BusError."""
        known = (await self.of(owner)).disabled
        kept = dict(sorted({**known, url: self._clock()}.items(), key=lambda item: item[1])[-KEPT_DISABLED:])
        await self._change(owner, disabled=kept)

    async def enable(self, owner: str, url: str) -> None:
        """It is back. Raises BusError."""
        known = (await self.of(owner)).disabled
        if url in known:
            await self._change(owner, disabled={other: at for other, at in known.items() if other != url})

    async def _change(self, owner: str, **fields: object) -> Hooks:
        for _ in range(_TRIES):
            row: Row[Hooks] | None = await self._table.get(owner)
            changed: Hooks = structs.replace(await self.of(owner) if row is None else row.value, **fields)
            try:
                if row is None:
                    await self._table.create(owner, changed)
                else:
                    await self._table.update(owner, changed, row.revision)
            except Conflict:
                continue
            return changed
        raise Conflict(f"the webhook settings of {owner} changed {_TRIES} times meanwhile")

    def _fresh(self, secret: str) -> Hooks:
        return Hooks(secret=secret, made_at=self._clock())
