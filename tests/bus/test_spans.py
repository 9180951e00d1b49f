"""Spans by OpenTelemetry's SDK to a real receiver, and what becomes of them without one."""

import builtins
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.otlp import QUEUE_LIMIT, _ThrottledLog
from bus.spans import NO_SPANS, TraceSettings, TracesUnavailable, normalize_traceparent, open_spans, span
from schemas.settings_loader import SettingsInvalid, load_settings
from tests.support.otlp_receiver import run_otlp_receiver

TRACE, OUTER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT, UNSAMPLED = f"00-{TRACE}-{OUTER}-01", f"00-{TRACE}-{OUTER}-00"
AT = datetime(2026, 11, 30, 8, 0, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


async def test_spans_arrive_inside_the_client_s_span_with_names_times_and_attributes() -> None:
    async with run_otlp_receiver() as receiver:
        async with open_spans(TraceSettings(receiver.url), "lamplighter-test") as spans:
            with (
                span(spans, "submit", CONTEXT, job_id="a") as outer,
                pytest.raises(ValueError, match="secret"),
                span(spans, "stage", outer.traceparent),
            ):
                raise ValueError("a secret text")
            queue = spans.record("queue", outer.traceparent, AT, AT + timedelta(seconds=2))
            spans.record("wake", queue, AT, AT + timedelta(seconds=1))
            spans.start("root", None).end()
        got = await receiver.wait_for_spans("submit", "stage", "queue", "wake", "root")
    assert {one.trace for name, one in got.items() if name != "root"} == {TRACE}
    assert [got[name].parent for name in ("submit", "stage", "queue", "wake", "root")] == [
        *(OUTER, got["submit"].id, got["submit"].id, got["queue"].id, ""),
    ]
    assert (got["submit"].service, got["submit"].attributes) == ("lamplighter-test", {"lamplighter.job_id": "a"})
    assert (got["stage"].is_failed, got["stage"].message, got["submit"].is_failed) == (True, "ValueError", False)
    assert got["queue"].end_ns - got["queue"].start_ns == 2_000_000_000
    assert got["queue"].start_ns == int(AT.timestamp()) * 1_000_000_000


async def test_a_trace_that_the_client_does_not_sample_is_passed_on_and_not_sent() -> None:
    async with run_otlp_receiver() as receiver:
        async with open_spans(TraceSettings(receiver.url), "lamplighter-test") as spans:
            inner = spans.start("unsampled", UNSAMPLED)
            inner.end()
            spans.start("sampled", CONTEXT).end()
        await receiver.wait_for_spans("sampled")
    assert [one.name for one in receiver.spans] == ["sampled"]
    assert inner.traceparent is not None
    assert (inner.traceparent.split("-")[1], inner.traceparent[-2:]) == (TRACE, "00")


async def test_a_dead_receiver_costs_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with open_spans(TraceSettings(NOWHERE), "lamplighter-test") as spans:
        for _ in range(2 * QUEUE_LIMIT):
            with span(spans, "submit", CONTEXT):
                pass
        inner = spans.start("submit", CONTEXT)
    assert inner.traceparent is not None
    assert len([one for one in caplog.records if one.name.endswith("trace_exporter")]) <= 2


def test_a_log_of_the_exporter_is_one_line_a_minute() -> None:
    clock = iter((0.0, 59.0, 60.0, 61.0))
    throttle = _ThrottledLog(lambda: next(clock))
    record = logging.LogRecord("a", logging.WARNING, "", 1, "cannot send", (), None)
    assert [throttle.filter(record) for _ in range(4)] == [True, False, True, False]


async def test_without_an_endpoint_nothing_is_recorded_and_the_context_is_passed_on() -> None:
    async with open_spans(TraceSettings(), "lamplighter-test") as spans:
        assert spans is NO_SPANS
        with span(spans, "submit", CONTEXT) as opened:
            opened.set(job_id="a")
        assert opened.traceparent == CONTEXT
        assert spans.record("queue", None, AT, AT) is None


async def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "bus.otlp" or name.endswith(".otlp"):
            raise ModuleNotFoundError("No module named 'opentelemetry'", name="opentelemetry.sdk")
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(TracesUnavailable, match=r"pip install 'lamplighter-server\[traces\]'"):
        async with open_spans(TraceSettings(NOWHERE), "lamplighter-test"):
            pass


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="endpoint"):
        load_settings(TraceSettings, "", {"LAMPLIGHTER_ENDPOINT": "127.0.0.1:4318"})


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (CONTEXT, CONTEXT),
        (f" {CONTEXT} ", CONTEXT),
        (CONTEXT[:-2] + "03", CONTEXT),  # a flag of a later version
        (f"01{CONTEXT[2:]}-what-comes", CONTEXT),
        (UNSAMPLED, UNSAMPLED),
        (f"ff{CONTEXT[2:]}", None),
        (f"{CONTEXT}-more", None),
        (f"00-{'0' * 32}-{OUTER}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (CONTEXT.upper(), None),
        (f"{CONTEXT}\n\nx", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_w3c_says(text: str, context: str | None) -> None:
    assert normalize_traceparent(text) == context
