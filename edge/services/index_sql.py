"""The index's file: a mirror of STATE that SQLite can search. Thrown away and rebuilt at every start, so never synced.

Blocking; the index calls it in a thread, one call at a time. Whole batches go in and out as one JSON value: sqlite3
lets go of the interpreter at every row, and a thread beside a busy event loop waits milliseconds to get it back.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bus.port import Change, Entry
from edge.services.clock import micros
from edge.services.lines import Line
from edge.services.standing import (
    Standing,
    Step,
    expires_at,
    holder,
    input_digests,
    input_due,
    result_digests,
    standing,
)
from schemas.events import decode, encode
from schemas.job import Job, JobKey, Pointer
from schemas.words import FINAL, Priority, Status

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

_STANDING = "owner, id, revision, status, endpoint, pool, priority, round, queued_us, backoff_us"
_COLUMNS = f"{_STANDING}, created_us, due_us, expires_us, input_us, finished_us, holder, record"
_KEYED = "json_each(?) given JOIN jobs ON jobs.owner = given.value ->> 0 AND jobs.id = given.value ->> 1"
_UPSERT = f"""
INSERT INTO jobs ({_COLUMNS})
SELECT {", ".join(f"value ->> {n}" for n in range(17))} FROM json_each(?) WHERE true
ON CONFLICT (owner, id) DO UPDATE SET
  {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[2:])}
"""  # noqa: S608 - made of constants
_TAG = f"INSERT OR IGNORE INTO tags SELECT job, given.value ->> 2, given.value ->> 3 FROM {_KEYED}"  # noqa: S608 - likewise
_NAME = f"INSERT OR IGNORE INTO names SELECT given.value ->> 2, job FROM {_KEYED}"  # noqa: S608 - likewise

_TAGGED = "EXISTS (SELECT 1 FROM tags t WHERE t.job = jobs.job AND name = ? AND value = ?)"

# What the reconciler asks for: name to condition, with one parameter `:at` in microseconds.
DUE = "status = 'scheduled' AND input_us IS NULL AND (due_us IS NULL OR due_us <= :at)"
LACKING = "input_us IS NOT NULL AND :at > 0"
INPUT_LATE = "input_us <= :at"
EXPIRED = "expires_us <= :at"
ACTIVE = "status IN ('running', 'cancelling') AND :at > 0"
AGED_LOW = "status = 'queued' AND priority = 'low' AND queued_us <= :at"
FORGOTTEN = "finished_us <= :at"


class Asked(NamedTuple):
    """One page of a list: filters (None: any), and the place behind which it goes on."""

    owner: str
    status: Status | None
    endpoint: str | None
    priority: Priority | None
    tags: tuple[tuple[str, str], ...]
    before: tuple[int, str] | None
    limit: int


def create(path: Path) -> sqlite3.Connection:
    """A new, empty index at `path`; what was there is removed."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # SQLite gives the same mode to the files that it makes beside it
    # Calls come from the threads of a pool, one at a time.
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.executescript(_SCHEMA)
    return db


def absorb(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Step]:
    """Take `changes` over in one transaction: of each job the last one, unless what is there is newer.

    Nothing of it is done when it raises sqlite3.OperationalError (the disk is full, say).
    """
    last = {change.key: change for change in changes}
    before = find_all(db, last)
    news = [change for key, change in last.items() if key not in before or change.revision > before[key].revision]
    gone = [change.key for change in news if change.recorded is None and change.key in before]
    entries = [Entry(change.revision, change.recorded) for change in news if change.recorded is not None]
    db.execute("BEGIN")
    try:
        _remove(db, gone)
        _write(db, entries, before)
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        if db.in_transaction:  # some errors have rolled back already
            db.execute("ROLLBACK")
        raise
    places = [standing(entry) for entry in entries]
    return [Step(before[key], None) for key in gone] + [Step(before.get(place.key), place) for place in places]


def _write(db: sqlite3.Connection, entries: Sequence[Entry], before: Mapping[JobKey, Standing]) -> None:
    jobs = [entry.recorded.job for entry in entries]
    new = [job for job in jobs if job.key not in before or before[job.key].round != job.round]
    ended = [job for job in jobs if job.status in FINAL]
    rows = [
        (*standing(e), *_times(e.recorded.job), holder(e.recorded.job), encode(e.recorded).decode()) for e in entries
    ]
    tags = [(*job.key, name, value) for job in new for name, value in job.tags.items()]
    # A scheduled job's input still changes: a file that was fetched takes the place of its URL.
    named = [*new, *(job for job in jobs if job.key in before and before[job.key].status is Status.SCHEDULED)]
    names = [(*job.key, sha256) for job in named for sha256 in input_digests(job)]
    names += [(*job.key, sha256) for job in ended for sha256 in result_digests(job)]
    _unname(db, [job.key for job in new if job.key in before])  # the next round may be of another request
    for statement, values in ((_UPSERT, rows), (_TAG, tags), (_NAME, names)):
        if values:
            db.execute(statement, (_json(values),))


def _times(job: Job) -> tuple[int | None, ...]:
    finished = job.finished_at if job.status in FINAL else None
    moments = (job.created_at, job.not_before, expires_at(job), input_due(job), finished)
    return tuple(None if moment is None else micros(moment) for moment in moments)


def _remove(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "names", "jobs"), keys)  # the jobs last: by them the others are found


