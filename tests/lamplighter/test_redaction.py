"""No line of a log has a secret: whatever its form, in whatever value, and in tracebacks."""

import base64
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from bus.settings import BrokerSettings
from edge.settings import EdgeSettings
from edge.webhooks.owner_webhooks import WebhookSettings
from lamplighter.cli.log_output import Redactor, configure_logging, secrets_in
from schemas.credentials import JoinToken, encode_join_token
from schemas.host_config import CommandHostConfig

SECRET = "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
JOIN = encode_join_token(JoinToken(host="gpu-1", edge="e", broker="b", user="u", password="p" * 20, key="k"))


@pytest.fixture
def configure() -> Iterator[Callable[..., None]]:
    hook, root = sys.excepthook, logging.getLogger()
    handlers: list[logging.Handler] = []

    def configure(*given: Any) -> None:
        handlers[:] = root.handlers  # pytest's, which are there only while a test runs
        root.handlers.clear()
        configure_logging(*given)

    yield configure
    structlog.reset_defaults()
    root.handlers[:] = handlers
    sys.excepthook = hook


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key lamp_k1_{SECRET} was refused", "key lamp_k1_*** was refused"),
        (f"token lampt_{SECRET}.{SECRET}", "token lampt_***"),
        (f"session=lamps_{SECRET}.{SECRET};", "session=lamps_***;"),
        (f"secret whsec_{SECRET}+/=", "secret whsec_***"),
        (f"joined with {JOIN}.", "joined with ***."),
        (f"Authorization: Bearer {SECRET}", "Authorization: ***"),
        (f"[(b'authorization', b'Basic {SECRET}')]", "[(b'authorization', b'***')]"),
        (f"{{'Cookie': 'a={SECRET}', 'b': 1}}", "{'Cookie': '***', 'b': 1}"),
        (f"nats://edge:{SECRET}@10.0.0.1:4222 is away", "nats://***@10.0.0.1:4222 is away"),
        (f"GET https://b.example/a.mp4?X-Amz-Signature={SECRET}&x=1 failed", "GET https://b.example/a.mp4?*** failed"),
        (f"https://b.example/?{SECRET}", "https://b.example/?***"),
        (f"/v1/jobs/a/logs?owner=ann&signature={SECRET}", "/v1/jobs/a/logs?***"),
        (f"webhook-signature: v1,{SECRET}{SECRET}=", "webhook-signature: ***"),
        (f"sent v1,{SECRET}{SECRET}=", "sent v1,***"),
        (f'{{"password": "{SECRET}", "user": "u"}}', '{"password": "***", "user": "u"}'),
        (f"connect(user='u', password='{SECRET}')", "connect(user='u', password='***')"),
        (f'{{"error": "{{\\"token\\": \\"{SECRET}\\"}}"}}', '{"error": "{\\"token\\": \\"***\\"}"}'),
        ("is the key right? it is key_id k1, owner=ann", "is the key right? it is key_id k1, owner=ann"),
        (
            "request_served method=GET route=/v1/keys/{key_id} ms=1.5",
            "request_served method=GET route=/v1/keys/{key_id} ms=1.5",
        ),
    ],
)
def test_a_secret_is_replaced_by_its_form(text: str, left: str) -> None:
    assert Redactor().redact(text) == left


def test_secrets_of_the_settings_are_replaced_wherever_they_are() -> None:
    settings = EdgeSettings(
        broker=BrokerSettings(password="correct horse", monitor="http://127.0.0.1:1/a-secret-path"),
        webhooks=WebhookSettings("whsec_" + base64.b64encode(b"w" * 32).decode()),
        hosts={"gpu-1": CommandHostConfig(on=("a",), off=("b",), state=("c",), env={"TOKEN": 'quoted"secret'})},
    )
    found = set(secrets_in(settings))
    assert {"correct horse", 'quoted"secret', "/a-secret-path"} <= found
    line = json.dumps({"error": 'it said quoted"secret, correct horse'})
    assert json.loads(Redactor(found).redact(line)) == {"error": "it said ***, ***"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_has_no_secret_in_fields_values_or_tracebacks(
    form: str, configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", form, ["correct horse"])
    log = structlog.get_logger()
    log.warning("fetch_failed", url=f"https://a/b?sig={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    log.warning("refused", token=SECRET, nested={"password": SECRET}, error=ValueError(f"lamp_a_{SECRET}"))
    try:
        raise ValueError(f"nats://u:{SECRET}@h failed, correct horse")  # noqa: TRY301 - its traceback is what is logged
    except ValueError:
        log.exception("crashed")
        logging.getLogger("some.library").error("failed", exc_info=True)
        sys.excepthook(*sys.exc_info())
    written = capsys.readouterr().err
    assert written.count("ValueError: nats://***@h failed, ***") == 3
    assert SECRET not in written
    assert "correct horse" not in written
    if form == "json":
        lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
        assert [line["event"] for line in lines] == ["fetch_failed", "refused", "crashed"]
