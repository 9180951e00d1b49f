"""Secrets of owners and of the installation: set, list, delete, and open those of one job for its host.

A value is sealed in the broker's bucket SECRETS with a key of `edge.owners.secret_keys`. Only `open_for_job` opens it.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

import structlog
from anyio import sleep, to_thread
from msgspec import Struct

from bus.compare_and_set import update_row
from bus.interface import BusError, RowUnreadable, Table
from edge.core.clock import Clock
from edge.core.concurrency import translate_errors
from edge.core.validation import input_invalid_problem
from edge.owners.secret_keys import SealedText, SecretKeyFile, SecretKeysUnusable, SecretUnreadable
from schemas.endpoint import Endpoint
from schemas.endpoint_parts import (
    OWNER_SECRETS_LIMIT,
    SECRET_LEAST_BYTES,
    SECRET_LIMIT_BYTES,
    StoredSecret,
    is_secret_name,
    is_secret_value,
)
from schemas.problems import FieldError, ProblemError

CHECK_INTERVAL_S = 10.0  # between two looks for secrets that this edge cannot open
OLD_KEY_KEPT_S = 60.0  # after a change of the key file: every edge that shares it has read it, and no request is older

_log = structlog.get_logger()


class SecretSettings(Struct, frozen=True):
    """The `[secrets]` section: the key file that seals the secrets of jobs."""

    key_file: Path | None = None
    """File of the keys that seal secrets; every edge needs the same content. Unset: `secrets.key` in `data`. An edge
    creates it if it does not exist.
    """


class SecretFacts(Struct, frozen=True, kw_only=True):
    """A secret without its value. `owner`: None for one of the installation."""

    name: str
    owner: str | None
    set_at: datetime
    set_by: str


class KeyRotationFacts(Struct, frozen=True, kw_only=True):
    """The keys of this edge after a step of a rotation: the one that seals, those that only open, and their file.

    `sealed`: how many secrets the first key seals.
    """

    key_id: str
    old_key_ids: tuple[str, ...]
    sealed: int
    file: str


class SecretStore:
    """The secrets in the broker's bucket SECRETS. `owner` None means: of the installation."""

    def __init__(self, table: Table[StoredSecret], key_file: SecretKeyFile, clock: Clock) -> None:
        self._table = table
        self._key_file = key_file
        self._clock = clock
        self._faults: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """The secrets that this edge cannot open, one line for each key that it lacks; as of the last check."""
        return self._faults

    async def list(self, owner: str | None) -> list[SecretFacts]:
        """Return the secrets by name. Raises ProblemError."""
        prefix = secret_prefix(owner)
        with translate_errors():
            rows = await self._table.rows(prefix)
        return [
            SecretFacts(name=key.removeprefix(prefix), owner=owner, set_at=row.value.set_at, set_by=row.value.set_by)
            for key, row in sorted(rows.items())
        ]

    async def set(self, owner: str | None, name: str, value: str, by: str) -> SecretFacts:
        """Store the secret in place of an earlier value. Raises ProblemError."""
        _check_name(name)
        _check_value(value)
        key = f"{secret_prefix(owner)}{name}"
        with translate_errors():
            keys = await self._table.keys(f"{secret_prefix(owner)}>")
            if key not in keys and len(keys) >= OWNER_SECRETS_LIMIT:
                raise ProblemError(
                    "quota_exceeded", f"an owner has at most {OWNER_SECRETS_LIMIT} secrets: delete one, then try again"
                )
            await self._refuse_second_key()
            stored = self._seal(key, value, self._clock(), by)
            await self._table.put(key, stored)
        return SecretFacts(name=name, owner=owner, set_at=stored.set_at, set_by=stored.set_by)

    async def delete(self, owner: str | None, name: str) -> None:
        """Erase the secret. Raises ProblemError `not_found`."""
        key = f"{secret_prefix(owner)}{name}"
        with translate_errors():
            if not is_secret_name(name) or not await self._table.keys(key):
                raise ProblemError("not_found", f"there is no secret {name}: GET /v1/secrets lists the names")
            await self._table.delete(key)

    async def delete_owner(self, owner: str) -> int:
        """Erase all secrets of an owner; return how many there were. Raises BusError."""
        keys = await self._table.keys(f"{secret_prefix(owner)}>")
        for key in keys:
            await self._table.delete(key)
        return len(keys)

    async def check_present(self, endpoint: Endpoint, owner: str) -> None:
        """Raise ProblemError `secret_missing` if a job of the owner would lack a secret of the endpoint."""
        if endpoint.secrets:  # most endpoints name none, and each submit comes here
            await self._find_rows(endpoint, owner)

    async def open_for_job(self, endpoint: Endpoint, owner: str) -> Mapping[str, str]:
        """Return the values of the secrets that the endpoint names. Raises ProblemError `secret_missing`."""
        opened: dict[str, str] = {}
        for name, (key, stored) in (await self._find_rows(endpoint, owner)).items():
            if stored.key_id not in self._key_file.keys:
                await self._reload_keys()  # another edge may have replaced the key a moment ago
            if stored.key_id not in self._key_file.keys:
                raise _unreadable(name, _explain_missing_key(stored.key_id))
            try:
                opened[name] = self._key_file.keys.open(key, SealedText(stored.key_id, stored.nonce, stored.sealed))
            except SecretUnreadable as error:
                raise _unreadable(name, "the stored bytes are damaged: set the secret again") from error
        return opened

    async def _find_rows(self, endpoint: Endpoint, owner: str) -> dict[str, tuple[str, StoredSecret]]:
        """Return key and row of each secret by name: the owner's own, else that of the installation."""
        names = dict.fromkeys(endpoint.secrets)
        rows = await asyncio.gather(*(self._find(endpoint, owner, name) for name in names))
        found = dict(zip(names, rows, strict=True))
        missing = [name for name, row in found.items() if row is None]
        if missing:
            raise _secret_missing(endpoint, missing)
        return {name: row for name, row in found.items() if row is not None}

    async def _find(self, endpoint: Endpoint, owner: str, name: str) -> tuple[str, StoredSecret] | None:
        for holder in (owner, None) if endpoint.uses_owner_secrets else (None,):
            key = f"{secret_prefix(holder)}{name}"
            with translate_errors():
                row = await self._table.get(key)
            if row is not None:
                return key, row.value
        return None

    async def run(self) -> None:
        """Seal again what an older key sealed, and look for secrets that this edge cannot open, until cancelled."""
        while True:
            try:
                await self.check_keys()
            except BusError as error:
                _log.warning("secret_check_failed", error=str(error))
            await sleep(CHECK_INTERVAL_S)

    async def check_keys(self) -> None:
        """Make one pass of `run`. Raises BusError."""
        problem = await self._reload_keys()
        rows = {key: row.value for key, row in (await self._table.rows()).items()}
        unknown: dict[str, list[str]] = {}
        for key, stored in rows.items():
            if stored.key_id not in self._key_file.keys:
                unknown.setdefault(stored.key_id, []).append(key)
            elif stored.key_id != self._key_file.keys.sealing_id:
                await self._seal_again(key)
        faults = {
            f"{len(keys)} secrets cannot be read by this edge: {_explain_missing_key(key_id)}": keys
            for key_id, keys in sorted(unknown.items())
        }
        if problem is not None:
            faults[problem] = []
        for fault in faults.keys() - set(self._faults):
            _log.error("secrets_unreadable", names=sorted(faults[fault]), reason=fault)
        self._faults = tuple(faults)

    async def _reload_keys(self) -> str | None:
        """Read the key file again if it has changed; return why it cannot be used. The keys are then as before."""
        try:
            await to_thread.run_sync(self._key_file.reload)
        except SecretKeysUnusable as error:
            return str(error)
        return None

    async def rotate_key(self) -> KeyRotationFacts:
        """Seal all secrets with a new key. The old one stays in the file and opens, until `finish_rotation`.

        If an older key is in the file already, an earlier call did not finish: it is continued. Raises ProblemError.
        """
        with translate_errors():
            await self._refuse_second_key()
            await self._change_file(self._key_file.add_key)
            await self._refuse_second_key()
        return await self._describe_keys()

    async def finish_rotation(self) -> KeyRotationFacts:
        """Remove the old keys from the file. Raises ProblemError `unavailable` as long as one may be in use."""
        with translate_errors():
            await self._refuse_second_key()
            if self._key_file.keys.old_ids:
                await self._refuse_old_seals()
                left_s = OLD_KEY_KEPT_S - await to_thread.run_sync(self._key_file.age_s, self._clock().timestamp())
                if left_s > 0:
                    raise ProblemError(
                        "unavailable",
                        f"another edge may still use the old key: finish the rotation in {math.ceil(left_s)} s",
                        retry_after_s=math.ceil(left_s),
                    )
                await self._change_file(self._key_file.remove_old_keys)
        return await self._describe_keys()

    async def _refuse_old_seals(self) -> None:
        """Raise ProblemError `unavailable` if an old key sealed a secret that could not be sealed again."""
        sealing = self._key_file.keys.sealing_id
        damaged = sorted(key for key, row in (await self._table.rows()).items() if row.value.key_id != sealing)
        if damaged:
            names = ", ".join(damaged)
            raise ProblemError(
                "unavailable",
                f"an old key is still needed: the stored bytes of {names} are damaged, delete these secrets",
            )

    async def _change_file(self, change: Callable[[], None]) -> None:
        try:
            await to_thread.run_sync(change)
        except SecretKeysUnusable as error:
            raise ProblemError("not_set_up", str(error)) from error

    async def _describe_keys(self) -> KeyRotationFacts:
        with translate_errors():
            rows = await self._table.rows()
        keys, file = self._key_file.keys, str(self._key_file.path)
        sealed = sum(row.value.key_id == keys.sealing_id for row in rows.values())
        return KeyRotationFacts(key_id=keys.sealing_id, old_key_ids=keys.old_ids, sealed=sealed, file=file)

    async def _seal_again(self, key: str) -> None:
        def seal(stored: StoredSecret | None) -> StoredSecret | None:
            if stored is None or stored.key_id == self._key_file.keys.sealing_id:
                return None
            value = self._key_file.keys.open(key, SealedText(stored.key_id, stored.nonce, stored.sealed))
            return self._seal(key, value, stored.set_at, stored.set_by)

        try:
            await update_row(self._table, key, seal)
        except (SecretUnreadable, RowUnreadable) as error:
            _log.error("secret_unreadable", name=key, error=str(error))

    async def _refuse_second_key(self) -> None:
        """Refuse to seal with a key that is not the one of the other edges. Raises ProblemError `unavailable`."""
        await self.check_keys()
        if self._faults:
            raise ProblemError("unavailable", f"this edge cannot store secrets: {self._faults[0]}")

    def _seal(self, key: str, value: str, at: datetime, by: str) -> StoredSecret:
        sealed = self._key_file.keys.seal(key, value)
        return StoredSecret(key_id=sealed.key_id, nonce=sealed.nonce, sealed=sealed.sealed, set_at=at, set_by=by)


