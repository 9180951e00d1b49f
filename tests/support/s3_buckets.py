"""S3 buckets of a moto server on loopback. Each bucket has its own name; the server is shared."""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

_numbers = itertools.count()


def _create_atomically(app: Callable[..., Any]) -> Callable[..., Any]:
    """Let one request at a time create an object that must not exist. moto looks and writes in two steps, S3 in one."""
    lock = threading.Lock()

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with lock if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return app(environ, start_response)

    return call


@functools.cache
def _server() -> str:
    """Start the server once per test process; return its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _create_atomically(server._server.app)
    return "http://{}:{}".format(*server.get_host_and_port())


def s3_environ() -> Mapping[str, str]:
    """Return the environment variables with which an edge reaches the server."""
    return {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": _server(),
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def create_bucket(prefix: str = "assets/of-ours") -> Iterator[str]:
    """Create a bucket and set the environment to reach it; yield its URL."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environ().items():
            patch.setenv(name, value)
        bucket = f"bucket-{os.getpid()}-{next(_numbers)}"
        with closing(boto3.client("s3", region_name="us-east-1", endpoint_url=_server())) as client:
            client.create_bucket(Bucket=bucket)
        yield f"s3://{bucket}/{prefix}"
