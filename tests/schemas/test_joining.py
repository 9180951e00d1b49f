"""Join tokens: what goes in comes out, and what is none is said to be none."""

import pytest
from msgspec.structs import replace

from schemas.joining import Invitation, TokenInvalid, decode, encode

INVITATION = Invitation(
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
    assert decode(around.format(encode(INVITATION))) == INVITATION
    assert not set(encode(INVITATION)) & set(" =+/'\"$")  # it goes through shells and chats as it is


@pytest.mark.parametrize(
    "text", ["", "nonsense", "====", "e30", encode(INVITATION)[:-9], encode(replace(INVITATION, v=2)), "täuschung"]
)
def test_what_is_no_token_is_said_to_be_none(text: str):
    with pytest.raises(TokenInvalid, match="no join token"):
        decode(text)
