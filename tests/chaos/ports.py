"""Which calls of which ports have a fault point, and what they are called in the tables of steps."""

from functools import wraps
from typing import Any

from bus.port import Bus, Delivery
from schemas.host import Presence
from tests.chaos.faults import Faults, plain


def _event(_key: object, recorded: Any, *_: object) -> str:
    return str(type(recorded.event).__struct_config__.tag)


def _note(_key: object, note: Any) -> str:
    return str(type(note).__struct_config__.tag)


def _presence(_host: str, presence: Presence) -> str:
    return "draining" if presence.draining else ""


RECORDS = {"create": _event, "update": _event}
QUEUE = {"publish": plain, "withdraw": plain}
FEED = {"publish": _note}
CONTROL = {"nudge": plain}
HOSTS = {"put": _presence}
DELIVERY = {"done": plain, "later": plain}
ENGINE = {"start": plain, "stop": plain, "remove": plain}
SUPPLIES = {"stage": plain, "keep": plain}
STORE = {"write": plain}
DRIVER = {"start": plain, "stop": plain}


def arm_bus(bus: Bus, faults: Faults) -> None:
    """Points around everything a process writes, and around what it says of the messages it was handed."""
    faults.over(bus.records, "records", RECORDS)
    faults.over(bus.queue, "queue", QUEUE)
    faults.over(bus.feed, "feed", FEED)
    faults.over(bus.control, "control", CONTROL)
    faults.over(bus.hosts, "hosts", HOSTS)
    take = bus.queue.take

    @wraps(take)
    async def taken(*args: Any) -> Delivery | None:
        delivery = await take(*args)
        if delivery is not None:
            faults.over(delivery, "delivery", DELIVERY)
        return delivery

    vars(bus.queue)["take"] = taken
