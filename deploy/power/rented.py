"""Power a rented GPU box on or off by its provider's API: `rented.py compshare|autodl on|off|state`.

It follows the exit contract of the `command` driver. `on` and `off` exit with 0 if the order was accepted or there was
nothing to do, 75 if the provider has no free GPU, and otherwise 1 with the reason in the last line. `state` prints one
word. The state is read before an order is sent, because neither provider promises that repeated orders are harmless.
Uses the standard library only.

The box and the key come from the environment, that is, from `env` and `inherit` of the host's declaration:
  compshare   COMPSHARE_PUBLIC_KEY, COMPSHARE_PRIVATE_KEY, COMPSHARE_REGION, COMPSHARE_ZONE, COMPSHARE_HOST (uhost-…)
  autodl      AUTODL_TOKEN, AUTODL_INSTANCE (pro-…): container instances "Pro", which alone have an API
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

TIMEOUT_S = 30
NO_CAPACITY_EXIT = 75

# Neither provider documents a code for "sold out"; these are words of their messages. Add the one that you meet.
NO_CAPACITY_TEXTS = ("资源不足", "库存不足", "无可用", "售罄", "insufficient", "not enough", "sold out", "no resource")

COMPSHARE = os.environ.get("COMPSHARE_URL", "https://api.ucloud.cn")
AUTODL = os.environ.get("AUTODL_URL", "https://api.autodl.com")

COMPSHARE_STATES = {
    "Initializing": "starting",
    "Starting": "starting",
    "Running": "on",
    "Rebooting": "starting",
    "Stopping": "stopping",
    "Stopped": "off",
    "Install Fail": "error",
}
AUTODL_STATES = {
    "creating": "starting",
    "starting": "starting",
    "running": "on",
    "shutting_down": "stopping",
    "shutdown": "off",
    "stopped": "off",
    "error": "error",
}


class ProviderRefused(Exception):
    """The provider refused a call; the message is the provider's."""


def fetch(request: Request) -> Any:
    """Send the request, and return the JSON of the provider's answer."""
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - the URLs above
        return json.load(response)


def compshare(action: str, **parameters: str) -> Any:
    """Make one signed call: SHA-1 of the sorted names and values and the private key (UCloud's API, "signature")."""
    signed = {"Action": action, "PublicKey": os.environ["COMPSHARE_PUBLIC_KEY"], **parameters}
    text = "".join(f"{name}{value}" for name, value in sorted(signed.items())) + os.environ["COMPSHARE_PRIVATE_KEY"]
    signed["Signature"] = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - what the provider asks for
    answer = fetch(Request(f"{COMPSHARE}/?{urlencode(signed)}"))  # noqa: S310
    if answer.get("RetCode") != 0:
        raise ProviderRefused(f"{action}: {answer.get('RetCode')} {answer.get('Message', '')}")
    return answer


def compshare_order(action: str) -> None:
    """Send the order `action`, which starts or stops the box."""
    place = {name: os.environ[f"COMPSHARE_{name.upper()}"] for name in ("Region", "Zone")}
    compshare(action, UHostId=os.environ["COMPSHARE_HOST"], **place)


def compshare_state() -> str:
    """Return the provider's state of the box, as a word of the exit contract."""
    boxes = compshare("DescribeCompShareInstance", **{"UHostIds.0": os.environ["COMPSHARE_HOST"]})["UHostSet"]
    if not boxes:
        raise ProviderRefused(f"there is no box {os.environ['COMPSHARE_HOST']}")
    return COMPSHARE_STATES.get(boxes[0].get("State", ""), "unknown")


def autodl(method: str, path: str, **parameters: str) -> Any:
    """Make one call. A GET takes its parameters in the query, although the provider's own example sends a body."""
    url = f"{AUTODL}/api/v1/dev/instance/pro/{path}"
    meant = {"instance_uuid": os.environ["AUTODL_INSTANCE"], **parameters}
    headers = {"Authorization": os.environ["AUTODL_TOKEN"], "Content-Type": "application/json"}
    if method == "GET":
        answer = fetch(Request(f"{url}?{urlencode(meant)}", headers=headers))  # noqa: S310
    else:
        answer = fetch(Request(url, data=json.dumps(meant).encode(), headers=headers, method=method))  # noqa: S310
    if answer.get("code") != "Success":
        raise ProviderRefused(f"{path}: {answer.get('code')} {answer.get('msg', '')}")
    return answer.get("data")


# provider -> calls for on, off and state
PROVIDERS: Mapping[str, tuple[Callable[[], object], Callable[[], object], Callable[[], str]]] = {
    "compshare": (
        lambda: compshare_order("StartCompShareInstance"),
        lambda: compshare_order("StopCompShareInstance"),
        compshare_state,
    ),
    "autodl": (
        lambda: autodl("POST", "power_on", payload="gpu"),
        lambda: autodl("POST", "power_off"),
        lambda: AUTODL_STATES.get(autodl("GET", "status"), "unknown"),
    ),
}
REACHED_STATES = {"on": {"on", "starting"}, "off": {"off", "stopping"}}


def run_verb(provider: str, verb: str) -> None:
    """Print the state, or order the box on or off unless it is there already or on its way."""
    on, off, state = PROVIDERS[provider]
    now = state()
    if verb == "state":
        print(now)
    elif now not in REACHED_STATES[verb]:
        (on if verb == "on" else off)()


def main() -> int:
    """Run the verb in argv, and return the exit code of the contract."""
    provider, verb = sys.argv[1:]
    try:
        run_verb(provider, verb)
    except KeyError as error:
        print(f"{error} is not set or not known: see the head of {sys.argv[0]}")
        return 1
    except ProviderRefused as error:
        print(error)
        return NO_CAPACITY_EXIT if any(word in str(error).lower() for word in NO_CAPACITY_TEXTS) else 1
    except (URLError, TimeoutError, ValueError) as error:
        print(f"{provider} does not answer: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
