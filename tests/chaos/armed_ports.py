"""The calls of ports that have a fault point, and the names of these points."""

from functools import wraps
from pathlib import Path
from typing import Any

from bus.interface import Bus, QueueMessage
from schemas.host import HostHeartbeat
from tests.chaos.fault_points import FaultPoints, no_label


def _event(_key: object, recorded: Any, *_: object) -> str:
    return str(type(recorded.event).__struct_config__.tag)


def _note(_key: object, note: Any) -> str:
    return str(type(note).__struct_config__.tag)


def _presence(_host: str, presence: HostHeartbeat) -> str:
    return "draining" if presence.draining else ""


def _file_name(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


RECORDS = {"create": _event, "update": _event}
QUEUE = {"publish": no_label, "remove": no_label}
FEED = {"publish": _note}
CONTROL = {"nudge": no_label}
HOSTS = {"put": _presence}
DELIVERY = {"ack": no_label, "nak": no_label}
ENGINE = {"start": no_label, "stop": no_label, "remove": no_label}
SUPPLIES = {"stage": no_label, "upload": no_label}
SOURCE = {"download": no_label}
VOLUMES = {"add": no_label, "assemble": no_label}
STORE = {"write": no_label}
DRIVER = {"start": no_label, "stop": no_label}
SECRETS = {"update": no_label}
KEY_FILE = {"atomic_write": no_label}
DISK = {"fsync": _file_name}


def arm_bus(bus: Bus, faults: FaultPoints) -> None:
    """Put fault points around everything that a process writes, and around its acks of queue messages."""
    faults.over(bus.job_store, "records", RECORDS)
    faults.over(bus.job_queue, "queue", QUEUE)
    faults.over(bus.feed, "feed", FEED)
    faults.over(bus.host_nudges, "control", CONTROL)
    faults.over(bus.heartbeats, "hosts", HOSTS)
    faults.over(bus.secrets, "secrets", SECRETS)
    take = bus.job_queue.fetch

    @wraps(take)
    async def taken(*args: Any) -> QueueMessage | None:
        delivery = await take(*args)
        if delivery is not None:
            faults.over(delivery, "delivery", DELIVERY)
        return delivery

    vars(bus.job_queue)["fetch"] = taken
