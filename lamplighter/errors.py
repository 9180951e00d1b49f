"""What a call can raise.

LamplighterError
├── Unreachable      no answer from the server (exit 3 on the command line)
├── Rejected         the server refused: `.problem` says why (exit 4)
│   ├── NotFound     404
│   ├── Unauthorized 401 and 403
│   ├── Conflict     409: it is not as the request takes it to be
│   └── Busy         429, 502, 503, 504 and 507: later it may be taken
└── JobFailed        the job ended, but not in success: `.job` has the error (exit 1)
"""

from schemas.job_view import JobView
from schemas.problems import Problem


class LamplighterError(Exception):
    """Root of what the sdk raises."""


class Unreachable(LamplighterError):
    """The server did not answer. Whether a submit was accepted is unknown: submit again with the same key."""


class Rejected(LamplighterError):
    """The server refused the request; nothing was written."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        named = (f"{error.path}: {error.message}" for error in problem.errors)
        more = "".join(f"; {field}" for field in named if field != problem.detail)
        super().__init__(f"{problem.code}: {problem.detail}{more}")


class NotFound(Rejected):
    """There is no such thing, or it is another owner's."""


class Unauthorized(Rejected):
    """The key is not valid, or lacks a scope."""


class Conflict(Rejected):
    """The thing is not as the request takes it to be: it has ended, is in use, or is another one."""


class Busy(Rejected):
    """A limit is reached or something is full or away: the same request may be taken later."""


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
    """The exception for a problem document."""
    return ERRORS_BY_STATUS.get(problem.status, Rejected)(problem)
