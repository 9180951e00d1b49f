"""Rules for what leaves a process: variables to its children, requests past a proxy, and requests to addresses. Pure.

Our own variables hold settings, such as passwords of the broker and keys. So a child gets a list of allowed variables;
a list of removed ones would miss a new secret. Requests to loopback do not go through a proxy, which would read them.

Requests of clients and of jobs may go only to public unicast addresses, and to no address that embeds or translates to
another one. Nothing is resolved here.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
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


Address = IPv4Address | IPv6Address

# IANA's special-purpose registries (RFC 6890 and its updates), and cloud metadata addresses that are not in them.
# `ipaddress.is_global` is not used, because its answer changes with the version of Python.
REFUSED_NETWORKS: tuple[tuple[str, IPv4Network | IPv6Network], ...] = (
    ("an unspecified address", IPv4Network("0.0.0.0/8")),
    ("a private address", IPv4Network("10.0.0.0/8")),
    ("a carrier's shared address", IPv4Network("100.64.0.0/10")),
    ("a loopback address", IPv4Network("127.0.0.0/8")),
    ("a cloud's metadata address", IPv4Network("168.63.129.16/32")),
    ("a link-local address", IPv4Network("169.254.0.0/16")),
    ("a private address", IPv4Network("172.16.0.0/12")),
    ("a reserved address", IPv4Network("192.0.0.0/24")),
    ("a documentation address", IPv4Network("192.0.2.0/24")),
    ("a relay's address", IPv4Network("192.88.99.0/24")),
    ("a private address", IPv4Network("192.168.0.0/16")),
    ("a benchmarking address", IPv4Network("198.18.0.0/15")),
    ("a documentation address", IPv4Network("198.51.100.0/24")),
    ("a documentation address", IPv4Network("203.0.113.0/24")),
    ("a multicast address", IPv4Network("224.0.0.0/4")),
    ("a reserved address", IPv4Network("240.0.0.0/4")),
    ("an unspecified address", IPv6Network("::/128")),
    ("a loopback address", IPv6Network("::1/128")),
    ("an IPv4 address in IPv6", IPv6Network("::/96")),
    ("an IPv4 address in IPv6", IPv6Network("::ffff:0:0/96")),
    ("an address behind NAT64", IPv6Network("64:ff9b::/96")),
    ("an address behind NAT64", IPv6Network("64:ff9b:1::/48")),
    ("a Teredo address", IPv6Network("2001::/32")),
    ("a reserved address", IPv6Network("2001::/23")),
    ("a documentation address", IPv6Network("2001:db8::/32")),
    ("an IPv4 address in IPv6", IPv6Network("2002::/16")),
    ("a documentation address", IPv6Network("3fff::/20")),
    ("a private address", IPv6Network("fc00::/7")),
    ("a link-local address", IPv6Network("fe80::/10")),
    ("a private address", IPv6Network("fec0::/10")),
    ("a multicast address", IPv6Network("ff00::/8")),
)
GLOBAL_UNICAST = IPv6Network("2000::/3")


def refusal_reason(address: Address) -> str | None:
    """Return what kind of refused address this is, or None if connecting to it is permitted."""
    for kind, network in REFUSED_NETWORKS:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return "a reserved address"
    return None


def parse_ip_literal(host: str) -> Address | None:
    """Return the address that `host` spells, or None for a name."""
    if "%" in host:  # an IPv6 zone, which names an interface of this machine
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


# "Ends in a number" of the URL standard: an address in any spelling (127.1, 0x7f000001, 017700000001).
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")


def ends_in_number(host: str) -> bool:
    """Return whether `host`, in lower case, is an address in some spelling and not a name."""
    return _NUMERIC_LABEL.match(host.rpartition(".")[2]) is not None
