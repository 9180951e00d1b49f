"""The index's file: a mirror of STATE that SQLite can search. Thrown away and rebuilt at every start, so never synced.

Blocking; the index calls it in a thread, one call at a time.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bus.port import Change, Entry
from edge.services.clock import micros
from edge.services.lines import Line
from edge.services.standing import Standing, Step, expires_at, input_digests, result_digests, standing
from schemas.events import decode, encode
from schemas.job import Job, JobKey, Pointer
from schemas.words import FINAL, Priority, Status

_SCHEMA = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -8192;
CREATE TABLE jobs (
  owner TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL, status TEXT NOT NULL, endpoint TEXT NOT NULL,
  pool TEXT NOT NULL, priority TEXT NOT NULL, round INTEGER NOT NULL, queued_us INTEGER NOT NULL, backoff_us INTEGER,
  created_us INTEGER NOT NULL, due_us INTEGER, expires_us INTEGER, finished_us INTEGER, record BLOB NOT NULL);
CREATE UNIQUE INDEX job ON jobs (owner, id);
CREATE INDEX newest ON jobs (owner, created_us, id);
CREATE INDEX newest_in_status ON jobs (owner, status, created_us, id);
CREATE INDEX line ON jobs (owner, pool, priority, queued_us) WHERE status = 'queued';
CREATE INDEX low ON jobs (queued_us) WHERE status = 'queued' AND priority = 'low';
CREATE INDEX due ON jobs (due_us) WHERE status = 'scheduled';
CREATE INDEX expires ON jobs (expires_us) WHERE expires_us IS NOT NULL;
CREATE INDEX active ON jobs (status) WHERE status IN ('running', 'cancelling');
CREATE INDEX finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;
CREATE TABLE tags (owner TEXT, name TEXT, value TEXT, id TEXT, PRIMARY KEY (owner, name, value, id)) WITHOUT ROWID;
CREATE INDEX tags_of ON tags (owner, id);
CREATE TABLE names (sha256 TEXT, owner TEXT, id TEXT, PRIMARY KEY (sha256, owner, id)) WITHOUT ROWID;
CREATE INDEX names_of ON names (owner, id);
"""

_STANDING = "owner, id, revision, status, endpoint, pool, priority, round, queued_us, backoff_us"
_UPSERT = f"""
INSERT INTO jobs ({_STANDING}, created_us, due_us, expires_us, finished_us, record)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (owner, id) DO UPDATE SET revision = excluded.revision, status = excluded.status,
  endpoint = excluded.endpoint, pool = excluded.pool, priority = excluded.priority, round = excluded.round,
  queued_us = excluded.queued_us, backoff_us = excluded.backoff_us, created_us = excluded.created_us,
  due_us = excluded.due_us, expires_us = excluded.expires_us, finished_us = excluded.finished_us,
  record = excluded.record
"""  # noqa: S608 - made of constants

_TAGGED = "EXISTS (SELECT 1 FROM tags t WHERE t.owner = jobs.owner AND name = ? AND value = ? AND t.id = jobs.id)"

# What the reconciler asks for: name to condition, with one parameter `:at` in microseconds.
DUE = "status = 'scheduled' AND due_us <= :at"
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
    # Calls come from the threads of a pool, one at a time.
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.executescript(_SCHEMA)
    return db


def absorb(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Step]:
    """Take `changes` over in one transaction; what is older than what is there already is left out."""
    db.execute("BEGIN")
    steps = [step for change in changes if (step := _absorb(db, change)) is not None]
    db.execute("COMMIT")
    return steps


def _absorb(db: sqlite3.Connection, change: Change) -> Step | None:
    before = find(db, change.key)
    if before is not None and change.revision <= before.revision:
        return None
    if change.recorded is None:
        _remove(db, change.key)
        return None if before is None else Step(before, None)
    entry = Entry(change.revision, change.recorded)
    after, job = standing(entry), change.recorded.job
    db.execute(_UPSERT, (*after, *_times(job), encode(change.recorded)))
    if before is None:
        db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?)", _tags(job))
    if before is None or job.status in FINAL:
        db.executemany("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", _names(job))
    return Step(before, after)


def _times(job: Job) -> tuple[int, int | None, int | None, int | None]:
    due = None if job.not_before is None else micros(job.not_before)
    expires = expires_at(job)
    finished = job.finished_at if job.status in FINAL else None
    return (
        micros(job.created_at),
        due,
        None if expires is None else micros(expires),
        None if finished is None else micros(finished),
    )


def _tags(job: Job) -> list[tuple[str, str, str, str]]:
    return [(job.owner, name, value, job.id) for name, value in job.tags.items()]


def _names(job: Job) -> list[tuple[str, str, str]]:
    return [(sha256, job.owner, job.id) for sha256 in input_digests(job) | result_digests(job)]


def _remove(db: sqlite3.Connection, key: JobKey) -> None:
    for table in ("jobs", "tags", "names"):
        db.execute(f"DELETE FROM {table} WHERE owner = ? AND id = ?", key)  # noqa: S608 - the names above


def find(db: sqlite3.Connection, key: JobKey) -> Standing | None:
    """The place of one job."""
    row = db.execute(f"SELECT {_STANDING} FROM jobs WHERE owner = ? AND id = ?", key).fetchone()  # noqa: S608
    return None if row is None else _standing(row)


def find_all(db: sqlite3.Connection, keys: Iterable[JobKey]) -> dict[JobKey, Standing]:
    """The places of those of `keys` that are there."""
    return {key: found for key in keys if (found := find(db, key)) is not None}


def keys(db: sqlite3.Connection) -> set[JobKey]:
    """Every job there is."""
    return {JobKey(*row) for row in db.execute("SELECT owner, id FROM jobs")}


def front(db: sqlite3.Connection, line: Line, limit: int) -> list[Pointer]:
    """The first `limit` queued jobs of a line."""
    rows = db.execute(
        "SELECT id, round FROM jobs WHERE owner = ? AND pool = ? AND priority = ? AND status = 'queued' "
        "ORDER BY queued_us, id LIMIT ?",
        (*line, limit),
    )
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
    return _entries(db.execute(query, (*values, asked.limit)))


def matching(db: sqlite3.Connection, condition: str, at_us: int, limit: int) -> list[Entry]:
    """Up to `limit` jobs for which one of the conditions above holds at `at_us`."""
    query = f"SELECT revision, record FROM jobs WHERE {condition} LIMIT :limit"  # noqa: S608 - the constants above
    return _entries(db.execute(query, {"at": at_us, "limit": limit}))


def naming(db: sqlite3.Connection, sha256: str, owner: str | None, statuses: Iterable[Status]) -> list[JobKey]:
    """Jobs (of one owner, or of all) in one of `statuses` whose input, output or log is that asset."""
    wanted = list(statuses)
    marks = ", ".join("?" * len(wanted))
    query = (
        "SELECT n.owner, n.id FROM names n JOIN jobs j ON j.owner = n.owner AND j.id = n.id "  # noqa: S608 - marks only
        f"WHERE n.sha256 = ? AND (? IS NULL OR n.owner = ?) AND j.status IN ({marks})"
    )
    return [JobKey(*row) for row in db.execute(query, (sha256, owner, owner, *wanted))]


def _entries(rows: Iterable[tuple[int, bytes]]) -> list[Entry]:
    return [Entry(revision, decode(record)) for revision, record in rows]


def _standing(row: tuple[Any, ...]) -> Standing:
    owner, id_, revision, status, endpoint, pool, priority, *rest = row
    return Standing(owner, id_, revision, Status(status), endpoint, pool, Priority(priority), *rest)
