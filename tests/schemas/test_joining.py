"""Join tokens: what goes in comes out, and what is none is said to be none."""

import pytest
from msgspec.structs import replace

from schemas.credentials import JoinToken, JoinTokenInvalid, decode_join_token, encode_join_token

INVITATION = JoinToken(
    host="gpu-1",
    edge="https://192.0.2.1:8443",
    broker="tls://192.0.2.1:4222,tls://192.0.2.2:4222",
    user="runner-gpu-1",
    password="p-secret",
    key="lamp_id_secret",
    edge_pin="a" * 64,
)


@pytest.mark.parametrize("around", ["{}", "  {}\n"])
def test_a_token_says_what_was_put_in(around: str):
    assert decode_join_token(around.format(encode_join_token(INVITATION))) == INVITATION
    assert not set(encode_join_token(INVITATION)) & set(" =+/'\"$")  # it goes through shells and chats as it is


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "====",
        "e30",
        encode_join_token(INVITATION)[:-9],
        encode_join_token(replace(INVITATION, v=2)),
        "täuschung",
    ],
)
def test_what_is_no_token_is_said_to_be_none(text: str):
    with pytest.raises(JoinTokenInvalid, match="not a join token"):
        decode_join_token(text)
