"""The audit log: what the broker refuses waits in a file, pages and filters, and what changed in the settings."""

from pathlib import Path

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from bus.interface import AuditPage
from bus.settings import BrokerSettings
from edge.owners import audit_log
from edge.owners.audit_log import AuditFilter, AuditLog
from edge.settings import EdgeSettings
from edge.webhooks.owner_webhooks import WebhookSettings
from schemas.installation import BY_EDGE, AuditAction, AuditEvent
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy

ANY = AuditFilter()
SECRET = b"of the installation"


def make_log(fake: FakeBusServicesRig) -> AuditLog:
    return AuditLog(fake.bus.audit_log, fake.time, FixedEntropy(), fake.folder)


async def record(log: AuditLog, subject: str = "k1", by: str = "k0", owner: str = "ann") -> None:
    await log.record(AuditAction.KEY_REVOKED, subject, by=by, client="192.0.2.7", owner=owner)


async def read_subjects(log: AuditLog, wanted: AuditFilter = ANY, limit: int = 100) -> list[str]:
    entries, _ = await log.read(wanted, limit)
    return [entry.event.subject for entry in entries]


def spooled(fake: FakeBusServicesRig) -> list[Path]:
    return sorted((fake.folder / "audit-spool").glob("*"))


@pytest.mark.parametrize("fault", ["full", "away"])
async def test_an_event_that_the_broker_refuses_waits_and_is_stored_once(fake: FakeBusServicesRig, fault: str):
    log = make_log(fake)
    if fault == "full":
        fake.broker.fill()
    else:
        fake.bus.cut()
    with capture_logs() as logs:
        await record(log)
    assert [line["event"] for line in logs] == ["audit_event_recorded", "audit_write_delayed"]
    (path,) = spooled(fake)
    assert path.stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode(path.read_bytes(), type=AuditEvent).subject == "k1"
    await log.store_spooled()
    assert spooled(fake) == [path], "the broker still refuses it"
    fake.broker.fill(False)
    fake.bus.heal()
    again = make_log(fake)  # the edge was restarted in the meantime
    content = path.read_bytes()
    await again.store_spooled()
    assert (await read_subjects(again), spooled(fake)) == (["k1"], [])
    path.write_bytes(content)  # the edge died between the write and the removal of the file
    await again.store_spooled()
    assert (await read_subjects(again), spooled(fake)) == (["k1"], [])


async def test_a_broker_that_does_not_answer_delays_an_action_for_a_bounded_time(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_log, "APPEND_TIMEOUT_S", 0.01)

    class SilentStream:
        async def append(self, event_id: str, event: AuditEvent) -> bool:
            await anyio.sleep_forever()
            raise AssertionError(event_id, event)

        async def page(self, before: int | None, span: int) -> AuditPage:
            raise AssertionError(before, span)

    await record(AuditLog(SilentStream(), fake.time, FixedEntropy(), fake.folder))
    assert len(spooled(fake)) == 1


async def test_an_event_that_no_disk_takes_is_whole_in_the_log(fake: FakeBusServicesRig):
    (fake.folder / "audit-spool").write_text("not a folder")
    fake.broker.fill()
    with capture_logs() as logs:
        await record(make_log(fake))
    (lost,) = [line for line in logs if line["event"] == "audit_event_lost"]
    assert (lost["log_level"], lost["audit_event"]["subject"], lost["audit_event"]["by"]) == ("error", "k1", "k0")


async def test_a_file_that_is_no_event_does_not_hold_up_the_others(fake: FakeBusServicesRig):
    log = make_log(fake)
    fake.broker.fill()
    await record(log)
    (fake.folder / "audit-spool" / "0.json").write_text("rubbish")
    fake.broker.fill(False)
    with capture_logs() as logs:
        await log.store_spooled()
    assert [line["event"] for line in logs] == ["audit_spool_unreadable"]
    assert await read_subjects(log) == ["k1"]


async def test_events_are_filtered_and_paged(fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_log, "SCAN_SPAN", 3)
    log = make_log(fake)
    for number in range(7):
        await record(log, f"k{number}", by="even" if number % 2 == 0 else "odd", owner=f"owner-{number}")
        fake.time.advance(seconds=60)
    start = fake.time()
    assert await read_subjects(log, AuditFilter(by="odd")) == ["k5", "k3", "k1"]
    assert await read_subjects(log, AuditFilter(subject="k4")) == ["k4"]
    assert await read_subjects(log, AuditFilter(owner="owner-2")) == ["k2"]
    assert await read_subjects(log, AuditFilter(action=AuditAction.HOST_ADDED)) == []
    (last,), _ = await log.read(ANY, 1)
    assert await read_subjects(log, AuditFilter(since=last.event.at)) == ["k6"]
    assert await read_subjects(log, AuditFilter(since=start)) == []
    assert await read_subjects(log, AuditFilter(until=last.event.at), 2) == ["k5", "k4"]
    first, before = await log.read(ANY, 4)
    await record(log, "newer")
    rest, end = await log.read(ANY, 4, before)
    assert [entry.event.subject for entry in (*first, *rest)] == ["k6", "k5", "k4", "k3", "k2", "k1", "k0"]
    assert end is None


async def record_start(log: AuditLog, settings: EdgeSettings) -> dict[str, str]:
    """Record a start with `settings`; return what the newest event says of it."""
    await log.record_settings(settings, EdgeSettings(), "edge-1", SECRET)
    entries, _ = await log.read(ANY, 1)
    event = entries[0].event
    assert (event.action, event.subject, event.by) == (AuditAction.SETTINGS_CHANGED, "edge-1", BY_EDGE)
    return event.details


async def test_a_start_records_which_settings_changed_and_no_secret(fake: FakeBusServicesRig):
    log = make_log(fake)
    one, other = "whsec_" + "A" * 32, "whsec_" + "B" * 32
    first = await record_start(log, EdgeSettings(port=1, fd=3, webhooks=WebhookSettings(secret=one)))
    assert first == {"port": "8000 -> 1", "webhooks.secret": '"" -> "***"'}
    second = await record_start(log, EdgeSettings(port=2, fd=4, webhooks=WebhookSettings(secret=other)))
    assert second == {"port": "1 -> 2", "webhooks.secret": "changed"}
    kept = (fake.folder / "settings-at-start.json").read_text()
    assert "AAAA" not in kept
    assert "BBBB" not in kept


async def test_a_start_with_the_same_settings_records_nothing(fake: FakeBusServicesRig):
    log = make_log(fake)
    await record_start(log, EdgeSettings(port=1, fd=3, broker=BrokerSettings(url="nats://127.0.0.1:1")))
    same = EdgeSettings(port=1, fd=4, broker=BrokerSettings(url="nats://127.0.0.1:2", monitor="http://h/s3cret"))
    await log.record_settings(same, EdgeSettings(), "edge-1", SECRET)
    assert len(await read_subjects(log)) == 1
