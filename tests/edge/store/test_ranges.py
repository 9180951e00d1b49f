"""The Range header by RFC 9110, section 14."""

import pytest

from edge.http.responses import ByteRange, RangeNotSatisfiable, parse_single_range


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        (None, None),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=5-", ByteRange(5, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-30", ByteRange(0, 10)),
        ("bytes=8-99", ByteRange(8, 10)),
        ("Bytes= 2-4 ", ByteRange(2, 5)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("items=0-1", None),
        ("bytes=x-", None),
    ],
)
def test_one_range_of_ten_bytes(asked: str | None, span: ByteRange | None):
    assert parse_single_range(asked, 10) == span


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_nothing_of_it_is_there(asked: str):
    with pytest.raises(RangeNotSatisfiable):
        parse_single_range(asked, 10)
