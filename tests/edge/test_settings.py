"""Quotas as an operator writes them."""

from edge.services.quotas import Limits, OwnLimits
from edge.settings import EdgeSettings
from schemas.settings import load

FILE = """
[quotas]
waiting = 100
bytes = 1000000

[owners.studio.quotas]
running = 4
waiting = 0
"""


def test_quotas_hold_for_everybody_but_for_whom_others_do():
    settings = load(EdgeSettings, FILE, {"LAMPLIGHTER_QUOTAS__SUBMITS_PER_MINUTE": "60"})
    assert settings.quotas == Limits(waiting=100, bytes=1_000_000, submits_per_minute=60)
    assert settings.owners["studio"].quotas == OwnLimits(running=4, waiting=0)
    assert load(EdgeSettings, "", {}).quotas == Limits()
