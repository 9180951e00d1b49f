"""API keys: create, list, rotate and revoke them, and authenticate the credential of each request."""

import base64
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from functools import partial
from hmac import compare_digest
from typing import NamedTuple

import structlog
from anyio import sleep
from msgspec import structs

from bus.compare_and_set import update_row
from bus.interface import BusError, RevisionConflict, RowUnreadable, Table, TableRow
from edge.core.clock import Clock, Entropy
from schemas.credentials import ApiKey, Scope, hash_secret, parse_credential
from schemas.job import is_token
from schemas.problems import ProblemError

CACHE_TTL_S = 5.0  # a revoked key works at most this long at another edge
ROTATION_GRACE = timedelta(hours=24)  # default time for which the previous secret is also accepted
LAST_USE_INTERVAL = timedelta(minutes=5)  # minimum interval between two writes of a key's last use
_LAST_USE_WRITE_INTERVAL_S = 60.0
_CACHE_LIMIT = 10_000  # key ids; a client that tries many ids must not fill the memory
_ID_BYTES = 6
_SECRET_BYTES = 32
_ADMIN_NAME = "admin"  # owner and id of the first key
_NO_DIGEST = "0" * 64  # not the digest of any known secret; compared instead of a digest that does not exist

_log = structlog.get_logger()


class IssuedApiKey(NamedTuple):
    """A new key. `text`: the credential; it is shown once and not stored."""

    key: ApiKey
    text: str


class _CachedKey(NamedTuple):
    row: TableRow[ApiKey] | None
    read_at: float


class ApiKeyStore:
    """The keys in the bucket KEYS, behind a cache of CACHE_TTL_S. `monotonic`: in seconds."""

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
        """Create a key of `owner` with a random id. Raises BusError."""
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
        """Set a new secret; accept the previous one for `grace`. Raises ProblemError `not_found`; BusError."""
        secret, now = self._secret(), self._clock()

        def rotate(key: ApiKey | None) -> ApiKey | None:
            return key and structs.replace(
                key,
                secret_sha256=hash_secret(secret),
                previous_sha256=key.secret_sha256 if grace else None,
                previous_until=now + grace if grace else None,
            )

        row = (await update_row(self._table, key_id, rotate)).row if is_token(key_id) else None
        if row is None:
            raise _key_not_found(key_id)
        self._cache.pop(key_id, None)
        return IssuedApiKey(row.value, f"lamp_{key_id}_{secret}")

    async def bind(self, key_id: str, host: str) -> None:
        """Restrict a host's key that an earlier release made to the jobs of `host`. Raises BusError."""

        def bind(key: ApiKey | None) -> ApiKey | None:
            return None if key is None or key.host is not None else structs.replace(key, host=host)

        await update_row(self._table, key_id, bind)
        self._cache.pop(key_id, None)

    async def bootstrap(self) -> IssuedApiKey | None:
        """Create the first admin key if the installation has no key; return None otherwise.

        The id is fixed: of two edges that start at the same time, only one creates the key. Raises BusError.
        """
        if await self._table.keys():
            return None
        try:
            return await self._create(_ADMIN_NAME, _ADMIN_NAME, (Scope.ADMIN,), "first key", None, None)
        except RevisionConflict:
            return None

    async def list(self, owner: str | None = None) -> list[ApiKey]:
        """Return the keys of `owner`, or all keys, oldest first. Raises BusError."""
        rows = await self._table.rows()
        keys = [row.value for row in rows.values() if owner in (None, row.value.owner)]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> None:
        """Delete the key; other edges refuse it within CACHE_TTL_S. Raises ProblemError `not_found`; BusError."""
        if not is_token(key_id) or not await self._table.keys(key_id):
            raise _key_not_found(key_id)
        await self._table.delete(key_id)
        self._cache.pop(key_id, None)

    async def authenticate(self, text: str) -> ApiKey | None:
        """Return the key of a credential; None if it is malformed, unknown, revoked or expired. Raises BusError."""
        credential = parse_credential(text)
        if credential is None:
            return None
        digest, cached = hash_secret(credential.secret), self._cached(credential.id)
        key = self._match(cached, digest)
        if key is None:  # a failure answered from the cache would show by its duration that the id exists
            key = self._match(await self._read_and_cache(credential.id), digest)
        return None if key is None else self._if_active(key)

    def _match(self, cached: _CachedKey | None, digest: str) -> ApiKey | None:
        """Return the key if it accepts a secret with this digest. Every failure takes two comparisons."""
        key = None if cached is None or cached.row is None else cached.row.value
        accepted = () if key is None else key.accepted_digests(self._clock())
        return key if any(compare_digest(digest, one) for one in (*accepted, _NO_DIGEST, _NO_DIGEST)[:2]) else None

    async def get(self, key_id: str) -> ApiKey | None:
        """Return the key with this id; None if it does not exist, was revoked, or has expired. Raises BusError."""
        cached = self._cached(key_id) or await self._read_and_cache(key_id)
        return None if cached.row is None else self._if_active(cached.row.value)

    def _if_active(self, key: ApiKey) -> ApiKey | None:
        now = self._clock()
        if key.expires_at is not None and now >= key.expires_at:
            return None
        self._last_uses[key.id] = now
        return key

    async def run(self) -> None:
        """Write when keys were last used, every minute until cancelled, so that requests do not wait for it."""
        while True:
            await sleep(_LAST_USE_WRITE_INTERVAL_S)
            try:
                await self.write_last_uses()
            except BusError as error:
                _log.warning("key_use_write_failed", error=str(error))

    async def write_last_uses(self) -> None:
        """Write the last use of each key used here, at most every LAST_USE_INTERVAL for one key. Raises BusError."""
        used, self._last_uses = self._last_uses, {}
        for key_id, at in used.items():
            await update_row(self._table, key_id, partial(_with_use, at=at))

    def _cached(self, key_id: str) -> _CachedKey | None:
        """Return the cache entry unless it is older than CACHE_TTL_S."""
        entry = self._cache.get(key_id)
        return None if entry is None or self._monotonic() - entry.read_at > CACHE_TTL_S else entry

    async def _read_and_cache(self, key_id: str) -> _CachedKey:
        """Read the row and cache it, also if it does not exist."""
        now = self._monotonic()
        row = await self._read_row(key_id)
        if len(self._cache) >= _CACHE_LIMIT:
            self._cache.clear()
        entry = self._cache[key_id] = _CachedKey(row, now)
        return entry

    async def _read_row(self, key_id: str) -> TableRow[ApiKey] | None:
        """Return the row; None also for a row that cannot be decoded, because such a key must not be accepted."""
        try:
            return await self._table.get(key_id)
        except RowUnreadable as error:
            _log.error("key_unreadable", key=key_id, error=str(error))
            return None


def _with_use(key: ApiKey | None, at: datetime) -> ApiKey | None:
    """Return the key with `at` as its last use; None if there is nothing to write.

    That is so if the key does not exist, or if its stored last use is less than LAST_USE_INTERVAL before `at`.
    """
    if key is None or (key.used_at is not None and at - key.used_at < LAST_USE_INTERVAL):
        return None
    return structs.replace(key, used_at=at)


def _key_not_found(key_id: str) -> ProblemError:
    return ProblemError("not_found", f"the key {key_id!r} does not exist")
