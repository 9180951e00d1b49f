"""The envelope of the WebSocket gateway, version 1.0: strict in what the server sends, tolerant in what it reads.

A client may leave out any field but `type`; fields that ClientMessage does not have are ignored. The server always
sends every field of Envelope.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from schemas.job import TRACE_ID_LIMIT_CHARS, Moment
from schemas.problems import ProblemError

PROTOCOL_VERSION = "1.0"
FRAME_LIMIT_BYTES = 1024 * 1024
REQUEST_ID_LIMIT_CHARS = 255
ENVELOPE_SOURCE = "lamplighter"


class EnvelopeType(StrEnum):
    """All values of an envelope's `type`."""

    AUTH = "auth"
    SUBMIT = "gpu.job.submit"
    QUERY = "gpu.job.query"
    CANCEL = "gpu.job.cancel"
    HOSTS = "gpu.status"
    PING = "ping"
    RESUME = "resume"
    PONG = "pong"
    ACK = "ack"
    ERROR = "error"
    STATUS = "gpu.job.status"
    PROGRESS = "gpu.job.progress"
    RESULT = "gpu.job.result"
    ONLINE = "gpu.power.online"
    OFFLINE = "gpu.power.offline"
    START = "gpu.power.start"
    STOP = "gpu.power.stop"
    STATE = "gpu.power.state"


class ClientMessage(Struct, frozen=True, kw_only=True):
    """A message that a client sends over the gateway."""

    type: str
    request_id: str = ""
    trace_id: str = ""
    task_type: str = ""
    payload: dict[str, Any] = {}
    error: bool = False
    error_msg: str = ""
    result: dict[str, Any] = {}


class Envelope(Struct, frozen=True, kw_only=True):
    """A message of the server. `ts`: seconds since 1970."""

    type: EnvelopeType
    version: str = PROTOCOL_VERSION
    source: str = ENVELOPE_SOURCE
    target: str = ""
    ts: int
    request_id: str = ""
    trace_id: str = ""
    task_type: str = ""
    payload: Any = {}
    error: bool = False
    error_msg: str = ""
    result: Any = {}


class JobPayload(Struct, frozen=True, kw_only=True):
    """`payload` of `ack`, of `gpu.power.offline` as an answer, and of every message about a job. Seconds.

    `id` goes back to `resume`; an answer has none. `waited_seconds`: since the submit, while it waits.
    """

    id: str = ""
    job_id: str
    status: str
    queue_position: int | None
    wait_seconds: int
    waited_seconds: int | None = None
    missing: tuple[str, ...]
    message: str


class RejectedJobPayload(Struct, frozen=True, kw_only=True):
    """A job of a batch that was not accepted; `problem` is that of the HTTP API."""

    index: int
    problem: Any


class BatchPayload(Struct, frozen=True, kw_only=True):
    """`payload` of the answer to a batch: its first accepted job, all accepted ones in order, and the rejected ones."""

    job_id: str
    status: str
    queue_position: int | None
    wait_seconds: int
    missing: tuple[str, ...]
    message: str
    jobs: tuple[JobPayload, ...]
    rejected: tuple[RejectedJobPayload, ...]


class ProgressPayload(Struct, frozen=True, kw_only=True):
    """`payload` of `gpu.job.progress`; `fraction` in [0, 1]."""

    id: str
    job_id: str
    status: str = "running"
    fraction: float
    stage: str | None
    done: int | None
    total: int | None
    message: str


class PowerPayload(Struct, frozen=True, kw_only=True):
    """`payload` of the broadcasts about a host's power."""

    id: str
    host: str
    message: str
    at: Moment


class DeletedPayload(Struct, frozen=True, kw_only=True):
    """`payload` of the answer to `delete_asset`."""

    sha256: str
    message: str


class RelayPayload(Struct, frozen=True, kw_only=True):
    """`payload` of a request to a relay; the answer carries the same `call_id`."""

    host: str
    call_id: str


class FrameUnreadable(ProblemError):
    """A frame that is not a message. `request_id` is the one that it carried, as far as it could be read."""

    def __init__(self, code: str, detail: str, request_id: str) -> None:
        super().__init__(code, detail)
        self.request_id = request_id


class _RawClientMessage(Struct, frozen=True, kw_only=True):
    """A message as it arrives: null means that the field is left out."""

    type: str
    version: str | float | None = None
    request_id: str | None = None
    trace_id: str | None = None
    task_type: str | None = None
    payload: dict[str, Any] | None = None
    error: bool | None = None
    error_msg: str | None = None
    result: dict[str, Any] | None = None


class _RequestIdOnly(Struct, frozen=True):
    request_id: str = ""


_message_decoder = msgspec.json.Decoder(_RawClientMessage)
_request_id_decoder = msgspec.json.Decoder(_RequestIdOnly)


def read_frame(frame: str | bytes) -> ClientMessage:
    """Decode a frame. Raises FrameUnreadable with body_too_large, body_malformed or input_invalid."""
    data = frame.encode(errors="replace") if isinstance(frame, str) else frame
    if len(data) > FRAME_LIMIT_BYTES:
        raise _frame_unreadable(
            "body_too_large", "a frame may have at most 1 MiB: upload larger things as assets", data
        )
    try:
        raw = _message_decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _frame_unreadable("input_invalid", f"the message cannot be read: {error}", data) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _frame_unreadable("body_malformed", f"the frame is not JSON: {error}", data) from error
    if raw.version is not None and str(raw.version) != PROTOCOL_VERSION:
        raise _frame_unreadable("input_invalid", f"version {str(raw.version)[:20]!r} is not supported: send 1.0", data)
    if len(raw.request_id or "") > REQUEST_ID_LIMIT_CHARS:
        raise _frame_unreadable("input_invalid", f"a request_id has at most {REQUEST_ID_LIMIT_CHARS} characters", data)
    fields = {name: value for name in ClientMessage.__struct_fields__ if (value := getattr(raw, name)) is not None}
    return ClientMessage(**fields | {"trace_id": (raw.trace_id or "")[:TRACE_ID_LIMIT_CHARS]})


def _frame_unreadable(code: str, detail: str, data: bytes) -> FrameUnreadable:
    try:
        return FrameUnreadable(code, detail, _request_id_decoder.decode(data).request_id)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return FrameUnreadable(code, detail, "")


def encode_envelope(envelope: Envelope) -> str:
    """Return the envelope as JSON, the text of one frame."""
    return msgspec.json.encode(envelope).decode()


def unix_seconds(moment: datetime) -> int:
    """Return the moment in whole seconds, as `ts` of an envelope has it."""
    return int(moment.timestamp())
