"""Settings as an operator writes them."""

import pytest

from edge.services.quotas import Limits, OwnLimits
from edge.settings import EdgeSettings
from schemas.settings import SettingsInvalid, load
from schemas.switch import CommandHost

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


@pytest.mark.parametrize("secret", ["hush", "whsec_abc", "whsec_" + "A" * 31])
def test_a_webhook_secret_that_cannot_sign_is_refused_at_the_start(secret: str):
    with pytest.raises(SettingsInvalid, match="whsec_"):
        load(EdgeSettings, "", {"LAMPLIGHTER_WEBHOOKS__SECRET": secret})


def test_a_table_fits_in_one_variable():
    told = {"LAMPLIGHTER_HOSTS": '{"gpu-1": {"driver": "command", "on": ["a"], "off": ["b"], "state": ["c"]}}'}
    assert load(EdgeSettings, "", told).hosts["gpu-1"] == CommandHost(on=("a",), off=("b",), state=("c",))
    with pytest.raises(SettingsInvalid, match="LAMPLIGHTER_HOSTS starts like JSON"):
        load(EdgeSettings, "", {"LAMPLIGHTER_HOSTS": "{gpu-1}"})
