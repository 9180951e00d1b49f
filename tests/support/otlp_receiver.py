"""A receiver of spans: a real server that speaks OTLP over HTTP with protobuf, as a tracing system does."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct, field
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.http_server import serve_app
from tests.support.wait import wait_for


class ReceivedSpan(Struct, frozen=True):
    """A span as it arrived. Ids in hexadecimal; `parent` is empty for the first of a trace. Times in nanoseconds."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    is_failed: bool
    message: str
    attributes: dict[str, Any]


class OtlpReceiver(Struct):
    """The spans that arrived. `url`: what `traces.endpoint` is set to."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    async def wait_for_spans(self, *names: str) -> dict[str, ReceivedSpan]:
        """Wait until a span of each name is there; return the first of each."""

        async def are_there() -> bool:
            return all(self.named(name) for name in names)

        await wait_for(are_there)
        return {name: self.named(name)[0] for name in names}

    def app(self) -> ASGIApp:
        async def receive_spans(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            assert (request.url.path, request.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            body = await request.body()
            if request.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.spans += _read_spans(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            await Response(answer, media_type="application/x-protobuf")(scope, receive, send)

        return receive_spans


def _read_spans(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    return [
        ReceivedSpan(
            name=span.name,
            service=_values(resource.resource.attributes)["service.name"],
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            is_failed=span.status.code == span.status.STATUS_CODE_ERROR,
            message=span.status.message,
            attributes=_values(span.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def run_otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    """Run a receiver while the block runs."""
    made = OtlpReceiver()
    async with serve_app(made.app()) as url:
        made.url = url
        yield made