def _unname(db: sqlite3.Connection, keys: Sequence[JobKey]) -> None:
    _delete_from(db, ("tags", "names"), keys)


def _delete_from(db: sqlite3.Connection, tables: Sequence[str], keys: Sequence[JobKey]) -> None:
    if keys:
        for table in tables:
            query = f"DELETE FROM {table} WHERE job IN (SELECT job FROM {_KEYED})"  # noqa: S608 - names of this file
            db.execute(query, (_json(keys),))


def find_all(db: sqlite3.Connection, keys: Iterable[JobKey]) -> dict[JobKey, Standing]:
    """The places of those of `keys` that are there."""
    rows = _rows(db, _STANDING, f"SELECT jobs.* FROM {_KEYED}", (_json(list(keys)),))  # noqa: S608 - constants
    places = [_standing(*row) for row in rows]
    return {place.key: place for place in places}


def find(db: sqlite3.Connection, key: JobKey) -> Standing | None:
    """The place of one job."""
    return find_all(db, [key]).get(key)


def keys(db: sqlite3.Connection) -> set[JobKey]:
    """Every job there is."""
    return {JobKey(*row) for row in _rows(db, "owner, id", "SELECT owner, id FROM jobs", ())}


def front(db: sqlite3.Connection, line: Line, limit: int) -> list[Pointer]:
    """The first `limit` queued jobs of a line."""
    query = (
        "SELECT id, round FROM jobs WHERE owner = ? AND pool = ? AND priority = ? AND status = 'queued' "
        "ORDER BY queued_us, id LIMIT ?"
    )
    rows = _rows(db, "id, round", query, (*line, limit))
    return [Pointer(line.pool, line.priority, line.owner, *row) for row in rows]


def page(db: sqlite3.Connection, asked: Asked) -> list[Entry]:
    """The newest jobs that match, newest first."""
    where: list[str] = ["owner = ?"]
    values: list[str | int] = [asked.owner]
    for column in ("status", "endpoint", "priority"):
        wanted = getattr(asked, column)
        if wanted is not None:
            where.append(f"{column} = ?")
            values.append(wanted)
    for name, value in asked.tags:
        where.append(_TAGGED)
        values += [name, value]
    if asked.before is not None:
        where.append("(created_us, id) < (?, ?)")
        values += asked.before
    query = f"SELECT revision, record FROM jobs WHERE {' AND '.join(where)} ORDER BY created_us DESC, id DESC LIMIT ?"  # noqa: S608
    return _entries(db, query, (*values, asked.limit))


def matching(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[Entry]:
    """Up to `limit` jobs for which one of the conditions above holds at `at_us`."""
    query = f"SELECT revision, record FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return _entries(db, query, {"at": at_us, "limit": limit})


def keys_matching(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[JobKey]:
    """The keys of what `matching` finds."""
    query = f"SELECT owner, id FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return [JobKey(*row) for row in _rows(db, "owner, id", query, {"at": at_us, "limit": limit})]


def pools(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> set[str]:
    """The pools of what `matching` finds."""
    query = f"SELECT DISTINCT pool FROM (SELECT pool FROM jobs WHERE {condition} LIMIT :limit)"  # noqa: S608 - likewise
    return {pool for (pool,) in _rows(db, "pool", query, {"at": at_us, "limit": limit})}


def naming(db: sqlite3.Connection, sha256: str, owner: str | None, statuses: Iterable[Status]) -> list[JobKey]:
    """Jobs (of one owner, or of all) in one of `statuses` whose input, output or log is that asset."""
    wanted = list(statuses)
    marks = ", ".join("?" * len(wanted))
    query = (
        "SELECT owner, id FROM names JOIN jobs USING (job) "  # noqa: S608 - marks only
        f"WHERE sha256 = ? AND (? IS NULL OR owner = ?) AND status IN ({marks})"
    )
    return [JobKey(*row) for row in _rows(db, "owner, id", query, (sha256, owner, owner, *wanted))]


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
    wanted = None if endpoints is None else _json(endpoints)
    values = {"owner": owner, "host": host, "sha256": sha256, "endpoints": wanted}
    return db.execute(query, values).fetchone() is not None


def retried(db: sqlite3.Connection, owner: str, endpoint: str) -> int:
    """How many jobs were given another round."""
    query = "SELECT count(*) FROM jobs WHERE owner = ? AND endpoint = ? AND round > 1"
    (count,) = db.execute(query, (owner, endpoint)).fetchone()
    return int(count)


def _entries(db: sqlite3.Connection, query: str, values: _Values) -> list[Entry]:
    return [
        Entry(revision, decode(record.encode())) for revision, record in _rows(db, "revision, record", query, values)
    ]


def _rows(db: sqlite3.Connection, columns: str, query: str, values: _Values) -> list[list[Any]]:
    """The rows of `query`, in its order, as one value."""
    whole = f"SELECT json_group_array(json_array({columns})) FROM ({query})"  # noqa: S608 - the callers' constants
    (text,) = db.execute(whole, values).fetchone()
    return msgspec.json.decode(text, type=list[list[Any]])


def _json(values: Sequence[object]) -> str:
    return msgspec.json.encode(values).decode()


def _standing(*row: Any) -> Standing:
    owner, id_, revision, status, endpoint, pool, priority, *rest = row
    return Standing(owner, id_, revision, Status(status), endpoint, pool, Priority(priority), *rest)
