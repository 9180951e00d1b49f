"""Inputs that the fuzz targets found: each made the parser raise an error that its caller does not expect."""

import pytest

from bus.interface import BusError
from bus.nats.jetstream import parse_time_ns
from bus.nats.replies import parse_ack_subject
from edge.http.routes.uploads import parse_checksum, parse_creation
from schemas.endpoint import EndpointInvalid, parse_endpoint
from schemas.problems import ProblemError


def test_a_header_that_is_not_ascii_is_refused():
    with pytest.raises(ProblemError, match="Upload-Metadata is not base64"):
        parse_creation({"Upload-Length": "1", "upload-metadata": "filename \x80ZmFjZQ=="})
    with pytest.raises(ProblemError, match="Upload-Checksum"):
        parse_checksum({"upload-checksum": "sha1 \x80"})


@pytest.mark.parametrize(
    "reply", ["$JS.ACK.JOBS.c.1.x.y.z.0", "$JS.ACK.JOBS.c.1.-1.7.1.0", "$JS.ACK.JOBS.c.1.²." + "9" * 5000]
)
def test_a_reply_subject_without_numbers_belongs_to_no_consumer(reply: str):
    assert parse_ack_subject(reply) is None


def test_a_creation_time_that_is_not_one_is_an_error_of_the_bus():
    with pytest.raises(BusError, match="where a time is expected"):
        parse_time_ns("")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("9" * 5000, "4300 digits"),
        ("1979-05-27", r"1979-05-27 is a date or a time.*\$\.input\.properties\.a\.default"),
        ("[0.0, nan]", r"nan is not a number.*default\[1\]"),
    ],
)
def test_a_value_that_json_does_not_have_is_named(value: str, says: str):
    text = f"name = 'x'\nimage = 'y'\n[input.properties.a]\ndefault = {value}\n"
    with pytest.raises(EndpointInvalid, match=says):
        parse_endpoint(text)
