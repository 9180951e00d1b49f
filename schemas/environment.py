"""The process environment: which variables a child inherits, and how to keep loopback requests from a proxy.

Our own variables hold settings, such as passwords of the broker and keys. So a child gets a list of allowed variables;
a list of removed ones would miss a new secret.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

INHERITED_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"),
        "JOURNAL_STREAM",  # tells a process whether its stderr is the journal
        *("SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
INHERITED_PREFIXES = ("LC_",)
# For our own Python programs, for programs that load NVIDIA libraries, and for those that use Docker.
PYTHON_PREFIXES = ("PYTHON", "LD_LIBRARY_PATH")
GPU_PREFIXES = (*PYTHON_PREFIXES, "CUDA_", "NVIDIA_")
DOCKER_PREFIXES = ("DOCKER_",)


def build_child_environment(environ: Mapping[str, str], *names: str, prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the part of `environ` that a child inherits, with `names` and all that start with one of `prefixes`."""
    all_names, all_prefixes = INHERITED_NAMES.union(names), INHERITED_PREFIXES + prefixes
    return {name: value for name, value in environ.items() if name in all_names or name.startswith(all_prefixes)}


_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Return whether the name or address stands for this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Return whether the host of the URL is loopback; False for a text that is not a URL."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def bypass_proxies_for_loopback(url: str = "") -> dict[str, None]:
    """Return httpx2 `mounts` that keep loopback requests from the proxies of the environment (`HTTP_PROXY`, …).

    A proxy would read the keys in such requests. `url`: the address of the client's server; its host is included if it
    is another address of loopback.
    """
    own = urlsplit(url).hostname if is_loopback_url(url) else None
    hosts = {
        *_LOOPBACK_NAMES,
        *([own] if own and ":" not in own else []),
    }  # the one loopback address of IPv6 is in the list
    return dict.fromkeys(f"all://{host}" for host in sorted(hosts))
