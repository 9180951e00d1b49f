"""API keys: made, listed, rotated, revoked, and told from a stranger's at every request (PROTOCOLS 1)."""

import base64
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import NamedTuple

import structlog
from anyio import sleep
from msgspec import structs

from bus.interface import BusError, RevisionConflict, RowUnreadable, Table, TableRow
from edge.core.clock import Clock, Entropy
from schemas.auth import ApiKey, Scope, hash_secret, parse_credential
from schemas.ids import is_token
from schemas.problems import ProblemError

CACHE_TTL_S = 5.0  # a revoked key works at most this long
ROTATION_GRACE = timedelta(hours=24)  # how long the secret before opens too, unless told otherwise
LAST_USE_INTERVAL = timedelta(minutes=5)  # a key's last use is written no more often
_LAST_USE_WRITE_INTERVAL_S = 60.0
_CONFLICT_RETRIES_LIMIT = 20
_CACHE_LIMIT = 10_000  # ids; a stranger who tries many must not fill the memory
_ID_BYTES = 6
_SECRET_BYTES = 32
_ADMIN_NAME = "admin"  # owner and id of the first key
_NOBODYS = "0" * 64  # the digest of no known secret: it is compared where a key has none, or is not there

_log = structlog.get_logger()


class IssuedApiKey(NamedTuple):
    """A key just made; `text` is shown once and stored nowhere."""

    key: ApiKey
    text: str


class _CachedKey(NamedTuple):
    row: TableRow[ApiKey] | None
    read_at: float


