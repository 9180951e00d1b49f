"""The parts of webhooks, wired to each other."""

from collections.abc import Callable

import httpx
from msgspec import Struct

from bus.port import Bus
from edge.services.clock import Clock, Entropy
from edge.services.index import Index
from edge.services.view import Viewer
from edge.webhooks.courier import Courier, Pace
from edge.webhooks.ledger import Ledger
from edge.webhooks.post import Post
from edge.webhooks.receivers import Receivers
from edge.webhooks.schedule import RETRIES_S
from edge.webhooks.secrets import Secrets
from edge.webhooks.settings import WebhookSettings


class Webhooks(Struct, frozen=True):
    """What routes ask, and what runs."""

    secrets: Secrets
    ledger: Ledger
    courier: Courier


class Chances(Struct, frozen=True, kw_only=True):
    """Time and chance. `running`: seconds on a clock that nobody sets back; `dice`: from 0 to 1."""

    now: Clock
    running: Callable[[], float]
    entropy: Entropy
    dice: Callable[[], float]
    retries_s: tuple[float, ...] = RETRIES_S


def build(  # noqa: PLR0913, PLR0917 - the services it works with
    bus: Bus, index: Index, viewer: Viewer, guarded: httpx.AsyncClient, settings: WebhookSettings, chances: Chances
) -> Webhooks:
    """All of it; nothing runs yet."""
    secrets = Secrets(bus.hooks, chances.now, chances.entropy, settings.secret)
    ledger = Ledger(bus, secrets, chances.now)
    post = Post(guarded, viewer, chances.now, chances.running, settings.timeout_s)
    receivers = Receivers(settings.at_once_each, chances.running, chances.dice)
    pace = Pace(settings.at_once, chances.dice, chances.retries_s)
    return Webhooks(secrets, ledger, Courier(bus, index, ledger, secrets, post, receivers, chances.now, pace))
