"""The pure parts of webhooks: signatures, retry delays, Retry-After and the circuit breaker."""

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edge.http.api_fields import FIELDS
from edge.webhooks.dispatcher import (
    FAILURE_THRESHOLD,
    RETRY_DELAYS_S,
    ReceiverCircuitBreaker,
    parse_retry_after_s,
    retry_delay_s,
)
from schemas.job import FINAL_STATUSES, Status
from schemas.problems import ProblemError
from schemas.webhook import (
    DISABLED_URL_LIMIT,
    LOGGED_ATTEMPT_LIMIT,
    OWNER_WEBHOOK_LIMIT,
    DeliveryId,
    DeliveryLogRow,
    DeliveryState,
    OwnerWebhook,
    delivery_key,
    format_delivery_id,
    is_secret,
    make_secret,
    parse_delivery_id,
    signature_headers,
)
from tests.support.doc_pages import DOCS
from tests.support.edge_services import FakeBusServicesRig, fake_bus_services
from tests.support.schema_samples import make_job

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_the_retries_are_those_of_the_protocol() -> None:
    assert RETRY_DELAYS_S == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000)
    assert [retry_delay_s(failed, 0, 0.0) for failed in range(1, 10)] == [*RETRY_DELAYS_S, None]
    assert retry_delay_s(1, 0, 1.0) == 6.0
    assert retry_delay_s(1, 60, 0.0) == 60
    assert retry_delay_s(1, 10**9, 0.0) == 86400
    assert retry_delay_s(9, 60, 0.0) is None


def test_the_limits_are_those_that_clients_read() -> None:
    assert f"at most {OWNER_WEBHOOK_LIMIT} such webhooks" in (DOCS / "webhooks.md").read_text()
    assert f"The last {LOGGED_ATTEMPT_LIMIT} requests" in FIELDS["Delivery"]["tries"].text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("Sat, 21 Nov 2026 12:02:00 GMT", 120),
        ("Sat, 21 Nov 2026 11:02:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("", 0),
        (None, 0),
        ("9" * 40, 999999999),
        (f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read(header: str | None, seconds: float) -> None:
    assert parse_retry_after_s(header, NOW) == seconds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (make_secret(b"x" * 24), True),
        (make_secret(b"x" * 64), True),
        (make_secret(b"x" * 23), False),
        (make_secret(b"x" * 65), False),
        (base64.b64encode(b"x" * 32).decode(), False),
        ("whsec_!!!", False),
        (make_secret(b"x" * 24) + "!", False),
        ("whsec_\u00fc", False),
        ("", False),
    ],
)
def test_a_secret_is_24_to_64_bytes(text: str, holds: bool) -> None:
    assert is_secret(text) is holds


