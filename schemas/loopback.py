"""This machine's own addresses: what is sent there must not pass a proxy, which would read the keys in it."""

from ipaddress import ip_address
from urllib.parse import urlsplit

_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether the name or address stands for this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def leads_here(url: str) -> bool:
    """Whether the URL's host is loopback; False for what is no URL."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def past_proxies(url: str = "") -> dict[str, None]:
    """httpx `mounts` that keep loopback from the proxies that the environment names (`HTTP_PROXY`, …).

    `url`: where the client leads; its host is among them if it is another address of loopback.
    """
    own = urlsplit(url).hostname if leads_here(url) else None
    hosts = {*_NAMES, *([own] if own and ":" not in own else [])}  # IPv6 has one such address, which is named
    return dict.fromkeys(f"all://{host}" for host in sorted(hosts))
