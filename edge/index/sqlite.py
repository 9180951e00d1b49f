"""The index's file: a mirror of STATE that SQLite can search. Thrown away and rebuilt at every start, so never synced.

Blocking; the index calls it in a thread, one call at a time. Whole batches go in and out as one JSON value: sqlite3
lets go of the interpreter at every row, and a thread beside a busy event loop waits milliseconds to get it back.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bus.interface import RecordChange, VersionedRecord
from edge.core.clock import micros
from edge.index.queue_ranks import QueueKey
from edge.index.row import (
    IndexRow,
    RowChange,
    expires_at,
    holder,
    input_digests,
    input_due_at,
    make_index_row,
    result_digests,
)
from schemas.events import decode_record, encode_record
from schemas.ids import JobKey
from schemas.job import Job, Pointer
from schemas.status import FINAL_STATUSES, Priority, Status

_Values = Sequence[object] | Mapping[str, object]

_SCHEMA = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA secure_delete = ON; -- what a deleted job said is overwritten in the file
PRAGMA cache_size = -32768;
CREATE TABLE jobs (
  job INTEGER PRIMARY KEY,
  owner TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL, status TEXT NOT NULL, endpoint TEXT NOT NULL,
  pool TEXT NOT NULL, priority TEXT NOT NULL, round INTEGER NOT NULL, queued_us INTEGER NOT NULL, backoff_us INTEGER,
  created_us INTEGER NOT NULL, due_us INTEGER, expires_us INTEGER, input_us INTEGER, finished_us INTEGER,
  holder TEXT, record TEXT NOT NULL);
CREATE UNIQUE INDEX job ON jobs (owner, id);
CREATE INDEX newest ON jobs (owner, created_us, id);
CREATE INDEX newest_in_status ON jobs (owner, status, created_us, id);
CREATE INDEX line ON jobs (owner, pool, priority, queued_us) WHERE status = 'queued';
CREATE INDEX low ON jobs (queued_us) WHERE status = 'queued' AND priority = 'low';
CREATE INDEX due ON jobs (due_us) WHERE status = 'scheduled';
CREATE INDEX lacking ON jobs (input_us) WHERE input_us IS NOT NULL;
CREATE INDEX expires ON jobs (expires_us) WHERE expires_us IS NOT NULL;
CREATE INDEX active ON jobs (status) WHERE status IN ('running', 'cancelling');
CREATE INDEX retried ON jobs (owner, endpoint) WHERE round > 1;
CREATE INDEX held ON jobs (owner, holder) WHERE holder IS NOT NULL;
CREATE INDEX finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;
CREATE TABLE tags (job INTEGER, name TEXT, value TEXT, PRIMARY KEY (job, name)) WITHOUT ROWID;
CREATE TABLE names (sha256 TEXT, job INTEGER, PRIMARY KEY (sha256, job)) WITHOUT ROWID;
CREATE INDEX names_of ON names (job);
"""

_ROW_COLUMNS = "owner, id, revision, status, endpoint, pool, priority, round, queued_us, backoff_us"
_COLUMNS = f"{_ROW_COLUMNS}, created_us, due_us, expires_us, input_us, finished_us, holder, record"
_JOBS_BY_KEY = "json_each(?) given JOIN jobs ON jobs.owner = given.value ->> 0 AND jobs.id = given.value ->> 1"
_UPSERT_JOBS = f"""
INSERT INTO jobs ({_COLUMNS})
SELECT {", ".join(f"value ->> {n}" for n in range(17))} FROM json_each(?) WHERE true
ON CONFLICT (owner, id) DO UPDATE SET
  {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[2:])}
"""  # noqa: S608 - made of constants
_INSERT_TAGS = f"INSERT OR IGNORE INTO tags SELECT job, given.value ->> 2, given.value ->> 3 FROM {_JOBS_BY_KEY}"  # noqa: S608 - likewise
_INSERT_ASSETS = f"INSERT OR IGNORE INTO names SELECT given.value ->> 2, job FROM {_JOBS_BY_KEY}"  # noqa: S608 - likewise

_HAS_TAG = "EXISTS (SELECT 1 FROM tags t WHERE t.job = jobs.job AND name = ? AND value = ?)"

# What the reconciler asks for: name to condition, with one parameter `:at` in microseconds.
DUE = "status = 'scheduled' AND input_us IS NULL AND (due_us IS NULL OR due_us <= :at)"
AWAITING_INPUT = "input_us IS NOT NULL AND :at > 0"
INPUT_OVERDUE = "input_us <= :at"
EXPIRED = "expires_us <= :at"
ACTIVE = "status IN ('running', 'cancelling') AND :at > 0"
AGED_LOW = "status = 'queued' AND priority = 'low' AND queued_us <= :at"
PAST_RETENTION = "finished_us <= :at"


