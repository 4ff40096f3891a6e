"""Starts real S3 servers, in this process, and one that accepts and says nothing."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "profiles"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, port: int = 0) -> Iterator[int]:
    """Run a server with an empty bucket, which AWS' libraries here ask, and give its port."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        point_aws_at(monkeypatch, port)
        # All of its servers in one process keep their buckets together.
        httpx.post(f"http://127.0.0.1:{port}/moto-api/reset").raise_for_status()
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield port
    finally:
        server.stop()


@contextmanager
def hung_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Listen, so that AWS' libraries here connect, and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        point_aws_at(monkeypatch, port)
        yield port


def point_aws_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Have AWS' libraries ask a server on this machine, by the variables that they read."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tester")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
