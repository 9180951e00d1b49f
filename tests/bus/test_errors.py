"""Foreign errors at the border, spelled out by hand."""

import asyncio
from typing import Any, cast

import anyio
import msgspec
import pytest
from nats import errors as foreign
from nats.aio.msg import Msg

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable, BusError, MessageTooLarge, RevisionConflict
from bus.nats.jetstream import ConsumerLost, JetStreamClient, OrderedConsumer, _ConsumerCreated, parse_time_ns
from bus.nats.replies import (
    CLIENT_ERROR_TYPES,
    CLIENT_ERRORS,
    AckSubject,
    ConfigMismatch,
    JetStreamNotFound,
    RequestMultiplexer,
    StreamNotFound,
    TooFewServers,
    WriteInProcess,
    from_api_error,
    from_client_error,
    parse_ack_subject,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (10071, RevisionConflict),
        (10164, RevisionConflict),
        (10054, MessageTooLarge),
        (10023, BrokerFull),
        (10028, BrokerFull),
        (10047, BrokerFull),
        (10077, BrokerFull),
        (10037, JetStreamNotFound),
        (10043, JetStreamNotFound),
        (10014, JetStreamNotFound),
        (10057, JetStreamNotFound),
        (10059, StreamNotFound),
        (10012, ConfigMismatch),
        (10058, ConfigMismatch),
        (10005, TooFewServers),
        (10074, TooFewServers),
        (10008, BrokerUnreachable),
        (10009, BrokerUnreachable),
        (10118, BrokerUnreachable),
        (10119, BrokerUnreachable),
        (10039, BrokerUnreachable),
        (10076, BrokerUnreachable),
        (10158, WriteInProcess),
        (10163, BrokerUnreachable),
        (10167, BrokerUnreachable),
        (10194, BrokerUnreachable),
        (10195, BrokerUnreachable),
        (10111, BusError),
    ],
)
def test_what_the_broker_answers(code: int, kind: type[BusError]):
    error = from_api_error("$KV.STATE.me.one", code, "words")
    assert type(error) is kind
    assert "$KV.STATE.me.one" in str(error)
    assert "words" in str(error)


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        (foreign.MaxPayloadError(), MessageTooLarge),
        (foreign.AuthorizationError(), BrokerDenied),
        (foreign.Error("nats: 'Authorization Violation'"), BrokerDenied),
        (foreign.InvalidUserCredentialsError(), BrokerDenied),
        (foreign.BadSubjectError(), BusError),
        (foreign.ConnectionClosedError(), BrokerUnreachable),
        (foreign.NoServersError(), BrokerUnreachable),
        (foreign.TimeoutError(), BrokerUnreachable),
        (foreign.OutboundBufferLimitError(), BrokerUnreachable),
        (foreign.StaleConnectionError(), BrokerUnreachable),
        (ConnectionRefusedError(111, "refused"), BrokerUnreachable),
        (TimeoutError(), BrokerUnreachable),
    ],
)
def test_what_the_client_raises(theirs: Exception, kind: type[BusError]):
    assert isinstance(theirs, CLIENT_ERROR_TYPES)
    error = from_client_error(theirs, "asking x")
    assert type(error) is kind
    assert str(error).startswith("asking x")


def test_the_narrower_kind_stands_first():
    kinds = [kind for kind, _ in CLIENT_ERRORS]
    assert not [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :] if issubclass(b, a) and b is not a]


def test_both_forms_of_an_ack_subject_are_read():
    wanted = AckSubject("JOBS", "echo-high", 7, 8, 1795286302185186121, 9)
    tail = "JOBS.echo-high.1.7.8.1795286302185186121.9"
    assert parse_ack_subject(f"$JS.ACK.{tail}") == wanted
    assert parse_ack_subject(f"$JS.ACK.hub.ACCOUNT.{tail}.random") == wanted
    for foreign_subject in (
        *("_INBOX.x.y", "", "$JS.ACK", "$JS.ACK.a", "$JS.ACK.a.b.c.d", "$JS.NAK.JOBS.echo.1.7.8.9.9"),
        *("$JS.ACK.JOBS.echo.1.7.8.9", "$JS.ACK.JOBS.echo.1.7.8.nine.9", f"$JS.ACK.JOBS.echo.1.{'7' * 21}.8.9.9"),
    ):
        assert parse_ack_subject(foreign_subject) is None
    assert parse_ack_subject(f"$JS.ACK.JOBS.echo.1.{'7' * 20}.8.9.9") is not None


async def test_pending_requests_fail_with_the_connection_or_by_their_subject():
    requests = RequestMultiplexer("_INBOX.me.")
    with requests.expect_reply("$JS.API.INFO") as first, requests.expect_reply("$JS.API.OTHER") as second:
        requests.fail_requests(BrokerDenied("no right"), "$js.api.info")
        assert isinstance(first.reply_future.result(), BrokerDenied)
        assert not second.reply_future.done()
        requests.fail_requests(BrokerUnreachable("away"))
        assert isinstance(second.reply_future.result(), BrokerUnreachable)
        assert isinstance(first.reply_future.result(), BrokerDenied), "the first outcome counts"


class AgreeingServers:
    """A cluster that says of each write that an earlier copy is in process, until `agreed` is set."""

    def __init__(self) -> None:
        self.agreed = anyio.Event()

    async def agree(self) -> None:
        self.agreed.set()

    async def request(self, *_: Any) -> Msg:
        in_process = {"error": {"err_code": 10158, "description": "duplicate message id is in process"}}
        answer = {"seq": 7} if self.agreed.is_set() else in_process
        return Msg(cast("Any", None), data=msgspec.json.encode(answer))


async def test_a_write_waits_until_the_servers_have_agreed_on_its_first_copy():
    servers = AgreeingServers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(servers.agree)
        assert await JetStreamClient(cast("Any", servers)).publish("job.one", b"x", message_id="one") == 7


async def test_a_write_on_which_the_servers_do_not_agree_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bus.nats.jetstream.REQUEST_TIMEOUT_S", 0.05)
    with pytest.raises(WriteInProcess, match="in process"):
        await JetStreamClient(cast("Any", AgreeingServers())).publish("job.one", b"x", message_id="one")


async def test_a_consumer_that_its_server_ends_is_lost():
    consumer = OrderedConsumer(cast("Any", None), "c1", 0, asyncio.Queue())
    ended = Msg(cast("Any", None), headers={"Status": "409", "Description": "Consumer Deleted"})
    with pytest.raises(ConsumerLost, match="c1 ended: Consumer Deleted"):
        await consumer._handle_control(ended)
    await consumer._handle_control(Msg(cast("Any", None), headers={"Status": "100", "Nats-Last-Consumer": "0"}))
    with pytest.raises(ConsumerLost, match="lost messages"):
        await consumer._handle_control(Msg(cast("Any", None), headers={"Status": "100", "Nats-Last-Consumer": "1"}))


def test_a_consumer_of_which_the_server_says_nothing_has_nothing_pending():
    assert msgspec.json.decode(b"{}", type=_ConsumerCreated).num_pending == 0


def test_created_is_read_to_the_nanosecond():
    assert parse_time_ns("2026-11-21T18:38:22.075366743Z") - parse_time_ns("2026-11-21T18:38:22Z") == 75_366_743
    assert parse_time_ns("1970-01-01T00:00:01.5Z") == 1_500_000_000
