"""What an operator may say about requests on a client's word."""

from typing import Annotated

from msgspec import Meta, Struct


class OutboundSettings(Struct, frozen=True):
    """`allow`: hosts that are opened although their addresses are not public, as `host` or `host:port`.

    `fetch_timeout_s`: how long a file may take in all, tries included. `fetches` at a time, `fetches_of_owner` of them
    for one owner.
    """

    allow: tuple[str, ...] = ()
    fetch_timeout_s: Annotated[float, Meta(gt=0)] = 1800.0
    fetches: Annotated[int, Meta(ge=1)] = 8
    fetches_of_owner: Annotated[int, Meta(ge=1)] = 2
