"""Rented GPU boxes that are powered on and off by their provider's API. `lamplighter power-driver` calls it.

The state is read before an order is sent, because neither provider promises that repeated orders are harmless. Uses the
standard library only, so that the program starts fast.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode
from urllib.request import Request, urlopen

TIMEOUT_S = 30

# Neither provider documents a code for "sold out"; these are words of their messages. Add the one that you meet.
NO_CAPACITY_TEXTS = ("资源不足", "库存不足", "无可用", "售罄", "insufficient", "not enough", "sold out", "no resource")

COMPSHARE_STATES: Mapping[str, str] = {
    "Initializing": "starting",
    "Starting": "starting",
    "Running": "on",
    "Rebooting": "starting",
    "Stopping": "stopping",
    "Stopped": "off",
    "Install Fail": "error",
}
AUTODL_STATES: Mapping[str, str] = {
    "creating": "starting",
    "starting": "starting",
    "running": "on",
    "shutting_down": "stopping",
    "shutdown": "off",
    "stopped": "off",
    "error": "error",
}
REACHED_STATES: Mapping[str, frozenset[str]] = {
    "on": frozenset({"on", "starting"}),
    "off": frozenset({"off", "stopping"}),
}


class ProviderRefused(Exception):
    """The provider refused a call; the message is the provider's."""

    @property
    def is_sold_out(self) -> bool:
        """Whether the provider has no free GPU."""
        return any(word in str(self).lower() for word in NO_CAPACITY_TEXTS)


class RentedBox(Protocol):
    """A box at a provider. All calls raise ProviderRefused, OSError, or ValueError for an answer that is not JSON."""

    def state(self) -> str:
        """Return the power state, as a word of the exit contract of the `command` driver."""
        ...

    def order(self, verb: str) -> None:
        """Ask the provider to start or stop the box."""
        ...


def switch(box: RentedBox, verb: str) -> None:
    """Order the box on or off, unless it is there already or on its way."""
    if box.state() not in REACHED_STATES[verb]:
        box.order(verb)


def _fetch(request: Request) -> Any:
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - the provider's address
        return json.load(response)


@dataclass(frozen=True)
class CompShareBox(RentedBox):
    """A box at UCloud CompShare. `host` is its id, uhost-…"""

    public_key: str
    private_key: str
    region: str
    zone: str
    host: str
    url: str = "https://api.ucloud.cn"

    def state(self) -> str:
        boxes = self._call("DescribeCompShareInstance", **{"UHostIds.0": self.host})["UHostSet"]
        if not boxes:
            raise ProviderRefused(f"there is no box {self.host}")
        return COMPSHARE_STATES.get(boxes[0].get("State", ""), "unknown")

    def order(self, verb: str) -> None:
        action = {"on": "StartCompShareInstance", "off": "StopCompShareInstance"}[verb]
        self._call(action, UHostId=self.host, Region=self.region, Zone=self.zone)

    def _call(self, action: str, **parameters: str) -> Any:
        """Make one signed call: SHA-1 of the sorted names and values and the private key (UCloud's "signature")."""
        signed = {"Action": action, "PublicKey": self.public_key, **parameters}
        text = "".join(f"{name}{value}" for name, value in sorted(signed.items())) + self.private_key
        signed["Signature"] = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - what the provider asks for
        answer = _fetch(Request(f"{self.url}/?{urlencode(signed)}"))  # noqa: S310
        if answer.get("RetCode") != 0:
            raise ProviderRefused(f"{action}: {answer.get('RetCode')} {answer.get('Message', '')}")
        return answer


@dataclass(frozen=True)
class AutoDlBox(RentedBox):
    """A container instance "Pro" at AutoDL, the only kind with an API. `instance` is its id, pro-…"""

    token: str
    instance: str
    url: str = "https://api.autodl.com"

    def state(self) -> str:
        return AUTODL_STATES.get(self._call("GET", "status"), "unknown")

    def order(self, verb: str) -> None:
        if verb == "on":
            self._call("POST", "power_on", payload="gpu")
        else:
            self._call("POST", "power_off")

    def _call(self, method: str, path: str, **parameters: str) -> Any:
        """Make one call. A GET has its parameters in the query, although the provider's own example sends a body."""
        url = f"{self.url}/api/v1/dev/instance/pro/{path}"
        sent = {"instance_uuid": self.instance, **parameters}
        headers = {"Authorization": self.token, "Content-Type": "application/json"}
        if method == "GET":
            answer = _fetch(Request(f"{url}?{urlencode(sent)}", headers=headers))  # noqa: S310
        else:
            answer = _fetch(Request(url, data=json.dumps(sent).encode(), headers=headers, method=method))  # noqa: S310
        if answer.get("code") != "Success":
            raise ProviderRefused(f"{path}: {answer.get('code')} {answer.get('msg', '')}")
        return answer.get("data")