def secret_prefix(owner: str | None) -> str:
    """Return what the keys of an owner's rows in SECRETS begin with; None: of those of the installation."""
    return "installation." if owner is None else f"owner.{owner}."


def _check_name(name: str) -> None:
    if not is_secret_name(name):
        raise ProblemError(
            "input_invalid",
            "the name of a secret must have 1 to 64 characters of A-Z a-z 0-9 _, the first one no digit",
        )


def _check_value(value: str) -> None:
    if is_secret_value(value):
        return
    reason = (
        f"must be a text of {SECRET_LEAST_BYTES} to {SECRET_LIMIT_BYTES} bytes without NUL: a shorter one could not be "
        "masked in logs, and anything else can be encoded, for example with base64"
    )
    raise input_invalid_problem(FieldError("$.value", reason))


def _secret_missing(endpoint: Endpoint, names: Iterable[str]) -> ProblemError:
    """Return the refusal, which says which command sets the secrets."""
    listed = ", ".join(names)
    if endpoint.uses_owner_secrets:
        detail = f"{endpoint.name} needs secrets that are not set ({listed}): lamplighter secrets set NAME"
    else:
        detail = (
            f"{endpoint.name} runs jobs of several owners in one container and needs secrets of the installation that "
            f"are not set ({listed}): lamplighter secrets set NAME --installation"
        )
    return ProblemError("secret_missing", detail)


def _explain_missing_key(key_id: str) -> str:
    """Return what to do about secrets that were sealed with a key that the edge's file does not have."""
    return (
        f"the key {key_id} sealed them, and the key file of this edge ([secrets] key_file) does not have it: copy that "
        "file from an edge that can read them, or delete them and set them again"
    )


def _unreadable(name: str, why: str) -> ProblemError:
    return ProblemError("unavailable", f"the secret {name} cannot be read: {why}")
