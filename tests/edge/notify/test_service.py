"""Notifications over the fake bus: told once, from a store that outlives an edge, by one of several edges."""

from datetime import timedelta

from msgspec import structs
from structlog.testing import capture_logs

from bus.interface import WebhookDelivery
from edge.core.installation import Leases
from edge.notify.conditions import Facts, HostFigures
from edge.notify.service import FactReader, NotificationService, NotificationServices
from edge.notify.targets import NotificationFailed, NotifySettings, NotifyTarget
from schemas import events as e
from schemas.installation import Condition
from schemas.job import JobFailure
from schemas.texts import Language
from tests.edge.services.conftest import fake
from tests.support.edge_services import FakeBusServicesRig

__all__ = ["fake"]

FAULTY = Facts(broker_problem="", hosts={"gpu-1": HostFigures(fault="no boot")})
HEALTHY = Facts(broker_problem="", hosts={"gpu-1": HostFigures()})
OPS = {"ops": NotifyTarget(url="json://127.0.0.1")}


class FakeFacts(FactReader):
    """The facts that the test sets."""

    def __init__(self) -> None:
        self.now = HEALTHY

    async def read(self) -> Facts:
        return self.now


class FakeSender:
    """A target that keeps its messages, or refuses them."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.refuses = False

    async def send(self, title: str, body: str) -> None:
        if self.refuses:
            raise NotificationFailed("refused")
        self.got.append(body)


class Watch:
    """An edge that watches. Several with one `fake` are edges of one installation, with the same targets."""

    def __init__(
        self, fake: FakeBusServicesRig, settings: NotifySettings, senders: dict[str, FakeSender] | None = None
    ) -> None:
        self.facts = FakeFacts()
        self.senders = senders or {name: FakeSender() for name in settings.targets}
        self._fake = fake
        self.service = NotificationService(
            settings,
            NotificationServices(
                table=fake.bus.notices,
                facts=self.facts,
                leases=Leases(fake.bus.leases, f"edge-{id(self)}", fake.time),
                senders=self.senders,
                clock=fake.time,
                random=lambda: 0.0,
            ),
        )

    async def tick(self, facts: Facts, seconds: float = 120.0) -> None:
        """Look at `facts`, after some time."""
        self._fake.time.advance(seconds=seconds)
        self.facts.now = facts
        await self.service.tick()


def make_settings(**targets: NotifyTarget) -> NotifySettings:
    return NotifySettings(targets=targets or dict(OPS))


async def count_rows(fake: FakeBusServicesRig) -> int:
    return len(await fake.bus.notices.rows())


async def test_a_condition_is_told_once_and_so_is_its_end(fake: FakeBusServicesRig):
    watch = Watch(fake, make_settings())
    for facts in (FAULTY, FAULTY, FAULTY, HEALTHY, HEALTHY, HEALTHY):
        await watch.tick(facts)
    assert watch.senders["ops"].got == [
        "[critical] The edge has given up switching host gpu-1: no boot",
        "[resolved after 8 min] The edge has given up switching host gpu-1: no boot",
    ]
    assert await count_rows(fake) == 0


async def test_an_edge_that_starts_again_does_not_tell_again_and_tells_the_end(fake: FakeBusServicesRig):
    first = Watch(fake, make_settings())
    await first.tick(FAULTY)
    again = Watch(fake, make_settings(), first.senders)
    await again.tick(FAULTY)
    assert len(first.senders["ops"].got) == 1
    for _ in range(2):
        await again.tick(HEALTHY)
    assert len(first.senders["ops"].got) == 2
    assert "resolved" in first.senders["ops"].got[-1]


async def test_what_was_stored_is_sent_by_another_edge(fake: FakeBusServicesRig):
    first = Watch(fake, make_settings())
    first.senders["ops"].refuses = True
    await first.tick(FAULTY)
    assert await count_rows(fake) == 1
    other = Watch(fake, make_settings())
    await other.tick(FAULTY)
    assert len(other.senders["ops"].got) == 1


async def test_of_two_edges_only_the_one_with_the_lease_sends(fake: FakeBusServicesRig):
    one, other = Watch(fake, make_settings()), Watch(fake, make_settings())
    other.facts.now = FAULTY
    async with Leases(fake.bus.leases, "busy", fake.time).acquire("notify", "send") as is_held:
        assert is_held
        await other.service.tick()
    assert other.senders["ops"].got == []
    await one.tick(FAULTY)
    await other.tick(FAULTY)
    assert len(one.senders["ops"].got) + len(other.senders["ops"].got) == 1


async def test_messages_within_the_interval_are_one_message(fake: FakeBusServicesRig):
    watch = Watch(fake, make_settings())
    await watch.tick(FAULTY)
    both = structs.replace(FAULTY, hosts={f"gpu-{n}": HostFigures(fault="no boot") for n in range(30)})
    await watch.tick(both, seconds=1)
    assert len(watch.senders["ops"].got) == 1
    await watch.tick(both, seconds=60)
    assert len(watch.senders["ops"].got) == 2
    lines = watch.senders["ops"].got[1].splitlines()
    assert (len(lines), lines[-1]) == (21, "and 9 more")


async def test_a_message_that_was_refused_is_tried_again_and_given_up_after_three_days(fake: FakeBusServicesRig):
    watch = Watch(fake, make_settings(ops=OPS["ops"], other=OPS["ops"]))
    watch.senders["ops"].refuses = True
    await watch.tick(FAULTY)
    await watch.tick(FAULTY, seconds=1)
    assert len(watch.senders["other"].got) == 1
    (row,) = (await fake.bus.notices.rows()).values()
    assert set(row.value.pending) == {"ops"}
    assert row.value.pending["ops"].failures == 1, "not before its time"
    watch.senders["ops"].refuses = False
    await watch.tick(FAULTY)
    assert len(watch.senders["ops"].got) == 1
    watch.senders["ops"].refuses = True
    for _ in range(2):
        await watch.tick(HEALTHY)
    assert await count_rows(fake) == 1
    with capture_logs() as logs:
        await watch.tick(HEALTHY, seconds=timedelta(days=3, minutes=1).total_seconds())
    assert "notification_given_up" in [line["event"] for line in logs]
    assert await count_rows(fake) == 0


async def test_a_target_is_told_what_it_wants(fake: FakeBusServicesRig):
    watch = Watch(
        fake, make_settings(disks=NotifyTarget(url="json://a", conditions=(Condition.DISK_FULL,)), all=OPS["ops"])
    )
    await watch.tick(FAULTY)
    assert [len(watch.senders[name].got) for name in ("disks", "all")] == [0, 1]


async def test_messages_are_in_the_language_of_the_settings(fake: FakeBusServicesRig):
    watch = Watch(fake, structs.replace(make_settings(), language=Language.ZH))
    await watch.tick(FAULTY)
    assert watch.senders["ops"].got == ["[严重] edge 已放弃控制服务器 gpu-1 的电源：no boot"]


async def test_the_loss_of_the_broker_is_told_without_the_broker(fake: FakeBusServicesRig):
    watch = Watch(fake, make_settings())
    gone = Facts(broker_problem="it does not answer")
    fake.bus.cut()
    for _ in range(3):
        await watch.tick(gone)
    assert watch.senders["ops"].got == [
        "[critical] The broker does not store durably, so new jobs are refused: it does not answer"
    ]
    fake.bus.heal()
    await watch.tick(HEALTHY)
    assert [line.partition("]")[0] for line in watch.senders["ops"].got[1:]] == ["[resolved after 4 min"]


async def make_failed(fake: FakeBusServicesRig, job_id: str, code: str = "oom") -> WebhookDelivery:
    job = await fake.submit("ann", job_id=job_id)
    await fake.start(job)
    await fake.write_event(job.key, e.Failed(JobFailure(code, "no\nroom \x1b[2J", "image", retryable=False)))
    entry = await fake.jobs.read(job.key)
    return WebhookDelivery(entry.revision, entry.record)


async def test_a_failed_job_is_told_once_to_those_who_want_it(fake: FakeBusServicesRig):
    watch = Watch(
        fake,
        make_settings(
            jobs=NotifyTarget(url="json://a", failed_jobs=True),
            oom=NotifyTarget(url="json://a", failed_jobs=True, codes=("oom",), endpoints=("echo",)),
            other=NotifyTarget(url="json://a", failed_jobs=True, endpoints=("another",)),
            none=NotifyTarget(url="json://a"),
        ),
    )
    for failed in (await make_failed(fake, "one"), await make_failed(fake, "two", "bad_input")):
        for _ in range(2):  # the state comes again after a crash
            await watch.service.on_state(failed)
    await watch.tick(HEALTHY)
    await watch.tick(HEALTHY)
    one = "Job one of ann (endpoint echo) failed: oom: no room [2J"
    two = "Job two of ann (endpoint echo) failed: bad_input: no room [2J"
    got = {name: "\n".join(sender.got).splitlines() for name, sender in watch.senders.items()}
    assert got == {"jobs": [one, two], "oom": [one], "other": [], "none": []}
    assert await count_rows(fake) == 0
