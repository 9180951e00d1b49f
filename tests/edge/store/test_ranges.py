"""The Range header as RFC 9110, section 14, reads it."""

import pytest

from edge.store.ranges import Span, Unsatisfiable, one_span


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        (None, None),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=5-", Span(5, 10)),
        ("bytes=-3", Span(7, 10)),
        ("bytes=-30", Span(0, 10)),
        ("bytes=8-99", Span(8, 10)),
        ("Bytes= 2-4 ", Span(2, 5)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("items=0-1", None),
        ("bytes=x-", None),
    ],
)
def test_one_range_of_ten_bytes(asked: str | None, span: Span | None):
    assert one_span(asked, 10) == span


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_nothing_of_it_is_there(asked: str):
    with pytest.raises(Unsatisfiable):
        one_span(asked, 10)
