"""What a program that we start inherits of our environment: what any program needs, and nothing that is ours.

Our own variables hold settings: passwords of the broker, keys, where private files lie. So it is a list of what is
handed on, never of what is held back.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

INHERITED_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"),
        *("SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
INHERITED_PREFIXES = ("LC_",)
# For our own Python programs, and for what loads an NVIDIA driver's libraries or speaks to Docker.
PYTHON_PREFIXES = ("PYTHON", "LD_LIBRARY_PATH")
GPU_PREFIXES = (*PYTHON_PREFIXES, "CUDA_", "NVIDIA_")
DOCKER_PREFIXES = ("DOCKER_",)


def build_child_environment(environ: Mapping[str, str], *names: str, prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """The part of `environ` that is handed on; with `names`, and all that begin with one of `prefixes`, besides."""
    wanted, begun = INHERITED_NAMES.union(names), INHERITED_PREFIXES + prefixes
    return {name: value for name, value in environ.items() if name in wanted or name.startswith(begun)}


# MERGED schemas/loopback.py: This machine's own addresses: what is sent there must not pass a proxy, which would read
# the keys in it.


_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether the name or address stands for this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether the URL's host is loopback; False for what is no URL."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def bypass_proxies_for_loopback(url: str = "") -> dict[str, None]:
    """httpx `mounts` that keep loopback from the proxies that the environment names (`HTTP_PROXY`, …).

    `url`: where the client leads; its host is among them if it is another address of loopback.
    """
    own = urlsplit(url).hostname if is_loopback_url(url) else None
    hosts = {*_LOOPBACK_NAMES, *([own] if own and ":" not in own else [])}  # IPv6 has one such address, which is named
    return dict.fromkeys(f"all://{host}" for host in sorted(hosts))
