"""Addresses and URLs that are refused before any request: one attack per line."""

import pytest

from edge.outbound import AllowList, UrlRefused, parse_url
from schemas.outbound_rules import parse_ip_literal, refusal_reason

NOBODY = AllowList()


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
        *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1"),
        *("240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
        *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1"),
        *("2001:2::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "4000::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_what_is_not_public_is_refused(address: str) -> None:
    found = parse_ip_literal(address)
    assert found is not None
    assert refusal_reason(found)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_what_is_public_is_not(address: str) -> None:
    found = parse_ip_literal(address)
    assert found is not None
    assert refusal_reason(found) is None


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/a", "file:///etc/passwd", "gopher://example.com/", "data://x", "javascript://x"),
        *("http://", "http:///a", "//example.com/a", "http://user@example.com/", "http://user:pw@example.com/"),
        *("http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://017700000001/"),
        *("http://0x7f000001/", "http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://127.0.0.1./", "http://0/"),
        *("http://127.0.0.0x1/", "http://[::1]/", "http://[::ffff:7f00:1]/", "http://[fe80::1%25eth0]/"),
        *("http://[2606:4700::1%25eth0]/", "http://127.0.0.1%00.example.com/", "http://ex%61mple.com/"),
        *(
            "http://exam ple.com/",
            "http://example.com\\@127.0.0.1/",
            "http://example.com:99999/",
            "http://example.com:65536/",
            "http://example.com:0/",
            "http://[::1",
        ),
        *("http://\uff11\uff12\uff17.0.0.1/", "http://example.com/\n", "http://169.254.169.254/latest/meta-data/"),
        *("http://example.com:65536/", "http://example.com:0/"),
        *("http://example.com/a b", "http://example.com/a\\b"),
        *("http://xn--/", "http://XN--a.com/", "http://xn--a_b.com/", "http://xn--bcher-kva..com/"),
    ],
)
def test_a_url_that_no_dns_could_make_good_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        parse_url(url, NOBODY)


def test_a_url_without_a_host_is_said_to_have_none() -> None:
    with pytest.raises(UrlRefused, match="no host"):
        parse_url("http:///a", NOBODY)


def test_a_url_has_at_most_2048_characters() -> None:
    longest = "http://example.com/".ljust(2048, "a")
    assert str(parse_url(longest, NOBODY).url) == longest
    with pytest.raises(UrlRefused, match="at most 2048 characters"):
        parse_url(longest + "a", NOBODY)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com/a.mp4?x=1", "example.com", 443),
        ("HTTP://EXAMPLE.com:8080", "example.com", 8080),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example", 443),
        ("http://1.1.1.1/", "1.1.1.1", 80),
        ("http://[2606:4700:4700::1111]:81/", "2606:4700:4700::1111", 81),
        ("http://example.com./", "example.com", 80),
        ("http://example.com:1/", "example.com", 1),
        ("http://example.com:65535/", "example.com", 65535),
        ("http://0x7f.example/", "0x7f.example", 80),
    ],
)
def test_a_url_is_read_as_it_will_be_asked(url: str, host: str, port: int) -> None:
    found = parse_url(url, NOBODY)
    assert (found.host, found.port, found.is_allow_listed) == (host, port, False)


@pytest.mark.parametrize(
    ("entry", "url", "opened"),
    [
        ("127.0.0.1", "http://127.0.0.1:99/", True),
        ("127.0.0.1:99", "http://127.0.0.1:99/", True),
        ("nas.lan", "http://NAS.lan/a", True),
        ("nas.lan:80", "http://nas.lan/a", True),
        ("nas.lan:80", "https://nas.lan/a", False),
        ("nas.lan", "http://evil.nas.lan/a", False),
        ("[::1]:99", "http://[::1]:99/", True),
        ("[::1]", "http://[::1]:99/", True),
        ("::1", "http://[::1]:99/", True),
    ],
)
def test_settings_open_hosts_one_by_one(entry: str, url: str, opened: bool) -> None:
    assert parse_url(url, AllowList([entry])).is_allow_listed is opened


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_entry_for_one_port_opens_no_other(host: str) -> None:
    with pytest.raises(UrlRefused, match="loopback"):
        parse_url(f"http://{host}:98/", AllowList([f"{host}:99"]))
