"""Settings from files and variables, as an operator writes them."""

import pytest

from edge.outbound import OutboundSettings
from edge.owners.quotas import OwnerQuota, OwnerQuotaOverride
from edge.owners.signed_credentials import UrlSettings
from edge.settings import EdgeSettings
from schemas.host_config import CommandHostConfig
from schemas.settings_loader import SettingsInvalid, load_settings

FILE = """
[quotas]
waiting = 100
bytes = 1000000

[owners.studio.quotas]
running = 4
waiting = 0
"""


def test_quotas_hold_for_everybody_but_for_whom_others_do():
    settings = load_settings(EdgeSettings, FILE, {"LAMPLIGHTER_QUOTAS__SUBMITS_PER_MINUTE": "60"})
    assert settings.quotas == OwnerQuota(waiting=100, bytes=1_000_000, submits_per_minute=60)
    assert settings.owners["studio"].quotas == OwnerQuotaOverride(running=4, waiting=0)
    assert load_settings(EdgeSettings, "", {}).quotas == OwnerQuota()


def test_downloads_and_urls_have_the_defaults_that_the_page_promises():
    settings = load_settings(EdgeSettings, "", {})
    assert settings.outbound == OutboundSettings(allow=(), fetch_timeout_s=1800.0, fetches=8, fetches_of_owner=2)
    assert settings.urls == UrlSettings(ttl_s=3600.0, base="")


@pytest.mark.parametrize("secret", ["hush", "whsec_abc", "whsec_" + "A" * 31])
def test_a_webhook_secret_that_cannot_sign_is_refused_at_the_start(secret: str):
    with pytest.raises(SettingsInvalid, match="whsec_"):
        load_settings(EdgeSettings, "", {"LAMPLIGHTER_WEBHOOKS__SECRET": secret})


def test_a_table_fits_in_one_variable():
    told = {"LAMPLIGHTER_HOSTS": '{"gpu-1": {"driver": "command", "on": ["a"], "off": ["b"], "state": ["c"]}}'}
    assert load_settings(EdgeSettings, "", told).hosts["gpu-1"] == CommandHostConfig(
        on=("a",), off=("b",), state=("c",)
    )
    with pytest.raises(SettingsInvalid, match="LAMPLIGHTER_HOSTS starts like JSON"):
        load_settings(EdgeSettings, "", {"LAMPLIGHTER_HOSTS": "{gpu-1}"})
