"""docs/scaling.md shows a configuration that the broker accepts and that our own code writes."""

import re
import subprocess
from pathlib import Path

from bus.server.config import ClusterConfig, ServerConfig, TlsFiles, render_accounts, render_config
from bus.server.process import find_program
from edge.settings import EdgeSettings
from schemas.settings_loader import load_settings
from tests.support.doc_pages import read_blocks as shown

FILES = ("accounts.conf", "hosts.conf")
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def words(conf: Path) -> set[str]:
    """Return every word of a configuration, without order, comments and sizes."""
    text = "\n".join(line.split("#")[0] for line in conf.read_text().splitlines())
    found = {word.strip(":") for word in re.findall(r'[^\s,\[\]{}"]+', text)}
    return {word for word in found if not re.fullmatch(r"\d+(GB)?", word)}


def test_the_broker_takes_what_the_page_shows_and_we_write_the_same(tmp_path: Path):
    (text,) = [block for block in shown(PAGE, "text") if "cluster {" in block]
    (tmp_path / "accounts.conf").write_text(render_accounts({"edge": "a", "runner": "b"}))
    (tmp_path / "hosts.conf").touch()
    page, ours = tmp_path / "page.conf", tmp_path / "ours.conf"
    page.write_text(text)
    routes = tuple(f"192.0.2.{number}:6222" for number in (1, 2, 3))
    cluster = ClusterConfig("n1", routes[0], routes, "a-long-secret-of-the-routes")
    store = "/var/lib/lamplighter/broker"
    ours.write_text(
        render_config(ServerConfig("192.0.2.1:4222", "192.0.2.1:8222", store, FILES, 20 * 10**9, cluster=cluster))
    )
    for conf in (page, ours):
        done = subprocess.run([find_program(), "-t", "-c", conf], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert words(page) == words(ours)


def test_the_page_shows_the_encryption_of_routes_that_we_write():
    (text,) = [block for block in shown(PAGE, "text") if "ca_file" in block]
    folder = Path("/etc/lamplighter/tls")
    files = TlsFiles(folder / "cert.pem", folder / "key.pem")
    cluster = ClusterConfig("n1", "192.0.2.1:6222", (), "secret", tls=files, ca=folder / "ca.pem")
    ours = render_config(ServerConfig("192.0.2.1:4222", "192.0.2.1:8222", "/", FILES, cluster=cluster))
    assert " ".join(text.split()) in " ".join(ours.split())


def test_the_settings_that_the_page_shows_are_settings():
    text = "\n".join(shown(PAGE, "toml"))
    settings = load_settings(EdgeSettings, text, {})
    assert (settings.broker.replicas, settings.store.url) == (3, "s3://bucket/prefix")
    assert len(settings.broker.url.split(",")) == len(settings.broker.monitor.split(",")) == 3
