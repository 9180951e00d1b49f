"""Foreign errors at the border, spelled out by hand."""

import pytest
from nats import errors as foreign

from bus.acks import Handed, handed
from bus.errors import CLIENT, FOREIGN, Different, FewServers, InProcess, Missing, NoStream, answered, raised
from bus.jetstream import moment_ns
from bus.port import BusError, Conflict, Denied, StoreFull, TooLarge, Unreachable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (10071, Conflict),
        (10164, Conflict),
        (10054, TooLarge),
        (10023, StoreFull),
        (10028, StoreFull),
        (10047, StoreFull),
        (10077, StoreFull),
        (10037, Missing),
        (10043, Missing),
        (10057, Missing),
        (10059, NoStream),
        (10058, Different),
        (10005, FewServers),
        (10074, FewServers),
        (10008, Unreachable),
        (10009, Unreachable),
        (10118, Unreachable),
        (10119, Unreachable),
        (10039, Unreachable),
        (10076, Unreachable),
        (10158, InProcess),
        (10163, Unreachable),
        (10167, Unreachable),
        (10194, Unreachable),
        (10195, Unreachable),
        (10111, BusError),
    ],
)
def test_what_the_broker_answers(code: int, kind: type[BusError]):
    error = answered("$KV.STATE.me.one", code, "words")
    assert type(error) is kind
    assert "$KV.STATE.me.one" in str(error)
    assert "words" in str(error)


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        (foreign.MaxPayloadError(), TooLarge),
        (foreign.AuthorizationError(), Denied),
        (foreign.Error("nats: 'Authorization Violation'"), Denied),
        (foreign.InvalidUserCredentialsError(), Denied),
        (foreign.BadSubjectError(), BusError),
        (foreign.ConnectionClosedError(), Unreachable),
        (foreign.NoServersError(), Unreachable),
        (foreign.TimeoutError(), Unreachable),
        (foreign.OutboundBufferLimitError(), Unreachable),
        (foreign.StaleConnectionError(), Unreachable),
        (ConnectionRefusedError(111, "refused"), Unreachable),
        (TimeoutError(), Unreachable),
    ],
)
def test_what_the_client_raises(theirs: Exception, kind: type[BusError]):
    assert isinstance(theirs, FOREIGN)
    error = raised(theirs, "asking x")
    assert type(error) is kind
    assert str(error).startswith("asking x")


def test_the_narrower_kind_stands_first():
    kinds = [kind for kind, _ in CLIENT]
    assert not [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :] if issubclass(b, a) and b is not a]


def test_both_forms_of_an_ack_subject_are_read():
    wanted = Handed("JOBS", "echo-high", 7, 8, 1795286302185186121, 9)
    tail = "JOBS.echo-high.1.7.8.1795286302185186121.9"
    assert handed(f"$JS.ACK.{tail}") == wanted
    assert handed(f"$JS.ACK.hub.ACCOUNT.{tail}.random") == wanted
    assert handed("_INBOX.x.y") is None
    assert handed("") is None


def test_created_is_read_to_the_nanosecond():
    assert moment_ns("2026-11-21T18:38:22.075366743Z") - moment_ns("2026-11-21T18:38:22Z") == 75_366_743
    assert moment_ns("1970-01-01T00:00:01.5Z") == 1_500_000_000
