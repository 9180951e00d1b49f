"""Exceptions that a call can raise.

LamplighterError
├── Unreachable      no answer from the server (exit 3 on the command line)
├── Rejected         the server refused: `.problem` says why (exit 4)
│   ├── NotFound     404
│   ├── Unauthorized 401 and 403
│   ├── Conflict     409: the resource is not in the state that the request needs
│   └── Busy         429, 502, 503, 504 and 507: the same request may succeed later
├── TrustInvalid     `ca` or `pin` cannot be used; nothing was sent (exit 2)
└── JobFailed        the job ended without success: `.job` has the error (exit 1)
"""

from schemas.job_view import JobView
from schemas.problems import Problem


class LamplighterError(Exception):
    """Base class of the exceptions of this package."""


class Unreachable(LamplighterError):
    """The server did not answer. Whether a submit was accepted is unknown: submit again with the same key."""


class TrustInvalid(LamplighterError):
    """`ca` or `pin` cannot be used. The message says what to correct."""


class Rejected(LamplighterError):
    """The server refused the request; nothing was written."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        named = (f"{error.path}: {error.message}" for error in problem.errors)
        more = "".join(f"; {field}" for field in named if field != problem.detail)
        super().__init__(f"{problem.code}: {problem.detail}{more}")


class NotFound(Rejected):
    """The resource does not exist, or belongs to another owner."""


class Unauthorized(Rejected):
    """The key is not valid, or lacks a scope."""


class Conflict(Rejected):
    """The resource is not in the state that the request needs: it has ended, is in use, or differs."""


class Busy(Rejected):
    """A limit is reached, or a part of the server is full or unavailable. The same request may succeed later."""


class JobFailed(LamplighterError):
    """The job ended as failed, cancelled or expired."""

    def __init__(self, job: JobView) -> None:
        self.job = job
        why = f"{job.error.code}: {job.error.message}" if job.error else job.message or "no reason was recorded"
        super().__init__(f"job {job.id} {job.status}: {why}")


ERRORS_BY_STATUS: dict[int, type[Rejected]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    429: Busy,
    502: Busy,
    503: Busy,
    504: Busy,
    507: Busy,
}


def error_from_problem(problem: Problem) -> Rejected:
    """Return the exception for a problem document."""
    return ERRORS_BY_STATUS.get(problem.status, Rejected)(problem)