class ListQuery(NamedTuple):
    """One page of a list: filters (None: any), and the place behind which it goes on."""

    owner: str
    status: Status | None
    endpoint: str | None
    priority: Priority | None
    tags: tuple[tuple[str, str], ...]
    before: tuple[int, str] | None
    limit: int


def create_database(path: Path) -> sqlite3.Connection:
    """A new, empty index at `path`; what was there is removed."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # SQLite gives the same mode to the files that it makes beside it
    # Calls come from the threads of a pool, one at a time.
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.executescript(_SCHEMA)
    return db


def apply_changes(db: sqlite3.Connection, changes: Sequence[RecordChange]) -> list[RowChange]:
    """Take `changes` over in one transaction: of each job the last one, unless what is there is newer.

    Nothing of it is done when it raises sqlite3.OperationalError (the disk is full, say).
    """
    last = {change.key: change for change in changes}
    before = find_rows(db, last)
    news = [change for key, change in last.items() if key not in before or change.revision > before[key].revision]
    gone = [change.key for change in news if change.record is None and change.key in before]
    entries = [VersionedRecord(change.revision, change.record) for change in news if change.record is not None]
    db.execute("BEGIN")
    try:
        _delete_jobs(db, gone)
        _write_jobs(db, entries, before)
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        if db.in_transaction:  # some errors have rolled back already
            db.execute("ROLLBACK")
        raise
    places = [make_index_row(entry) for entry in entries]
    return [RowChange(before[key], None) for key in gone] + [
        RowChange(before.get(place.key), place) for place in places
    ]


def _write_jobs(db: sqlite3.Connection, entries: Sequence[VersionedRecord], before: Mapping[JobKey, IndexRow]) -> None:
    jobs = [entry.record.job for entry in entries]
    new = [job for job in jobs if job.key not in before or before[job.key].round != job.round]
    ended = [job for job in jobs if job.status in FINAL_STATUSES]
    rows = [
        (*make_index_row(e), *_time_columns(e.record.job), holder(e.record.job), encode_record(e.record).decode())
        for e in entries
    ]
    tags = [(*job.key, name, value) for job in new for name, value in job.tags.items()]
    # A scheduled job's input still changes: a file that was fetched takes the place of its URL.
    named = [*new, *(job for job in jobs if job.key in before and before[job.key].status is Status.SCHEDULED)]
    names = [(*job.key, sha256) for job in named for sha256 in input_digests(job)]
    names += [(*job.key, sha256) for job in ended for sha256 in result_digests(job)]
    _delete_references(db, [job.key for job in new if job.key in before])  # the next round may be of another request
    for statement, values in ((_UPSERT_JOBS, rows), (_INSERT_TAGS, tags), (_INSERT_ASSETS, names)):
        if values:
            db.execute(statement, (_encode_json(values),))


def _time_columns(job: Job) -> tuple[int | None, ...]:
    finished = job.finished_at if job.status in FINAL_STATUSES else None
    moments = (job.created_at, job.not_before, expires_at(job), input_due_at(job), finished)
    return tuple(None if moment is None else micros(moment) for moment in moments)


def _delete_jobs(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "names", "jobs"), keys)  # the jobs last: by them the others are found


def _delete_references(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "names"), keys)


def _delete_from(db: sqlite3.Connection, tables: Sequence[str], keys: Sequence[JobKey]) -> None:
    if keys:
        for table in tables:
            query = f"DELETE FROM {table} WHERE job IN (SELECT job FROM {_JOBS_BY_KEY})"  # noqa: S608 - names of this file
            db.execute(query, (_encode_json(keys),))


def find_rows(db: sqlite3.Connection, keys: Iterable[JobKey]) -> dict[JobKey, IndexRow]:
    """The places of those of `keys` that are there."""
    rows = _query_rows(db, _ROW_COLUMNS, f"SELECT jobs.* FROM {_JOBS_BY_KEY}", (_encode_json(list(keys)),))  # noqa: S608 - constants
    places = [_decode_row(*row) for row in rows]
    return {place.key: place for place in places}


def find_row(db: sqlite3.Connection, key: JobKey) -> IndexRow | None:
    """The place of one job."""
    return find_rows(db, [key]).get(key)


def list_keys(db: sqlite3.Connection) -> set[JobKey]:
    """Every job there is."""
    return {JobKey(*row) for row in _query_rows(db, "owner, id", "SELECT owner, id FROM jobs", ())}


def queue_head(db: sqlite3.Connection, line: QueueKey, limit: int) -> list[Pointer]:
    """The first `limit` queued jobs of a line."""
    query = (
        "SELECT id, round FROM jobs WHERE owner = ? AND pool = ? AND priority = ? AND status = 'queued' "
        "ORDER BY queued_us, id LIMIT ?"
    )
    rows = _query_rows(db, "id, round", query, (*line, limit))
    return [Pointer(line.pool, line.priority, line.owner, *row) for row in rows]


def list_jobs(db: sqlite3.Connection, asked: ListQuery) -> list[VersionedRecord]:
    """The newest jobs that match, newest first."""
    where: list[str] = ["owner = ?"]
    values: list[str | int] = [asked.owner]
    for column in ("status", "endpoint", "priority"):
        wanted = getattr(asked, column)
        if wanted is not None:
            where.append(f"{column} = ?")
            values.append(wanted)
    for name, value in asked.tags:
        where.append(_HAS_TAG)
        values += [name, value]
    if asked.before is not None:
        where.append("(created_us, id) < (?, ?)")
        values += asked.before
    query = f"SELECT revision, record FROM jobs WHERE {' AND '.join(where)} ORDER BY created_us DESC, id DESC LIMIT ?"  # noqa: S608
    return _query_records(db, query, (*values, asked.limit))


def find_jobs(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[VersionedRecord]:
    """Up to `limit` jobs for which one of the conditions above holds at `at_us`."""
    query = f"SELECT revision, record FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return _query_records(db, query, {"at": at_us, "limit": limit})


def find_keys(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[JobKey]:
    """The keys of what `matching` finds."""
    query = f"SELECT owner, id FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return [JobKey(*row) for row in _query_rows(db, "owner, id", query, {"at": at_us, "limit": limit})]


def find_pools(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> set[str]:
    """The pools of what `matching` finds."""
    query = f"SELECT DISTINCT pool FROM (SELECT pool FROM jobs WHERE {condition} LIMIT :limit)"  # noqa: S608 - likewise
    return {pool for (pool,) in _query_rows(db, "pool", query, {"at": at_us, "limit": limit})}


def find_jobs_with_asset(
    db: sqlite3.Connection, sha256: str, owner: str | None, statuses: Iterable[Status]
) -> list[JobKey]:
    """Jobs (of one owner, or of all) in one of `statuses` whose input, output or log is that asset."""
    wanted = list(statuses)
    marks = ", ".join("?" * len(wanted))
    query = (
        "SELECT owner, id FROM names JOIN jobs USING (job) "  # noqa: S608 - marks only
        f"WHERE sha256 = ? AND (? IS NULL OR owner = ?) AND status IN ({marks})"
    )
    return [JobKey(*row) for row in _query_rows(db, "owner, id", query, (sha256, owner, owner, *wanted))]


def holds_job(db: sqlite3.Connection, owner: str, host: str | None) -> bool:
    """Whether `host` (None: any host) holds a job of the owner."""
    # Without INDEXED BY the planner may walk all jobs of the owner.
    query = (
        "SELECT 1 FROM jobs INDEXED BY held "
        "WHERE owner = :owner AND holder IS NOT NULL AND (:host IS NULL OR holder = :host) LIMIT 1"
    )
    return db.execute(query, {"owner": owner, "host": host}).fetchone() is not None


def may_need(
    db: sqlite3.Connection, owner: str, host: str | None, sha256: str, endpoints: Sequence[str] | None
) -> bool:
    """Whether a job of the owner names the asset, and is held by `host` (None: any host), or is queued for one of
    `endpoints` (None: any endpoint)."""
    query = (
        "SELECT 1 FROM names JOIN jobs USING (job) WHERE sha256 = :sha256 AND owner = :owner AND ("
        "(holder IS NOT NULL AND (:host IS NULL OR holder = :host)) OR (status = 'queued' AND "
        "(:endpoints IS NULL OR endpoint IN (SELECT value FROM json_each(:endpoints))))) LIMIT 1"
    )
    wanted = None if endpoints is None else _encode_json(endpoints)
    values = {"owner": owner, "host": host, "sha256": sha256, "endpoints": wanted}
    return db.execute(query, values).fetchone() is not None


def count_retried(db: sqlite3.Connection, owner: str, endpoint: str) -> int:
    """How many jobs were given another round."""
    query = "SELECT count(*) FROM jobs WHERE owner = ? AND endpoint = ? AND round > 1"
    (count,) = db.execute(query, (owner, endpoint)).fetchone()
    return int(count)


def _query_records(db: sqlite3.Connection, query: str, values: _Values) -> list[VersionedRecord]:
    return [
        VersionedRecord(revision, decode_record(record.encode()))
        for revision, record in _query_rows(db, "revision, record", query, values)
    ]


def _query_rows(db: sqlite3.Connection, columns: str, query: str, values: _Values) -> list[list[Any]]:
    """The rows of `query`, in its order, as one value."""
    whole = f"SELECT json_group_array(json_array({columns})) FROM ({query})"  # noqa: S608 - the callers' constants
    (text,) = db.execute(whole, values).fetchone()
    return msgspec.json.decode(text, type=list[list[Any]])


def _encode_json(values: Sequence[object]) -> str:
    return msgspec.json.encode(values).decode()


def _decode_row(*row: Any) -> IndexRow:
    owner, id_, revision, status, endpoint, pool, priority, *rest = row
    return IndexRow(owner, id_, revision, Status(status), endpoint, pool, Priority(priority), *rest)
