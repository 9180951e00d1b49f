"""The parsers of untrusted bytes from clients, jobs and the broker, with examples and the properties that must hold.

`check` raises if a property does not hold. It catches the errors that a parser documents; every other error is a
defect.
"""

import base64
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
from litestar import Request
from nats.aio.msg import Msg

from bus.interface import BusError
from bus.nats import wire
from bus.nats.jetstream import StreamInfo, parse_response, parse_time_ns
from bus.nats.replies import parse_ack_subject
from edge.http.request_input import open_form
from edge.http.routes.uploads import METADATA_LIMIT_BYTES, parse_byte_count, parse_checksum, parse_creation
from schemas import gateway_protocol
from schemas.asset import is_digest
from schemas.container_protocol import (
    ERROR_MESSAGE_LIMIT_CHARS,
    LINE_LIMIT_BYTES,
    WORD_LIMIT_CHARS,
    ContainerLine,
    ErrorLine,
    LineParser,
    OutputStream,
    ProgressLine,
)
from schemas.endpoint import EndpointInvalid, parse_endpoint
from schemas.problems import ProblemError

ROOT = Path(__file__).parents[2]
FORM_LIMIT = 10_000  # bytes of one file in a form
BOUNDARY = b"frontier"
SPLITS = (1, 7, 65_536)  # sizes of the chunks in which a container's output is read


class FuzzTarget(NamedTuple):
    """A parser to fuzz. `seeds`: valid inputs. `words`: bytes with a meaning in the format."""

    name: str
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    check: Callable[[bytes], None]


def _envelope(data: bytes) -> None:
    """A frame is rejected, or it is a message that survives a round trip."""
    for frame in (data, data.decode(errors="replace")):
        try:
            message = gateway_protocol.read_frame(frame)
        except gateway_protocol.FrameUnreadable:
            pass
        else:
            assert len(message.request_id) <= gateway_protocol.REQUEST_ID_LIMIT_CHARS
            assert gateway_protocol.read_frame(msgspec.json.encode(message)) == message


def _tus(data: bytes) -> None:
    """Headers are parsed or rejected. A name is never empty, and a digest is valid."""
    text = data.decode("latin-1")
    with contextlib.suppress(ProblemError):
        made = parse_creation({"Upload-Length": "1", "upload-metadata": text})
        assert made.name
        assert len(made.metadata) <= METADATA_LIMIT_BYTES
        assert made.expected is None or is_digest(made.expected)
    with contextlib.suppress(ProblemError):
        sum_ = parse_checksum({"upload-checksum": text})
        assert sum_ is not None
    with contextlib.suppress(ProblemError):
        count = parse_byte_count({"Upload-Length": text}, "Upload-Length")
        assert count is not None
        assert 0 <= count < 10**18


def _form(data: bytes) -> None:
    """A body is read into bounded fields or rejected, for any split into chunks."""
    for size in (max(1, len(data)), 3):
        with contextlib.suppress(ProblemError):
            anyio.run(_read_form, data, size)


async def _read_form(data: bytes, size: int) -> None:
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])

    async def receive() -> Any:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    headers = [(b"content-type", b"multipart/form-data; boundary=" + BOUNDARY)]
    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b"", "state": {}}
    async with open_form(Request(scope, receive=receive), FORM_LIMIT) as form:
        for _, value in form.multi_items():
            if not isinstance(value, str):
                assert len(await value.read()) <= FORM_LIMIT


def _endpoint(data: bytes) -> None:
    """A file is an endpoint that survives a round trip, or raises EndpointInvalid."""
    with contextlib.suppress(EndpointInvalid):
        read = parse_endpoint(data.decode(errors="replace"))
        assert msgspec.json.decode(msgspec.json.encode(read), type=type(read)) == read


def _lines(data: bytes) -> None:
    """The output of a container gives the same bounded messages for any split into chunks."""
    for stream in ("stdout", "stderr"):
        runs = [_parsed(stream, data, size) for size in SPLITS]
        assert runs[0] == runs[1] == runs[2]
        for message in runs[0]:
            if isinstance(message, ProgressLine):
                assert 0.0 <= message.fraction <= 1.0
                assert len(message.stage or "") <= WORD_LIMIT_CHARS
            if isinstance(message, ErrorLine):
                assert len(message.message) <= ERROR_MESSAGE_LIMIT_CHARS
            assert len(msgspec.json.encode(message)) <= 8 * LINE_LIMIT_BYTES


