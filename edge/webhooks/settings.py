"""What an operator may say about webhooks."""

from typing import Annotated

from msgspec import Meta, Struct

from edge.outbound.signature import is_secret


class WebhookSettings(Struct, frozen=True):
    """`secret`: signs for owners who have set none of their own (`whsec_` and 24 to 64 bytes in base64); without it
    each gets one.

    `timeout_s` of one try, answer included. `at_once` tries in all, `at_once_each` to one receiver.
    """

    secret: str = ""
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    at_once: Annotated[int, Meta(ge=1)] = 64
    at_once_each: Annotated[int, Meta(ge=1)] = 4

    def __post_init__(self) -> None:
        if self.secret and not is_secret(self.secret):
            raise ValueError("`secret` must be whsec_ and 24 to 64 bytes in base64, as Standard Webhooks writes it")
