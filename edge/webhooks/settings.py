"""What an operator may say about webhooks."""

from typing import Annotated

from msgspec import Meta, Struct


class WebhookSettings(Struct, frozen=True):
    """`secret`: signs for owners who have set none of their own (`whsec_` and base64); without it each gets one.

    `timeout_s` of one try, answer included. `at_once` tries in all, `at_once_each` to one receiver.
    """

    secret: str = ""
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    at_once: Annotated[int, Meta(ge=1)] = 64
    at_once_each: Annotated[int, Meta(ge=1)] = 4
