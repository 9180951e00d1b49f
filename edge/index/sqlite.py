"""The SQLite file of the index: a copy of STATE that can be searched. It is rebuilt at each start, so never synced.

The functions block; the index calls them in a thread, one at a time. A batch goes in and out as one JSON value: sqlite3
releases the GIL at each row, and a thread next to a busy event loop waits milliseconds to get it back.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bus.interface import RecordChange, VersionedRecord
from edge.core.clock import micros
from edge.index.rows import (
    IndexRow,
    JobFilters,
    QueueKey,
    RowChange,
    expires_at,
    holder,
    input_digests,
    input_due_at,
    make_index_row,
    result_digests,
)
from schemas.events import decode_record, encode_record
from schemas.job import FINAL_STATUSES, Job, JobKey, Pointer, Priority, Status

_Values = Sequence[object] | Mapping[str, object]

_SCHEMA = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE; -- no other process opens the file, and each lock would take several system calls
PRAGMA secure_delete = ON; -- the content of a deleted job is overwritten in the file
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
CREATE INDEX queue ON jobs (owner, pool, priority, queued_us) WHERE status = 'queued';
CREATE INDEX waiting ON jobs (endpoint, queued_us) WHERE status = 'queued';
CREATE INDEX low ON jobs (queued_us) WHERE status = 'queued' AND priority = 'low';
CREATE INDEX due ON jobs (due_us) WHERE status = 'scheduled';
CREATE INDEX awaiting_input ON jobs (input_us) WHERE input_us IS NOT NULL;
CREATE INDEX expires ON jobs (expires_us) WHERE expires_us IS NOT NULL;
CREATE INDEX active ON jobs (status) WHERE status IN ('running', 'cancelling');
CREATE INDEX retried ON jobs (owner, endpoint) WHERE round > 1;
CREATE INDEX by_holder ON jobs (owner, holder) WHERE holder IS NOT NULL;
CREATE INDEX finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;
CREATE TABLE tags (job INTEGER, name TEXT, value TEXT, PRIMARY KEY (job, name)) WITHOUT ROWID;
CREATE TABLE assets (sha256 TEXT, job INTEGER, PRIMARY KEY (sha256, job)) WITHOUT ROWID;
CREATE INDEX assets_of_job ON assets (job);
"""

_ROW_COLUMNS = "owner, id, revision, status, endpoint, pool, priority, round, queued_us, backoff_us"
_COLUMNS = f"{_ROW_COLUMNS}, created_us, due_us, expires_us, input_us, finished_us, holder, record"
_JOBS_BY_KEY = "json_each(?) entry JOIN jobs ON jobs.owner = entry.value ->> 0 AND jobs.id = entry.value ->> 1"
_UPSERT_JOBS = f"""
INSERT INTO jobs ({_COLUMNS})
SELECT {", ".join(f"value ->> {n}" for n in range(17))} FROM json_each(?) WHERE true
ON CONFLICT (owner, id) DO UPDATE SET
  {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[2:])}
"""  # noqa: S608 - built from constants
_INSERT_TAGS = f"INSERT OR IGNORE INTO tags SELECT job, entry.value ->> 2, entry.value ->> 3 FROM {_JOBS_BY_KEY}"  # noqa: S608 - built from constants
_INSERT_ASSETS = f"INSERT OR IGNORE INTO assets SELECT entry.value ->> 2, job FROM {_JOBS_BY_KEY}"  # noqa: S608 - built from constants

_HAS_TAG = "EXISTS (SELECT 1 FROM tags t WHERE t.job = jobs.job AND name = ? AND value = ?)"
_ERROR_CODE = "(record ->> '$.job.error.code')"
_HAS_TEXT = r"""(
id LIKE ? ESCAPE '\' OR record ->> '$.job.input' LIKE ? ESCAPE '\'
OR record ->> '$.job.error.message' LIKE ? ESCAPE '\'
OR EXISTS (SELECT 1 FROM tags t WHERE t.job = jobs.job AND value LIKE ? ESCAPE '\'))"""

