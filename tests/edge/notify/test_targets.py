"""The library's own senders against a real mail server and real receivers, and no secret in what is reported."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email import message_from_bytes
from email.message import Message
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from msgspec import structs
from starlette.responses import Response

from edge.notify.apprise_sender import AppriseSender
from edge.notify.targets import NotificationFailed, NotifySettings, NotifyTarget, TargetInvalid, build_senders
from schemas.texts import Language
from tests.support.served_edge import serve_edge
from tests.support.webhook_receiver import run_receiver

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

USER, PASSWORD = "postmaster", "s3cret-of-mail"


class Mailbox:
    """The handler of a mail server: it keeps the mails."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.recipients: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(message_from_bytes(envelope.original_content or b""))
        self.recipients += envelope.rcpt_tos
        return "250 OK"


@asynccontextmanager
async def run_mail_server() -> AsyncIterator[tuple[Mailbox, int]]:
    """Run a mail server that asks for the password."""
    mailbox = Mailbox()

    def check(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, given: Any) -> AuthResult:
        is_valid = isinstance(given, LoginPassword) and given.password == PASSWORD.encode()
        return AuthResult(success=is_valid, handled=is_valid)  # not handled: the server answers 535

    def make() -> SMTP:
        return SMTP(mailbox, authenticator=check, auth_required=True, auth_require_tls=False)

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield mailbox, server.sockets[0].getsockname()[1]


def mail_url(port: int, password: str = PASSWORD) -> str:
    return f"mailto://{USER}:{password}@127.0.0.1:{port}/?from=edge@example.com&to=ops@example.com&mode=insecure"


async def test_a_mail_arrives_with_its_chinese_text():
    async with run_mail_server() as (mailbox, port):
        await AppriseSender("ops", mail_url(port)).send("主机 gpu-1", "电源故障")
    (mail,) = mailbox.mails
    assert mailbox.recipients == ["ops@example.com"]
    parts = [part.get_payload(decode=True) for part in mail.walk() if not part.is_multipart()]
    assert any(isinstance(part, bytes) and "电源故障" in part.decode() for part in parts)


async def test_a_refused_mail_says_why_and_hides_the_password():
    async with run_mail_server() as (mailbox, port):
        with pytest.raises(NotificationFailed) as failed:
            await AppriseSender("ops", mail_url(port, "wr0ng-password")).send("title", "body")
    assert mailbox.mails == []
    assert str(failed.value)
    assert "wr0ng-password" not in str(failed.value)


@contextmanager
def captured_log() -> Iterator[StringIO]:
    """Capture all that any library logs, as the process log gets it."""
    text, root = StringIO(), logging.getLogger()
    handler = logging.StreamHandler(text)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


async def test_a_webhook_arrives_and_a_refusal_says_its_status():
    async with run_receiver(lambda before: Response(status_code=200 if before == 0 else 503)) as receiver:
        port = receiver.url.rpartition(":")[2].partition("/")[0]
        sender = AppriseSender("hook", f"json://user:t0p-secret@127.0.0.1:{port}/path-with-a-token")
        with captured_log() as text:
            await sender.send("title", "body")
            with pytest.raises(NotificationFailed) as failed:
                await sender.send("title", "body")
    assert json.loads(receiver.got[0].body)["message"] == "body"
    assert "503" in str(failed.value)
    for secret in ("t0p-secret", "path-with-a-token"):
        assert secret not in str(failed.value) + text.getvalue()


async def test_a_target_that_is_not_there_says_so():
    with pytest.raises(NotificationFailed) as failed:
        await AppriseSender("hook", "json://127.0.0.1:1/path-with-a-token").send("title", "body")
    assert "path-with-a-token" not in str(failed.value)


@pytest.mark.parametrize("url", ["nonsense", "dingtalk://", "unknown://host/t0ken-of-it"])
def test_an_address_that_the_library_cannot_read_is_refused_by_name(url: str):
    with pytest.raises(TargetInvalid, match=r"\[notify\.targets\.ops\]") as refused:
        AppriseSender("ops", url)
    assert "t0ken-of-it" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "dingtalk://0123456789abcdef",
        "wecombot://693axxx6-7aoc-4bc4-97a0-0ec2sifa5aaa",
        "lark://1a2b3c4d5e6f",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops",
        "mailtos://user:password@example.com?to=ops@example.com",
        "jsons://example.com/hook",
    ],
)
def test_the_addresses_of_the_documentation_are_readable(url: str):
    AppriseSender("ops", url)


def test_without_the_library_the_settings_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.delitem(sys.modules, f"{build_senders.__module__.rpartition('.')[0]}.apprise_sender", raising=False)
    assert build_senders(NotifySettings()) == {}
    with pytest.raises(TargetInvalid, match=r"lamplighter-server\[notify\]"):
        build_senders(NotifySettings(targets={"ops": NotifyTarget(url="json://a")}))


async def test_the_test_command_tells_which_targets_failed_and_no_secret(tmp_path: Path):
    async with run_mail_server() as (mailbox, port):
        targets = {
            "mail": NotifyTarget(url=mail_url(port)),
            "wrong": NotifyTarget(url=mail_url(port, "wr0ng-password")),
        }
        settings = structs.replace(NotifySettings(targets=targets), language=Language.ZH)
        async with serve_edge(tmp_path, notify=settings) as edge:
            argv = [sys.executable, "-m", "lamplighter", "notify", "test"]
            argv += ["--json", "--url", edge.url, "--key", edge.texts["admin"]]
            told = await anyio.run_process(argv, check=False)
            listed = (await edge.admin.get("/v1/notifications")).json()
            refused = await edge.ann.post("/v1/notifications/test")
            trail = (await edge.admin.get("/v1/audit?action=notifications_tested")).text
    results = {one["target"]: (one["sent"], bool(one["error"])) for one in json.loads(told.stdout)}
    assert results == {"mail": (True, False), "wrong": (False, True)}
    assert told.returncode == 1
    assert listed == {"notices": [], "targets": ["mail", "wrong"]}
    assert refused.status_code == 403
    assert len(mailbox.mails) == 1
    for text in (told.stdout.decode(), told.stderr.decode(), trail):
        assert PASSWORD not in text
        assert "wr0ng-password" not in text
