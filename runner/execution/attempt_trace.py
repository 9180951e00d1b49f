"""The spans of one attempt: how long the job waited, and each step of its execution."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from bus.spans import NO_SPANS, OpenSpan, SpanRecorder, span
from runner.context import RunnerContext
from schemas.job import Job


class AttemptTrace:
    """Records the steps of an attempt inside one span. A job without a trace context has no spans."""

    def __init__(self, context: RunnerContext, job: Job) -> None:
        self._spans: SpanRecorder = NO_SPANS if job.traceparent is None else context.spans
        self._context, self._job = context, job
        self._attempt: OpenSpan | None = None

    @property
    def traceparent(self) -> str | None:
        """Return the parent for spans of the job's program."""
        return self._attempt.traceparent if self._attempt is not None else self._job.traceparent

    @contextmanager
    def attempt(self) -> Iterator[OpenSpan]:
        """Record the block as the span around all steps."""
        job = self._job
        names = {"job_id": job.id, "owner": job.owner, "endpoint": job.endpoint, "host": self._context.host}
        with span(
            self._spans, "attempt", job.traceparent, **names, job_round=job.round, job_attempt=job.attempt
        ) as opened:
            self._attempt = opened
            yield opened

    def step(self, name: str) -> AbstractContextManager[OpenSpan]:
        """Record the block as a span, as one step of the attempt."""
        return span(self._spans, name, self.traceparent)

    def record_wait(self) -> None:
        """Record the span from the queueing until now, and in it the part before this runner was ready."""
        queued_at, ready_at = self._job.queued_at, self._context.ready_at
        if queued_at is None:
            return
        until = max(self._context.now(), queued_at)  # the clock of this machine may be behind
        queue = self._spans.record("queue", self._job.traceparent, queued_at, until)
        if ready_at is not None and queued_at < ready_at:
            self._spans.record("wake", queue, queued_at, ready_at, host=self._context.host)
