"""Which addresses may be connected to on a client's word: public unicast ones, and nothing that hides another."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries (RFC 6890 and its updates), and the metadata services of clouds that lie outside
# them. Ours and not `is_global`, whose answer changes with the version of Python.
REFUSED: tuple[tuple[str, IPv4Network | IPv6Network], ...] = (
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


def refusal(address: Address) -> str | None:
    """What `address` is that it may not be connected to, or None when it may."""
    for what, network in REFUSED:
        if address.version == network.version and address in network:
            return what
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return "a reserved address"
    return None


def literal(host: str) -> Address | None:
    """The address that `host` spells, None when it is a name."""
    if "%" in host:  # a zone of this machine
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None