# Conditions of the reconciler's queries. The parameter `:at` is a time in microseconds.
DUE = "status = 'scheduled' AND input_us IS NULL AND (due_us IS NULL OR due_us <= :at)"
AWAITING_INPUT = "input_us IS NOT NULL AND :at > 0"
INPUT_OVERDUE = "input_us <= :at"
EXPIRED = "expires_us <= :at"
ACTIVE = "status IN ('running', 'cancelling') AND :at > 0"
AGED_LOW = "status = 'queued' AND priority = 'low' AND queued_us <= :at"
PAST_RETENTION = "finished_us <= :at"


class ListQuery(NamedTuple):
    """One page of a list, and the row after which the page starts."""

    owner: str
    filters: JobFilters
    before: tuple[int, str] | None
    limit: int


def create_database(path: Path) -> sqlite3.Connection:
    """Create an empty index at `path`; remove the index that was there."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # SQLite gives its journal the same mode
    # The calls come from different threads of a pool, one at a time.
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.executescript(_SCHEMA)
    return db


def apply_changes(db: sqlite3.Connection, changes: Sequence[RecordChange]) -> list[RowChange]:
    """Write the last change of each job in one transaction, unless the index has a newer revision of the job.

    Raises sqlite3.OperationalError, for example if the disk is full; then nothing is written.
    """
    last = {change.key: change for change in changes}
    before = find_rows(db, last)
    newer = [change for key, change in last.items() if key not in before or change.revision > before[key].revision]
    gone = [change.key for change in newer if change.record is None and change.key in before]
    entries = [VersionedRecord(change.revision, change.record) for change in newer if change.record is not None]
    db.execute("BEGIN")
    try:
        _delete_jobs(db, gone)
        _write_jobs(db, entries, before)
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        if db.in_transaction:  # SQLite rolls back by itself after some errors
            db.execute("ROLLBACK")
        raise
    rows = [make_index_row(entry) for entry in entries]
    return [RowChange(before[key], None) for key in gone] + [RowChange(before.get(row.key), row) for row in rows]


def _write_jobs(db: sqlite3.Connection, entries: Sequence[VersionedRecord], before: Mapping[JobKey, IndexRow]) -> None:
    jobs = [entry.record.job for entry in entries]
    new = [job for job in jobs if job.key not in before or before[job.key].round != job.round]
    ended = [job for job in jobs if job.status in FINAL_STATUSES]
    rows = [
        (*make_index_row(e), *_time_columns(e.record.job), holder(e.record.job), encode_record(e.record).decode())
        for e in entries
    ]
    tags = [(*job.key, name, value) for job in new for name, value in job.tags.items()]
    # The input of a scheduled job still changes: the digest of a downloaded file replaces its URL.
    changed = [*new, *(job for job in jobs if job.key in before and before[job.key].status is Status.SCHEDULED)]
    assets = [(*job.key, sha256) for job in changed for sha256 in input_digests(job)]
    assets += [(*job.key, sha256) for job in ended for sha256 in result_digests(job)]
    _delete_tags_and_assets(db, [job.key for job in new if job.key in before])  # the next round may have another input
    for statement, values in ((_UPSERT_JOBS, rows), (_INSERT_TAGS, tags), (_INSERT_ASSETS, assets)):
        if values:
            db.execute(statement, (_encode_json(values),))


def _time_columns(job: Job) -> tuple[int | None, ...]:
    finished = job.finished_at if job.status in FINAL_STATUSES else None
    moments = (job.created_at, job.not_before, expires_at(job), input_due_at(job), finished)
    return tuple(None if moment is None else micros(moment) for moment in moments)


def _delete_jobs(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "assets", "jobs"), keys)  # jobs last: the other tables are found through it


def _delete_tags_and_assets(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "assets"), keys)


def _delete_from(db: sqlite3.Connection, tables: Sequence[str], keys: Sequence[JobKey]) -> None:
    if keys:
        for table in tables:
            query = f"DELETE FROM {table} WHERE job IN (SELECT job FROM {_JOBS_BY_KEY})"  # noqa: S608 - table names of this file
            db.execute(query, (_encode_json(keys),))


def find_rows(db: sqlite3.Connection, keys: Iterable[JobKey]) -> dict[JobKey, IndexRow]:
    """Return the rows of those of `keys` that are in the index."""
    rows = _query_rows(db, _ROW_COLUMNS, f"SELECT jobs.* FROM {_JOBS_BY_KEY}", (_encode_json(list(keys)),))  # noqa: S608 - built from constants
    decoded = [_decode_row(*row) for row in rows]
    return {row.key: row for row in decoded}


def find_row(db: sqlite3.Connection, key: JobKey) -> IndexRow | None:
    """Return the row of one job, None if it is not in the index."""
    return find_rows(db, [key]).get(key)


def list_keys(db: sqlite3.Connection) -> set[JobKey]:
    """Return the keys of all jobs in the index."""
    return {JobKey(*row) for row in _query_rows(db, "owner, id", "SELECT owner, id FROM jobs", ())}


def queue_head(db: sqlite3.Connection, queue: QueueKey, limit: int) -> list[Pointer]:
    """Return the first `limit` jobs of a queue."""
    query = (
        "SELECT id, round FROM jobs WHERE owner = ? AND pool = ? AND priority = ? AND status = 'queued' "
        "ORDER BY queued_us, id LIMIT ?"
    )
    rows = _query_rows(db, "id, round", query, (*queue, limit))
    return [Pointer(queue.pool, queue.priority, queue.owner, *row) for row in rows]


def list_jobs(db: sqlite3.Connection, page: ListQuery) -> list[VersionedRecord]:
    """Return the jobs of one page, newest first."""
    where, values = _filter_condition(page.owner, page.filters)
    if page.before is not None:
        where += " AND (created_us, id) < (?, ?)"
        values += page.before
    query = f"SELECT revision, record FROM jobs WHERE {where} ORDER BY created_us DESC, id DESC LIMIT ?"  # noqa: S608
    return _query_records(db, query, (*values, page.limit))


def count_filtered_jobs(db: sqlite3.Connection, owner: str, filters: JobFilters) -> int:
    """Return the number of the owner's jobs that `filters` match."""
    where, values = _filter_condition(owner, filters)
    (count,) = db.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()  # noqa: S608
    return int(count)


