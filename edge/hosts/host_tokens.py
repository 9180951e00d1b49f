"""Join tokens that many hosts share: create, list and revoke them, and let hosts join with them.

A host that joins gets a key and a broker account of its own (`edge.hosts.enrollment`), so that it can be removed alone.
Unless the token says otherwise, it is removed when its runner ends: a thousand pilots leave no thousand accounts.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import NamedTuple

import structlog
from anyio import Lock, sleep
from msgspec.structs import replace

from bus.compare_and_set import update_row
from bus.interface import Bus, BusError, RowUnreadable, TableRow
from edge.core.clock import Clock, Entropy, micros
from edge.hosts.enrollment import HostEnrollment, SharedJoin
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.owners.audit_log import AuditLog
from schemas.credentials import EnrolledHost, HostToken, JoinRequest, JoinToken, SharedJoinToken, hash_secret
from schemas.installation import BY_EDGE, AuditAction
from schemas.problems import ProblemError

_ID_BYTES = 6
_SECRET_BYTES = 32
_HOST_ID_DIGITS = 8
_HOST_ID_LIMIT = 64
_KEPT_AFTER_END = timedelta(days=30)  # for how long a token is listed that no host can join with any more
_CHECK_INTERVAL_S = 15.0
_ACTIVE_JOBS_LIMIT = 1_000_000  # running jobs are bounded by the slots

_log = structlog.get_logger()


class HostTokenTerms(NamedTuple):
    """The terms of a new token. The fields are those of `HostToken`; `ttl`: how long hosts may join."""

    uses: int
    ttl: timedelta
    prefix: str
    pool: str | None = None
    keeps_hosts: bool = False


class HostTokens:
    """The tokens in the bucket HOST_TOKENS. `declared`: the hosts that the edge powers on and off."""

    def __init__(
        self, bus: Bus, enrollment: HostEnrollment, declared: Collection[str], clock: Clock, entropy: Entropy
    ) -> None:
        self._bus = bus
        self._enrollment = enrollment
        self._declared = declared
        self._clock = clock
        self._entropy = entropy
        self._count_lock = Lock()  # many hosts join at the same time: here they would only conflict

    async def create(self, terms: HostTokenTerms, by: str) -> tuple[HostToken, SharedJoinToken]:
        """Create a token. Only the second value contains the secret. Raises ProblemError `not_set_up`; BusError."""
        secret = base64.urlsafe_b64encode(self._entropy(_SECRET_BYTES)).rstrip(b"=").decode()
        now = self._clock()
        token = HostToken(
            id=self._entropy(_ID_BYTES).hex(),
            secret_sha256=hash_secret(secret),
            uses=terms.uses,
            created_at=now,
            expires_at=now + terms.ttl,
            prefix=terms.prefix,
            by=by,
            pool=terms.pool,
            keeps_hosts=terms.keeps_hosts,
        )
        shared = self._enrollment.make_shared_token(token, secret)
        await self._bus.host_tokens.create(token.id, token)
        return token, shared

    async def list(self) -> list[tuple[HostToken, int]]:
        """Return each token, oldest first, and how many of its hosts are enrolled now. Raises BusError."""
        enrolled = Counter(row.value.host_token for row in (await self._bus.enrolled_hosts.rows()).values())
        tokens = [row.value for row in (await self._bus.host_tokens.rows()).values()]
        return [(token, enrolled[token.id]) for token in sorted(tokens, key=lambda one: (one.created_at, one.id))]

    async def revoke(self, token_id: str) -> None:
        """Let no further host join with the token; those that have joined stay. Raises ProblemError `not_found`."""
        now = self._clock()

        def revoke(token: HostToken | None) -> HostToken | None:
            return token and replace(token, revoked_at=token.revoked_at or now)

        if (await update_row(self._bus.host_tokens, token_id, revoke)).row is None:
            raise ProblemError("not_found", f"there is no join token {token_id}: `lamplighter hosts token list`")

    async def remove_hosts(self, token_id: str) -> tuple[str, ...]:
        """Remove all hosts that have joined with the token, and return them. Raises ProblemError; BusError.

        Jobs that run there go back to the queue. A repeated call removes those that an error left.
        """
        rows = await self._bus.enrolled_hosts.rows()
        joined = tuple(sorted(host for host, row in rows.items() if row.value.host_token == token_id))
        for host in joined:
            with suppress(ProblemError):  # it has just ended by itself
                await self._enrollment.remove(host, comes_back=host in self._declared)
        return joined

    async def join(self, request: JoinRequest) -> JoinToken | None:
        """Enroll the host of a runner that has a shared token; None if token or secret are wrong.

        The same runner may ask again: it gets new credentials for the same host and takes no other use. Raises
        ProblemError with the reason for which no host may join, `conflict` for a host id that is taken, `input_invalid`
        for one that does not begin with the prefix, and what `HostEnrollment.add` raises.
        """
        token = await self._authenticate(request)
        if token is None:
            return None
        instance = hashlib.sha256(request.instance.encode()).hexdigest()
        host = _choose_host_id(token, request.host, instance)
        row = await self._read_row(host)
        if row is not None and row.value.host_token == token.id and row.value.instance_sha256 == instance:
            if token.revoked_at is not None:
                raise _refused(token, "join_token_revoked")
            return await self._enrollment.enroll(host, SharedJoin(token, instance), row)
        await self._check_is_free(host, row, token)
        token = await self._take_use(token.id)
        try:
            return await self._enrollment.enroll(host, SharedJoin(token, instance), row)
        except (BusError, ProblemError):
            with suppress(BusError):
                await update_row(self._bus.host_tokens, token.id, _with_one_use_less)
            raise

    async def _authenticate(self, request: JoinRequest) -> HostToken | None:
        try:
            row = await self._bus.host_tokens.get(request.token)
        except RowUnreadable as error:
            _log.error("host_token_unreadable", token=request.token, error=str(error))
            return None
        digest = hash_secret(request.secret)
        return row.value if row is not None and compare_digest(row.value.secret_sha256, digest) else None

    async def _read_row(self, host: str) -> TableRow[EnrolledHost] | None:
        try:
            return await self._bus.enrolled_hosts.get(host)
        except RowUnreadable as error:
            raise _taken(host) from error

    async def _check_is_free(self, host: str, row: TableRow[EnrolledHost] | None, token: HostToken) -> None:
        """Raise ProblemError `conflict` unless the id is free, or that of a host of this token that has ended.

        A pilot that was killed could not say that it ended, and the next one has its name.
        """
        if row is None:
            return
        if row.value.host_token != token.id:
            raise _taken(host)
        if await self._bus.heartbeats.keys(host):
            raise ProblemError(
                "conflict", f"another runner is online as {host}: stop it, or wait until its heartbeat has expired"
            )

    async def _take_use(self, token_id: str) -> HostToken:
        """Count one more use, and return the token. Of two hosts that want the last use, one gets it."""
        now = self._clock()

        def take(token: HostToken | None) -> HostToken | None:
            if token is None:
                return None
            if (code := token.refusal(now)) is not None:
                raise _refused(token, code)
            return replace(token, used=token.used + 1)

        async with self._count_lock:
            taken = (await update_row(self._bus.host_tokens, token_id, take)).row
        if taken is None:
            raise ProblemError("not_found", f"there is no join token {token_id}: `lamplighter hosts token list`")
        return taken.value

    async def leave(self, host: str) -> bool:
        """Remove a host whose runner ends; return whether it was there. Raises ProblemError `conflict`; BusError.

        `conflict`: the host did not join with a token that removes its hosts.
        """
        row = await self._read_row(host)
        if row is None:
            return False
        if not row.value.leaves_at_end:
            raise ProblemError("conflict", f"{host} stays enrolled: `lamplighter hosts remove {host}` removes it")
        await self._enrollment.remove(host, comes_back=host in self._declared)
        return True

    async def delete_ended_tokens(self) -> None:
        """Delete the tokens that expired or were revoked long ago. Raises BusError."""
        before = self._clock() - _KEPT_AFTER_END
        for token_id, row in (await self._bus.host_tokens.rows()).items():
            if min(row.value.expires_at, row.value.revoked_at or row.value.expires_at) < before:
                await self._bus.host_tokens.delete(token_id)


class SilentHostRemover:
    """Removes hosts that joined with a shared token and ended without saying so, such as pilots that were killed."""

    def __init__(  # noqa: PLR0913, PLR0917 - it asks each of these before it removes a host
        self,
        bus: Bus,
        tokens: HostTokens,
        index: JobIndex,
        audit: AuditLog,
        clock: Clock,
        silent_for: timedelta,
    ) -> None:
        self._bus = bus
        self._tokens = tokens
        self._index = index
        self._audit = audit
        self._clock = clock
        self._silent_for = silent_for
        self._silent_since: dict[str, datetime] = {}

    async def run(self) -> None:
        """Remove hosts that ended or are silent, until cancelled."""
        while True:
            await sleep(_CHECK_INTERVAL_S)
            try:
                await self.sweep()
            except (BusError, ProblemError) as error:
                _log.warning("silent_host_removal_failed", error=str(error))

    async def sweep(self) -> None:
        """Remove the hosts that were silent for long enough and hold no job. Raises BusError, ProblemError.

        Only silence that this edge has watched without a gap counts: after an outage of the broker it starts at zero.
        """
        rows = await self._bus.enrolled_hosts.rows()
        present = await self._bus.heartbeats.keys()
        now = self._clock()
        watched_since = now - timedelta(seconds=self._bus.health.uptime_s())
        silent = {host for host, row in rows.items() if row.value.leaves_at_end and host not in present}
        self._silent_since = {
            host: max(self._silent_since.get(host, now), watched_since, rows[host].value.at) for host in silent
        }
        due = {host for host, since in self._silent_since.items() if now - since >= self._silent_for}
        for host in sorted(due - await self._hosts_with_jobs(due)):
            if await self._tokens.leave(host):
                await self._audit.record(
                    AuditAction.HOST_LEFT, host, by=BY_EDGE, client="", details={"reason": "silent"}
                )
        await self._tokens.delete_ended_tokens()

    async def _hosts_with_jobs(self, hosts: Collection[str]) -> set[str]:
        if not hosts:
            return set()
        active = await self._index.find_jobs(sql.ACTIVE, micros(self._clock()), _ACTIVE_JOBS_LIMIT)
        return {entry.record.job.claim.host for entry in active if entry.record.job.claim is not None}


def _choose_host_id(token: HostToken, wanted: str | None, instance_sha256: str) -> str:
    """Return the id of a host: the wanted one, or one made of the prefix and the runner's instance."""
    if wanted is None:
        return f"{token.prefix[: _HOST_ID_LIMIT - 1 - _HOST_ID_DIGITS]}-{instance_sha256[:_HOST_ID_DIGITS]}"
    if not wanted.startswith(f"{token.prefix}-"):
        raise ProblemError(
            "input_invalid",
            f"a host that joins with this token cannot be called {wanted}: its id must begin with {token.prefix}-",
        )
    return wanted


def _with_one_use_less(token: HostToken | None) -> HostToken | None:
    return token and replace(token, used=max(0, token.used - 1))


def _refused(token: HostToken, code: str) -> ProblemError:
    remedy = "make a new one with `lamplighter hosts token`"
    if code == "join_token_revoked":
        return ProblemError(code, f"the join token {token.id} was revoked: {remedy}")
    if code == "join_token_expired":
        return ProblemError(
            code, f"the join token {token.id} expired at {token.expires_at:%Y-%m-%d %H:%M} UTC: {remedy}"
        )
    return ProblemError(code, f"{token.used} hosts have joined with the join token {token.id}, its limit: {remedy}")


def _taken(host: str) -> ProblemError:
    return ProblemError(
        "conflict", f"{host} is enrolled already, and not with this token: choose another id, or remove that host"
    )
