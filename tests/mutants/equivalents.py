"""Mutants that no test can kill, each with the reason. They are found by their text; one that matches nothing fails."""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant of `path` inside `function`; `change` is as `just mutants` prints it."""

    path: str
    function: str
    change: str
    reason: str


UNEQUAL = "The two are known to be unequal here, so that < and <= decide the same."
UNNAMED_BOUND = "A bound on memory or work: nothing is promised about its exact value, and any near it does as well."
REREAD = "One edge reads back the state that it knows, and `_load` keeps an upload to which a request sends."
CLOCK_BOUNDARY = "The clocks of two readings would have to agree to the last digit for the two to differ."
EXIT_KNOWN = "Without an exit an earlier rule, `_vanished`, decides: the comparison only tells the type checker."
TESTED_FOR_TRUTH = "The callers only test it for truth."
NO_BUDGET_WITHOUT_PRICE = "`HostConfig` refuses a budget in money without a price, so that the amount counts nowhere."
RECORD_KNOWN = "Without a record the action is REMOVE: the comparison only tells the type checker."

EQUIVALENTS: tuple[Equivalent, ...] = (
    Equivalent(
        "runner/claiming/recovery.py",
        "choose_recovery_action",
        "(identity.round, identity.attempt) < (job.round, job.attempt) → "
        "(identity.round, identity.attempt) <= (job.round, job.attempt)",
        UNEQUAL,
    ),
    Equivalent(
        "runner/claiming/recovery.py",
        "ContainerRecovery._apply_action",
        "action is RecoveryAction.FOLLOW and entry is not None → action is RecoveryAction.FOLLOW",
        RECORD_KNOWN,
    ),
    Equivalent(
        "runner/claiming/recovery.py",
        "ContainerRecovery._apply_action",
        "action is RecoveryAction.RELEASE and entry is not None and (entry.record.job.status in ACTIVE_STATUSES) → "
        "action is RecoveryAction.RELEASE and entry.record.job.status in ACTIVE_STATUSES",
        RECORD_KNOWN,
    ),
    Equivalent(
        "runner/claiming/recovery.py",
        "ContainerRecovery.recover_poisoned_slots",
        "key in self._host.slots.poisoned and (not await self._find_containers_of(key)) → "
        "not await self._find_containers_of(key)",
        "To free a slot that is not poisoned any more does nothing.",
    ),
    Equivalent(
        "runner/claiming/loop.py",
        "decide",
        "pointer.round < job.round → pointer.round <= job.round",
        UNEQUAL,
    ),
    Equivalent(
        "runner/assets/cache.py",
        "hash_file",
        "buffering=0 → buffering=-1",
        "The bytes are the same; a buffer only costs a copy, because `file_digest` has its own.",
    ),
    Equivalent("runner/assets/cache.py", "", "1 << 20 → 1 << 19", UNNAMED_BOUND),
    Equivalent("runner/assets/cache.py", "", "1 << 20 → 1 << 21", UNNAMED_BOUND),
    Equivalent("runner/assets/cache.py", "", "10000 → 9999", UNNAMED_BOUND),
    Equivalent("runner/assets/cache.py", "", "10000 → 10001", UNNAMED_BOUND),
    Equivalent(
        "edge/http/auth.py",
        "_authenticate_signed_url",
        "connection.scope.get('method') not in _SAFE_METHODS or SIGNATURE_PARAMETER not in connection.query_params → "
        "connection.scope.get('method') not in _SAFE_METHODS",
        "Without the parameter no signature can match: `key_for_url` returns None too, after one more computation.",
    ),
    Equivalent("edge/owners/api_keys.py", "", "10000 → 10001", UNNAMED_BOUND),
    Equivalent("edge/owners/api_keys.py", "", "10000 → 9999", UNNAMED_BOUND),
    Equivalent("schemas/webhook.py", "", "100 → 99", UNNAMED_BOUND),
    Equivalent("schemas/webhook.py", "", "100 → 101", UNNAMED_BOUND),
    Equivalent("edge/outbound.py", "", "256 * 1024 → 255 * 1024", UNNAMED_BOUND),
    Equivalent("edge/outbound.py", "", "256 * 1024 → 256 * 1023", UNNAMED_BOUND),
    Equivalent(
        "edge/outbound.py",
        "",
        "httpx2.Timeout(30.0, connect=10.0) → httpx2.Timeout(29.0, connect=10.0)",
        UNNAMED_BOUND,
    ),
    Equivalent(
        "edge/outbound.py",
        "",
        "httpx2.Timeout(30.0, connect=10.0) → httpx2.Timeout(31.0, connect=10.0)",
        UNNAMED_BOUND,
    ),
    Equivalent("edge/outbound.py", "", "connect=10.0 → connect=9.0", UNNAMED_BOUND),
    Equivalent("edge/outbound.py", "", "connect=10.0 → connect=11.0", UNNAMED_BOUND),
    Equivalent("edge/outbound.py", "_is_decodable_host", "return False → return None", "Only its truth is used."),
    Equivalent(
        "edge/outbound.py",
        "SsrfGuardTransport.handle_async_request",
        "continue → pass",
        "It is the last statement of the loop, and says that the loop goes on.",
    ),
    Equivalent(
        "edge/outbound.py",
        "guarded_client",
        "max_keepalive_connections=0 → max_keepalive_connections=-1",
        "No connection is kept in both cases.",
    ),
    Equivalent(
        "edge/outbound.py",
        "DownloadFailed.__init__",
        "super().__init__(message) → pass",
        "`Exception.__new__` has kept the message already.",
    ),
    Equivalent("edge/outbound.py", "_describe_error", ":300 → :299", UNNAMED_BOUND),
    Equivalent("edge/outbound.py", "_describe_error", ":300 → :301", UNNAMED_BOUND),
    Equivalent("bus/nats/feed.py", "", "10000 → 10001", UNNAMED_BOUND),
    Equivalent(
        "edge/power/state_machine.py",
        "_enter_state",
        "c.power_prohibition(record, at, case.rules) or '' → c.power_prohibition(record, at, case.rules)",
        "A row that names the prohibition is taken only where there is one; the other rows do not print it.",
    ),
    Equivalent(
        "edge/power/state_machine.py",
        "_enter_state",
        "row.target or record.state → row.target",
        "Only a row with a target is entered: the state is named for the type checker.",
    ),
    Equivalent(
        "edge/power/conditions.py",
        "is_reported_pending",
        "case.facts.heartbeat is None and case.facts.reported_power is ReportedPower.PENDING → "
        "case.facts.reported_power is ReportedPower.PENDING",
        "Only BLOCKED asks it, and with a heartbeat an earlier row leaves that state.",
    ),
    Equivalent(
        "edge/power/conditions.py",
        "is_new_incarnation",
        "heartbeat is not None and heartbeat.is_readable and (heartbeat.incarnation != case.record.incarnation) → "
        "heartbeat.is_readable and heartbeat.incarnation != case.record.incarnation",
        "Its row asks `is_heartbeating` first: the comparison only tells the type checker.",
    ),
    Equivalent(
        "edge/power/conditions.py",
        "is_idle",
        "return False → return None",
        TESTED_FOR_TRUTH,
    ),
    Equivalent(
        "edge/power/conditions.py",
        "was_stopped_lately",
        "-1.0 → -2.0",
        "Any negative time means that the host was not stopped lately.",
    ),
    Equivalent("edge/power/conditions.py", "is_budget_exhausted", "return False → return None", TESTED_FOR_TRUTH),
    Equivalent(
        "edge/power/conditions.py",
        "is_budget_exhausted",
        "hours * rules.price.hourly_cost if rules.price else 0.0 → "
        "hours * rules.price.hourly_cost if rules.price else 1.0",
        NO_BUDGET_WITHOUT_PRICE,
    ),
    Equivalent(
        "edge/power/conditions.py",
        "is_budget_exhausted",
        "hours * rules.price.hourly_cost if rules.price else 0.0 → "
        "hours * rules.price.hourly_cost if rules.price else -1.0",
        NO_BUDGET_WITHOUT_PRICE,
    ),
    Equivalent(
        "edge/power/state_machine.py",
        "_enter_waking",
        "case.record.state is PowerState.BLOCKED and (not c.is_call_done(case)) → not c.is_call_done(case)",
        "From the other states where the host was not up, a new start call replaces the one of the record.",
    ),
    Equivalent(
        "edge/power/state_machine.py",
        "_measured_wake",
        "record.call is None or not c.is_start_call(case) or record.state is not PowerState.WAKING → "
        "not c.is_start_call(case) or record.state is not PowerState.WAKING",
        "`is_start_call` is False without a call: the comparison only tells the type checker.",
    ),
    Equivalent(
        "runner/execution/verdict.py",
        "_module_missing",
        "facts.exit is None or facts.exit.code != PYTHON_ERROR_EXIT or facts.error_line is not None → "
        "facts.exit.code != PYTHON_ERROR_EXIT or facts.error_line is not None",
        EXIT_KNOWN,
    ),
    Equivalent(
        "runner/execution/verdict.py",
        "_exited_with_error",
        "facts.exit is None or facts.exit.code == ExitCode.DONE → facts.exit.code == ExitCode.DONE",
        EXIT_KNOWN,
    ),
    Equivalent(
        "edge/jobs/publish_window.py",
        "PublishWindow._on_row_changes",
        "self._synced and self._keys_with_room → self._synced",
        "A notification wakes the refill task, which tests the same condition again and goes on waiting.",
    ),
    Equivalent(
        "edge/jobs/publish_window.py",
        "PublishWindow._apply_row",
        "row.status is Status.QUEUED and (not self.contains(pointer)) and self._free_places(queue) → "
        "not self.contains(pointer) and self._free_places(queue)",
        "`fill` asks the index for queued jobs alone, so that a queue without any is read and left as it is.",
    ),
    Equivalent(
        "edge/jobs/service.py",
        "JobService._cancel",
        "job.claim is not None and job.status is Status.CANCELLING → job.status is Status.CANCELLING",
        "Only a running job becomes one that is being cancelled, and a running job has a claim.",
    ),
    Equivalent("edge/jobs/service.py", "", "16 → 15", UNNAMED_BOUND),
    Equivalent("edge/jobs/service.py", "", "16 → 17", UNNAMED_BOUND),
    Equivalent(
        "edge/jobs/service.py",
        "_is_of_request",
        "not submission.replayed or submission.entry.record.job.request_digest == request_digest(body) → "
        "submission.entry.record.job.request_digest == request_digest(body)",
        "The record of a new job has the digest of its request.",
    ),
    Equivalent(
        "edge/jobs/submission.py",
        "Admission.choose_id",
        "self._entropy(10) → self._entropy(11)",
        "`make_uuid7` takes the first ten bytes.",
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "WriterTurn.is_silent",
        "anyio.current_time() - self._last_chunk_at >= WRITER_SILENCE_TIMEOUT_S → "
        "anyio.current_time() - self._last_chunk_at > WRITER_SILENCE_TIMEOUT_S",
        CLOCK_BOUNDARY,
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "_OpenUpload.__init__",
        "upload.offset == 0 → upload.offset == -1",
        "Without a hasher the bytes of the upload are read again, of which there are none.",
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "UploadService._get_upload",
        "self._states.is_shared and (not entry.writer.is_held) → not entry.writer.is_held",
        REREAD,
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "UploadService._get_upload",
        "self._states.is_shared and (not entry.writer.is_held) → self._states.is_shared or not entry.writer.is_held",
        REREAD,
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "UploadService._get_upload",
        "entry = None → pass",
        "Every caller asks again before it changes the upload, and then finds none.",
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "UploadService._write_chunk",
        "checker and checksum and (checker.digest() != checksum.digest) → checksum and "
        "checker.digest() != checksum.digest",
        "There is a checker exactly where there is a checksum.",
    ),
    Equivalent(
        "edge/assets/uploads.py",
        "UploadService._write_chunk",
        "entry.hasher = appender.hasher → pass",
        "The next request reads the bytes of the upload again: slower, with the same digest.",
    ),
    Equivalent(
        "edge/assets/service.py",
        "AssetService.list",
        ":2 → :3",
        "A row that begins with the cursor is longer, and so not less than it: it is left out as before.",
    ),
    Equivalent(
        "edge/assets/service.py",
        "AssetService.get",
        "row is None or stored is None → stored is None",
        "Without a reference the bytes are not looked up, so that `stored` is None too.",
    ),
    Equivalent(
        "edge/outbound.py",
        "PerOwnerLimiter.slot",
        "not own.borrowed_tokens and (not own.statistics().tasks_waiting) → not own.borrowed_tokens",
        "anyio gives a token that is released to the task that waits for it, so that no task waits where none is held.",
    ),
    Equivalent(
        "bus/nats/feed.py",
        "NatsJobFeed.messages",
        "not wire.is_state_subject(item.subject) and (message := wire.try_decode_feed_message(item.data)) → "
        "(message := wire.try_decode_feed_message(item.data))",
        "The message of a state is a job's record, which is not decoded as a feed message: it is only tried.",
    ),
    Equivalent(
        "bus/nats/feed.py",
        "NatsJobFeed._sourced_revision",
        "default=0 → default=-1",
        "It is only compared with revisions of STATE, which start at 1.",
    ),
    Equivalent(
        "bus/nats/jetstream.py",
        "OrderedConsumer._handle_control",
        "message.headers or {} → message.headers",
        "Only a message with a status comes here, and a status is a header.",
    ),
    Equivalent(
        "runner/execution/execution.py",
        "Execution._clean_up",
        "self.handle is None and warm is not None → warm is not None",
        "A warm container that has a handle here runs its job: it is detached, and removing it twice does nothing.",
    ),
    Equivalent(
        "runner/claiming/loop.py",
        "ClaimLoop.__init__",
        "0.0 → 1.0",
        "`_all_due_at` is read only after a wake, and before the first wake all lanes are fetched, which sets it.",
    ),
    Equivalent(
        "runner/claiming/loop.py",
        "ClaimLoop._fetch_next",
        "anyio.current_time() >= self._all_due_at → anyio.current_time() > self._all_due_at",
        CLOCK_BOUNDARY,
    ),
    Equivalent(
        "runner/execution/execution.py",
        "Execution._find_leak",
        "warm is not None and warm.reuse is not None → warm.reuse is not None",
        "Called only for a container that is left after its job: that is a reused one, so that `warm` is known.",
    ),
    Equivalent(
        "runner/execution/execution.py",
        "Execution._offer_to_pool",
        "self._reuse is not None and warm is not None and (pump.rest is not None) → "
        "self._reuse is not None and pump.rest is not None",
        "`_reuse` is that of `warm`, and so is set only where `warm` is known.",
    ),
)
