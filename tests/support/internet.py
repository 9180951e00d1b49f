"""A public web site on this machine: a network namespace with a public address, and servers that tell what they got.

The test itself is in another namespace, with a public address of its own. Nothing leaves the machine.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.namespaces import EDGE, host_network, run_command

SITE = "11.22.33.44"  # a public address; a route to it exists in the namespaces only
OWN = "11.22.33.1"  # the public address of the machine that runs the job

SERVER = f"""
import http.server, json, socketserver, threading

class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/inner":
            self.send_response(302)
            self.send_header("Location", "http://{EDGE}/")
            self.end_headers()
            return
        length = int(self.headers.get("Content-Length", 0))
        told = dict(host=self.headers["Host"], path=self.path, body=self.rfile.read(length).decode())
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

class Tunnel(socketserver.BaseRequestHandler):
    def handle(self):
        if self.request.recv(65536):
            self.request.sendall(b"reached")

socketserver.ThreadingTCPServer.allow_reuse_address = True
threading.Thread(target=socketserver.ThreadingTCPServer(("{SITE}", 443), Tunnel).serve_forever, daemon=True).start()
server = http.server.ThreadingHTTPServer(("{SITE}", 80), Site)
print("ready", flush=True)
server.serve_forever()
"""


@contextmanager
def public_site() -> Iterator[None]:
    """Serve on ports 80 and 443 of SITE. Skips where namespaces are impossible."""
    with host_network() as net:
        at_host = net.at_host
        run_command(*at_host, "ip", "addr", "add", f"{SITE}/24", "dev", "wire")
        run_command(*at_host, "iptables", "-I", "INPUT", "-d", SITE, "-j", "ACCEPT")
        run_command("ip", "addr", "add", f"{OWN}/24", "dev", "wire")
        with subprocess.Popen([*at_host, sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                yield
            finally:
                server.kill()