def _filter_condition(owner: str, filters: JobFilters) -> tuple[str, list[str | int]]:
    """Return the WHERE condition of a list, and its values."""
    where: list[str] = ["owner = ?"]
    values: list[str | int] = [owner]
    if filters.statuses:
        where.append(f"status IN ({', '.join('?' * len(filters.statuses))})")
        values += filters.statuses
    equal = (("endpoint", filters.endpoint), ("priority", filters.priority), (_ERROR_CODE, filters.code))
    for column, wanted in equal:
        if wanted is not None:
            where.append(f"{column} = ?")
            values.append(wanted)
    for name, value in filters.tags:
        where.append(_HAS_TAG)
        values += [name, value]
    if filters.text:
        where.append(_HAS_TEXT)
        values += [_like_pattern(filters.text)] * _HAS_TEXT.count("?")
    for comparison, moment in (("created_us >= ?", filters.created_from), ("created_us < ?", filters.created_to)):
        if moment is not None:
            where.append(comparison)
            values.append(micros(moment))
    return " AND ".join(where), values


def _like_pattern(text: str) -> str:
    """Return a LIKE pattern, with the escape character `\\`, that matches values which contain `text`."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def find_jobs(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[VersionedRecord]:
    """Return up to `limit` jobs for which one of the conditions above is true at `at_us`."""
    query = f"SELECT revision, record FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return _query_records(db, query, {"at": at_us, "limit": limit})


def find_keys(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[JobKey]:
    """Return the keys of the jobs that `find_jobs` would return."""
    query = f"SELECT owner, id FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return [JobKey(*row) for row in _query_rows(db, "owner, id", query, {"at": at_us, "limit": limit})]


def oldest_queued(db: sqlite3.Connection) -> dict[str, int]:
    """Return `queued_us` of the job of each endpoint that has waited longest."""
    query = "SELECT endpoint, min(queued_us) FROM jobs WHERE status = 'queued' GROUP BY endpoint"
    return dict(db.execute(query).fetchall())


class EndpointFigures(NamedTuple):
    """The jobs of an endpoint. `oldest_us`: when the queued job that has waited longest was queued."""

    queued: int = 0
    oldest_us: int | None = None
    ended: int = 0
    failed: int = 0


def endpoint_figures(db: sqlite3.Connection, ended_since_us: int) -> dict[str, EndpointFigures]:
    """Return the queued jobs of each endpoint, and those that ended since."""
    queued = "SELECT endpoint, count(*), min(queued_us) FROM jobs WHERE status = 'queued' GROUP BY endpoint"
    figures = {name: EndpointFigures(count, oldest) for name, count, oldest in db.execute(queued).fetchall()}
    ended = "SELECT endpoint, count(*), sum(status = 'failed') FROM jobs WHERE finished_us > ? GROUP BY endpoint"
    for name, count, failed in db.execute(ended, (ended_since_us,)).fetchall():
        figures[name] = figures.get(name, EndpointFigures())._replace(ended=count, failed=failed)
    return figures


def count_by_pool(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> dict[str, int]:
    """Return the number of the jobs that `find_jobs` would return, by pool."""
    query = f"SELECT pool, COUNT(*) AS jobs FROM (SELECT pool FROM jobs WHERE {condition} LIMIT :limit) GROUP BY pool"  # noqa: S608 - the constants above
    return dict(_query_rows(db, "pool, jobs", query, {"at": at_us, "limit": limit}))


def find_jobs_with_asset(
    db: sqlite3.Connection, sha256: str, owner: str | None, statuses: Iterable[Status]
) -> list[JobKey]:
    """Return the jobs in one of `statuses`, of one owner or of all, that have the asset as input, output or log."""
    wanted = list(statuses)
    marks = ", ".join("?" * len(wanted))
    query = (
        "SELECT owner, id FROM assets JOIN jobs USING (job) "  # noqa: S608 - only question marks are inserted
        f"WHERE sha256 = ? AND (? IS NULL OR owner = ?) AND status IN ({marks})"
    )
    return [JobKey(*row) for row in _query_rows(db, "owner, id", query, (sha256, owner, owner, *wanted))]


def holds_job(db: sqlite3.Connection, owner: str, host: str | None) -> bool:
    """Return whether `host` (None: any host) has a job of the owner."""
    # Without INDEXED BY the planner may scan all jobs of the owner.
    query = (
        "SELECT 1 FROM jobs INDEXED BY by_holder "
        "WHERE owner = :owner AND holder IS NOT NULL AND (:host IS NULL OR holder = :host) LIMIT 1"
    )
    return db.execute(query, {"owner": owner, "host": host}).fetchone() is not None


def may_need(
    db: sqlite3.Connection, owner: str, host: str | None, sha256: str, endpoints: Sequence[str] | None
) -> bool:
    """Return whether a job of the owner uses the asset and `host` may run it, as `JobIndex.may_need` says."""
    query = (
        "SELECT 1 FROM assets JOIN jobs USING (job) WHERE sha256 = :sha256 AND owner = :owner AND ("
        "(holder IS NOT NULL AND (:host IS NULL OR holder = :host)) OR (status = 'queued' AND "
        "(:endpoints IS NULL OR endpoint IN (SELECT value FROM json_each(:endpoints))))) LIMIT 1"
    )
    wanted = None if endpoints is None else _encode_json(endpoints)
    values = {"owner": owner, "host": host, "sha256": sha256, "endpoints": wanted}
    return db.execute(query, values).fetchone() is not None


def count_retried(db: sqlite3.Connection, owner: str, endpoint: str) -> int:
    """Return the number of the owner's jobs of this endpoint in round 2 or later."""
    query = "SELECT count(*) FROM jobs WHERE owner = ? AND endpoint = ? AND round > 1"
    (count,) = db.execute(query, (owner, endpoint)).fetchone()
    return int(count)


def _query_records(db: sqlite3.Connection, query: str, values: _Values) -> list[VersionedRecord]:
    return [
        VersionedRecord(revision, decode_record(record.encode()))
        for revision, record in _query_rows(db, "revision, record", query, values)
    ]


def _query_rows(db: sqlite3.Connection, columns: str, query: str, values: _Values) -> list[list[Any]]:
    """Return the rows of `query`, in its order, read as one JSON value."""
    whole = f"SELECT json_group_array(json_array({columns})) FROM ({query})"  # noqa: S608 - constants of the callers
    (text,) = db.execute(whole, values).fetchone()
    return msgspec.json.decode(text, type=list[list[Any]])


def _encode_json(values: Sequence[object]) -> str:
    return msgspec.json.encode(values).decode()


def _decode_row(*row: Any) -> IndexRow:
    owner, id_, revision, status, endpoint, pool, priority, *rest = row
    return IndexRow(owner, id_, revision, Status(status), endpoint, pool, Priority(priority), *rest)
