"""Requests and answers without a network."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamplighter import api
from lamplighter.api import NotFound, Rejected, Unauthorized
from lamplighter.follow import Event, SseParser
from schemas.problems import FieldError, ProblemError


def test_submit_with_an_id_is_a_put_and_without_one_a_post_with_its_key():
    named = api.submit_job("echo", {"text": "a"}, job_id="mine", priority="high")
    keyed = api.submit_job("echo", {"text": "a"}, idempotency_key="k")
    assert (named.method, named.path, named.body) == (
        "PUT",
        "/v1/jobs/mine",
        {"endpoint": "echo", "input": {"text": "a"}, "priority": "high"},
    )
    assert (keyed.method, keyed.path, keyed.headers) == ("POST", "/v1/jobs", {"Idempotency-Key": "k"})


@pytest.mark.parametrize(
    ("code", "kind"), [("not_found", NotFound), ("forbidden", Unauthorized), ("input_invalid", Rejected)]
)
def test_a_problem_becomes_its_exception(code, kind):
    problem = ProblemError(code, "because").problem
    error = api.error_from_response(problem.status, msgspec.json.encode(problem))
    assert type(error) is kind
    assert str(error) == f"{code}: because"


def test_a_page_of_a_proxy_is_a_refusal_too():
    error = api.error_from_response(502, b"<html>Bad gateway</html>")
    assert isinstance(error, Rejected)
    assert (error.problem.code, error.problem.status) == ("http_502", 502)


def test_a_page_is_reported_in_one_line():
    assert str(api.error_from_response(404, b"<html>\nNot here</html>\n")) == "http_404: <html> Not here</html>"


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 10**9),
        st.sampled_from(["state", "progress", "log"]),
        st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    ),
    max_size=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(EVENTS, st.booleans())
def test_events_are_read_as_they_were_written_between_comments(events, chatty):
    reader, read = SseParser(), []
    for number, kind, data in events:
        lines = [f"id: 7-{number}", f"event: {kind}", f"data: {msgspec.json.encode(data).decode()}", ""]
        for line in ([": still here", ""] if chatty else []) + lines:
            read += reader.feed(line)
    assert read == [Event(f"7-{number}", kind, data) for number, kind, data in events]
    assert reader.last_id == (f"7-{events[-1][0]}" if events else None)


def test_an_event_without_data_is_none():
    reader = SseParser("7-1")
    assert list(reader.read(': still here\r\ndata: \r\n\r\ndata: {"b":2}\r\n\r\n')) == [
        Event("7-1", "message", {"b": 2})
    ]


def test_an_event_cut_by_the_connection_is_not_given_and_its_id_is_not_taken():
    reader = SseParser("7-1")
    assert list(reader.read('id: 7-2\r\nevent: log\r\ndata: {"a":1}\r\n')) == []
    assert reader.last_id == "7-1"
    reader.reset()
    assert list(reader.read('data: {"b":2}\r\n\r\n')) == [Event("7-1", "message", {"b": 2})]


@given(EVENTS, st.randoms(use_true_random=False))
def test_pieces_of_any_size_are_the_same_events(events, dice):
    text = "".join(
        f"id: 7-{number}\r\nevent: {kind}\r\ndata: {msgspec.json.encode(data).decode()}\r\n\r\n"
        for number, kind, data in events
    )
    cuts = sorted(dice.randrange(len(text) + 1) for _ in range(5))
    reader, read = SseParser(), []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        read += reader.read(text[start:stop])
    assert read == [Event(f"7-{number}", kind, data) for number, kind, data in events]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_what_only_looks_like_the_end_of_a_line_is_text(separator):
    line = msgspec.json.encode({"text": f"a{separator}b"}).decode()
    (event,) = SseParser().read(f"data: {line}\n\n")
    assert event.data == {"text": f"a{separator}b"}


def test_names_in_a_path_are_quoted():
    assert api.get_job("../keys").path == "/v1/jobs/..%2Fkeys"
    assert api.job_path("mine", "files", "a b?#%.png") == "/v1/jobs/mine/files/a%20b%3F%23%25.png"


def test_a_refusal_names_each_field_once():
    fields = (FieldError("$.a", "is wrong"), FieldError("$.b", "is too"))
    problem = ProblemError("input_invalid", "$.a: is wrong", errors=fields).problem
    assert (
        str(api.error_from_response(422, msgspec.json.encode(problem))) == "input_invalid: $.a: is wrong; $.b: is too"
    )