class ApiKeyStore:
    """The bucket KEYS, with a cache of at most CACHE_S. `monotonic` in seconds."""

    def __init__(self, table: Table[ApiKey], clock: Clock, entropy: Entropy, monotonic: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock
        self._entropy = entropy
        self._monotonic = monotonic
        self._cache: dict[str, _CachedKey] = {}
        self._last_uses: dict[str, datetime] = {}

    async def create(  # noqa: PLR0913 - the fields of a key
        self,
        owner: str,
        scopes: Collection[Scope],
        *,
        name: str = "",
        expires_at: datetime | None = None,
        language: str | None = None,
        host: str | None = None,
    ) -> IssuedApiKey:
        """A new key of `owner`, under a random id. Raises BusError."""
        return await self._create(self._entropy(_ID_BYTES).hex(), owner, scopes, name, expires_at, language, host)

    async def _create(  # noqa: PLR0913, PLR0917 - the fields of a key
        self,
        key_id: str,
        owner: str,
        scopes: Collection[Scope],
        name: str,
        expires_at: datetime | None,
        language: str | None,
        host: str | None = None,
    ) -> IssuedApiKey:
        secret = self._secret()
        key = ApiKey(
            id=key_id,
            owner=owner,
            scopes=tuple(sorted(set(scopes))),
            secret_sha256=hash_secret(secret),
            created_at=self._clock(),
            expires_at=expires_at,
            name=name,
            language=language,
            host=host,
        )
        await self._table.create(key_id, key)
        self._cache.pop(key_id, None)
        return IssuedApiKey(key, f"lamp_{key_id}_{secret}")

    def _secret(self) -> str:
        return base64.urlsafe_b64encode(self._entropy(_SECRET_BYTES)).rstrip(b"=").decode()

    async def rotate(self, key_id: str, grace: timedelta = ROTATION_GRACE) -> IssuedApiKey:
        """A new secret for the key; the one before opens too for `grace`. Raises Refused `not_found`; BusError."""
        for _ in range(_CONFLICT_RETRIES_LIMIT):
            row = await self._table.get(key_id) if is_token(key_id) else None
            if row is None:
                raise _key_not_found(key_id)
            secret = self._secret()
            key = structs.replace(
                row.value,
                secret_sha256=hash_secret(secret),
                previous_sha256=row.value.secret_sha256 if grace else None,
                previous_until=self._clock() + grace if grace else None,
            )
            with suppress(RevisionConflict):
                await self._table.update(key_id, key, row.revision)
                self._cache.pop(key_id, None)
                return IssuedApiKey(key, f"lamp_{key_id}_{secret}")
        raise RevisionConflict(f"the key {key_id} changed {_CONFLICT_RETRIES_LIMIT} times meanwhile")

    async def bind(self, key_id: str, host: str) -> None:
        """Restrict a host's key that an earlier release made to the jobs of `host`. Raises BusError."""
        row = await self._read_row(key_id)
        if row is not None and row.value.host is None:
            with suppress(RevisionConflict):  # another edge wrote the key at this moment: the next start binds it
                await self._table.update(key_id, structs.replace(row.value, host=host), row.revision)
            self._cache.pop(key_id, None)

    async def bootstrap(self) -> IssuedApiKey | None:
        """The first admin key where there is no key at all, else None.

        Under a fixed id, so that of two edges starting at once one makes it and the other stays silent.
        """
        if await self._table.keys():
            return None
        try:
            return await self._create(_ADMIN_NAME, _ADMIN_NAME, (Scope.ADMIN,), "first key", None, None)
        except RevisionConflict:
            return None

    async def list(self, owner: str | None = None) -> list[ApiKey]:
        """The keys of `owner`, or all, oldest first."""
        rows = await self._table.rows()
        keys = [row.value for row in rows.values() if owner in (None, row.value.owner)]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> None:
        """Remove the key: here at once, at other edges within CACHE_S. Raises Refused `not_found`."""
        if not is_token(key_id) or not await self._table.keys(key_id):
            raise _key_not_found(key_id)
        await self._table.delete(key_id)
        self._cache.pop(key_id, None)

    async def authenticate(self, text: str) -> ApiKey | None:
        """The key that `text` is, or None: malformed, unknown, wrong secret, revoked or expired. Raises BusError."""
        credential = parse_credential(text)
        if credential is None:
            return None
        given, seen = hash_secret(credential.secret), self._fresh(credential.id)
        key = self._opened(seen, given)
        if key is None:  # a failure answered from the cache would tell by its time that the id is in use
            key = self._opened(await self._look(credential.id), given)
        return None if key is None else self._if_active(key)

    def _opened(self, seen: _CachedKey | None, given: str) -> ApiKey | None:
        """The key, if the secret with the digest `given` opens it. A failure costs two comparisons."""
        key = None if seen is None or seen.row is None else seen.row.value
        opening = () if key is None else key.accepted_digests(self._clock())
        return key if any(compare_digest(given, one) for one in (*opening, _NOBODYS, _NOBODYS)[:2]) else None

    async def get(self, key_id: str) -> ApiKey | None:
        """The key of that id; None when there is none, or it was revoked or has expired. Raises BusError."""
        seen = self._fresh(key_id) or await self._look(key_id)
        return None if seen.row is None else self._if_active(seen.row.value)

    def _if_active(self, key: ApiKey) -> ApiKey | None:
        now = self._clock()
        if key.expires_at is not None and now >= key.expires_at:
            return None
        self._last_uses[key.id] = now
        return key

    async def run(self) -> None:
        """Write down when keys were last used, beside the requests, without end."""
        while True:
            await sleep(_LAST_USE_WRITE_INTERVAL_S)
            try:
                await self.write_last_uses()
            except BusError as error:
                _log.warning("uses_not_written", error=str(error))

    async def write_last_uses(self) -> None:
        """The last use of every key that was used here, unless one about as late is written. Raises BusError."""
        used, self._last_uses = self._last_uses, {}
        for key_id, at in used.items():
            row = await self._table.get(key_id)
            if row is None or (row.value.used_at is not None and at - row.value.used_at < LAST_USE_INTERVAL):
                continue
            with suppress(RevisionConflict):  # it was rotated, or another edge has written its use
                await self._table.update(key_id, structs.replace(row.value, used_at=at), row.revision)

    def _fresh(self, key_id: str) -> _CachedKey | None:
        """What the cache has of that id, unless it is too old."""
        seen = self._cache.get(key_id)
        return None if seen is None or self._monotonic() - seen.read_at > CACHE_TTL_S else seen

    async def _look(self, key_id: str) -> _CachedKey:
        """Read the row and keep it in the cache."""
        now = self._monotonic()
        row = await self._read_row(key_id)
        if len(self._cache) >= _CACHE_LIMIT:
            self._cache.clear()
        seen = self._cache[key_id] = _CachedKey(row, now)
        return seen

    async def _read_row(self, key_id: str) -> TableRow[ApiKey] | None:
        """The row; None also for one that cannot be read: it opens nothing."""
        try:
            return await self._table.get(key_id)
        except RowUnreadable as error:
            _log.error("key_unreadable", key=key_id, error=str(error))
            return None


def _key_not_found(key_id: str) -> ProblemError:
    return ProblemError("not_found", f"there is no key {key_id!r}")