def test_a_signature_is_that_of_the_specification() -> None:
    """The example in the documentation of the specification."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signature_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}', secret)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("job_id", ["a", "a_b-c", "0190-7"])
@pytest.mark.parametrize("webhook", ["", "0190-8"])
def test_a_deliverys_id_is_read_back(job_id: str, webhook: str) -> None:
    delivery = DeliveryId(job_id, 17, webhook)
    assert parse_delivery_id(format_delivery_id(delivery)) == delivery


@pytest.mark.parametrize("text", ["", "a", "a.", ".1", "a.b", "a.1.", "a.1.b.c", "a.1.>", "*.1", f"a.{'9' * 20}"])
def test_what_is_no_id_of_a_delivery_is_refused(text: str) -> None:
    assert parse_delivery_id(text) is None


def test_the_log_holds_a_delivery_under_its_owner_and_id() -> None:
    """Stored keys: a release must find the rows of the one before."""
    assert delivery_key("ann", DeliveryId("j1", 17)) == "ann.j1.17"
    assert delivery_key("ann", DeliveryId("j1", 17, "h1")) == "ann.j1.17.h1"


def test_a_row_of_a_delivery_that_was_not_sent_says_nothing_of_attempts() -> None:
    """What a release that had none of these fields has stored is read so."""
    text = '{"job_id": "j1", "revision": 17, "status": "failed", "url": "http://a.example/", "created_at": "%s"}'
    row = msgspec.json.decode(text % NOW.isoformat(), type=DeliveryLogRow)
    assert (row.id, row.webhook, row.state) == ("j1.17", "", DeliveryState.PENDING)
    assert (row.attempts, row.failed_attempts, row.next_attempt_at, row.replays) == ((), 0, None, 0)


@pytest.mark.parametrize(
    ("states", "endpoints", "matching"),
    [
        ((), (), FINAL_STATUSES),
        ((), ("other", "echo"), FINAL_STATUSES),
        ((), ("other",), set()),
        ((Status.FAILED, Status.EXPIRED), (), {Status.FAILED, Status.EXPIRED}),
        ((Status.FAILED,), ("echo",), {Status.FAILED}),
        ((Status.FAILED,), ("other",), set()),
        ((Status.RUNNING,), (), set()),
    ],
)
def test_an_owner_wide_webhook_reports_final_states_that_pass_both_filters(
    states: tuple[Status, ...], endpoints: tuple[str, ...], matching: set[Status]
) -> None:
    webhook = OwnerWebhook(id="h1", url="http://a.example/", created_at=NOW, endpoints=endpoints, states=states)
    assert {status for status in Status if webhook.matches(make_job(status))} == matching


class DeliveryClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_receiver_has_a_bound_and_what_is_over_it_stays_away_until_its_turn() -> None:
    receivers = ReceiverCircuitBreaker(2, DeliveryClock(), lambda: 1.0)
    assert [receivers.try_acquire("a"), receivers.try_acquire("a")] == [None, None]
    quick = [receivers.try_acquire("a") or 0.0 for _ in range(50)]
    assert quick == sorted(quick)
    assert 0 < quick[0] < quick[-1] < 2
    assert receivers.try_acquire("b") is None
    receivers.release("a", answered=True, took_s=10.0)
    assert receivers.try_acquire("a") is None
    slow = [receivers.try_acquire("a") or 0.0 for _ in range(500)]
    assert slow[0] > 3
    assert slow[-1] < 310


def test_a_dead_receiver_rests_and_is_probed_by_one() -> None:
    clock = DeliveryClock()
    receivers = ReceiverCircuitBreaker(4, clock, lambda: 0.0)

    def probe(*, answered: bool) -> None:
        assert receivers.try_acquire("a") is None
        receivers.release("a", answered=answered, took_s=0.0)

    for _ in range(FAILURE_THRESHOLD):
        probe(answered=False)
    assert (receivers.try_acquire("a") or 0.0) >= 5.0
    clock.now = 5.0
    assert receivers.try_acquire("a") is None
    assert receivers.try_acquire("a") is not None, "one probe at a time"
    receivers.release("a", answered=False, took_s=0.0)
    assert (receivers.try_acquire("a") or 0.0) >= 10.0
    clock.now = 15.0
    probe(answered=True)
    assert [receivers.try_acquire("a") for _ in range(4)] == [None] * 4
    for _ in range(4):
        receivers.release("a", answered=True, took_s=0.0)
    assert receivers._receivers == {}


async def test_each_owner_gets_a_secret_of_its_own_and_keeps_it(fake: FakeBusServicesRig, tmp_path) -> None:
    first = (await fake.webhooks.secrets.get("ann")).secret
    assert is_secret(first)
    assert (await fake.webhooks.secrets.get("bob")).secret != first
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        assert (await second.webhooks.secrets.get("ann")).secret == first


async def test_a_given_secret_is_taken_if_it_is_one(fake: FakeBusServicesRig) -> None:
    given = make_secret(b"y" * 32)
    old = (await fake.webhooks.secrets.get("ann")).secret
    assert (await fake.webhooks.secrets.rotate("ann", given)).secret == given
    hooks = await fake.webhooks.secrets.get("ann")
    assert hooks.signing_secrets(fake.time()) == (given, old)
    assert hooks.signing_secrets(fake.time() + timedelta(hours=24)) == (given,)
    with pytest.raises(ProblemError, match="input_invalid"):
        await fake.webhooks.secrets.rotate("ann", "secret")


async def test_only_so_many_disabled_urls_are_kept(fake: FakeBusServicesRig) -> None:
    for number in range(DISABLED_URL_LIMIT + 5):
        await fake.webhooks.secrets.disable_receiver("ann", f"http://a.example/{number}")
    kept = (await fake.webhooks.secrets.get("ann")).disabled_urls
    assert len(kept) == DISABLED_URL_LIMIT
    assert "http://a.example/0" not in kept
    await fake.webhooks.secrets.enable_receiver("ann", "http://a.example/50")
    assert "http://a.example/50" not in (await fake.webhooks.secrets.get("ann")).disabled_urls