def _parsed(stream: OutputStream, data: bytes, size: int) -> list[ContainerLine]:
    parser, ends, messages = LineParser(stream), [-1], []
    chunks = [parser.feed(data[at : at + size], at) for at in range(0, len(data), size)]
    for parsed in itertools.chain(*chunks, parser.close()):
        assert parsed.end > ends[-1] or not data
        ends.append(parsed.end)
        messages.append(parsed.message)
    return messages


def _broker(data: bytes) -> None:
    """A reply of the broker is parsed, ignored, or raised as an error of the bus."""
    text = data.decode(errors="replace")
    parse_ack_subject("$JS.ACK." + text)
    parse_ack_subject(text)
    wire.try_decode_record(data)
    wire.try_decode_feed_message(data)
    wire.try_decode_delivery(text, data)
    wire.parse_pointer_subject(text)
    with contextlib.suppress(BusError):
        info = parse_response(
            "$JS.API.STREAM.INFO.STATE", Msg(None, "_INBOX.x", "", data), StreamInfo
        )  # no client is asked
        parse_time_ns(info.created)


def _base64(text: str) -> bytes:
    return base64.b64encode(text.encode())


def _multipart(*parts: bytes) -> bytes:
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"


_FIELD = b'Content-Disposition: form-data; name="job"\r\n\r\n{"endpoint":"echo"}'
_FILE = b'Content-Disposition: form-data; name="video"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\nxyz'

TARGETS = (
    FuzzTarget(
        "envelope",
        (
            b'{"type":"ping","request_id":"r1","version":"1.0"}',
            b'{"type":"gpu.job.submit","task_type":"echo","payload":{"job_id":"a","input":{"text":"hi"}}}',
            b'{"type":"auth","payload":{"license_key":"lamp_x_y"},"trace_id":"t","error":false,"result":{}}',
        ),
        (b'"type"', b'"payload"', b'"request_id":', b'"version":1.0', b"{}", b"[]"),
        _envelope,
    ),
    FuzzTarget(
        "tus",
        (
            b"filename " + _base64("face.mp4") + b",filetype " + _base64("video/mp4"),
            b"sha256 " + _base64("0" * 64) + b",name " + _base64("名字"),
            b"sha1 " + base64.b64encode(b"x" * 20),
            b"104857600",
        ),
        (b",", b" ", b"filename", b"sha256 ", b"type ", b"=", _base64("../../etc/passwd"), _base64("a\r\nb")),
        _tus,
    ),
    FuzzTarget(
        "multipart",
        (_multipart(_FIELD, _FILE), _multipart(_FIELD), _multipart(_FILE, _FILE)),
        (
            b"--" + BOUNDARY,
            b"--",
            b"\r\n\r\n",
            b'filename=""',
            b'name="job"',
            b"charset=utf-16",
            b"x" * (FORM_LIMIT + 1),
        ),
        _form,
    ),
    FuzzTarget(
        "endpoint",
        tuple((ROOT / "images" / name / "endpoint.toml").read_bytes() for name in ("echo", "preview", "heygem")),
        (
            b"[input]",
            b"[resources]\n",
            b"default = nan\n",
            b"name = 'x'\n",
            b"= ",
            b"'''",
            b"a.b.c = 1\n",
            b"1979-05-27",
        ),
        _endpoint,
    ),
    FuzzTarget(
        "lines",
        (
            b'{"type":"progress","fraction":0.5,"stage":"render","done":1,"total":2}\n',
            b'{"type":"error","code":"bad_input","message":"no face"}\nlast words',
            b'{"type":"metric","name":"fps","value":24.5,"unit":"1/s"}\n{"type":"ready"}\n',
            b"plain text\r\nmore\n\n",
        ),
        (b'"type":', b'"progress"', b'"fraction":', b"1e400", b'"total":0', b"x" * (LINE_LIMIT_BYTES + 1)),
        _lines,
    ),
    FuzzTarget(
        "broker",
        (
            b"$JS.ACK.JOBS.echo-high.1.42.7.1795982400000000000.3",
            b"JOBS.echo-high.1.42.7.1795982400000000000.3",
            b"STATE.c.1.x.y.z.0",
            b'{"type":"io.nats.jetstream.api.v1.stream_info_response","created":"2026-11-29T17:55:44.58Z","state":{}}',
            b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}',
            b'{"at":"2026-11-29T17:55:44Z","event":{"type":"queued"},"job":{}}',
        ),
        (b"$JS.ACK.", b"._.", b'"seq":-1', b'"created":""', b'"err_code":', b'"sources":[{}]', b"Z"),
        _broker,
    ),
)

BY_NAME = {target.name: target for target in TARGETS}
