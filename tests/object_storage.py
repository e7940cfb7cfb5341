"""Object storage for tests: a server that speaks S3 as a process of its own, and one between that spoils and counts.

`S3Server` makes buckets; `s3_server` and `flaky` are context managers of the processes.
"""

from __future__ import annotations

import html
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evoray.store import Location

MOTO = "import sys; from moto.server import main; main(sys.argv[1:])"

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "keyidoftests",
    "AWS_SECRET_ACCESS_KEY": "secretoftests",
    "AWS_SESSION_TOKEN": "tokenoftests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Any are right for the server."""


@dataclass(frozen=True)
class S3Server:
    """A server on this machine.

    Attributes:
        port: of it.
    """

    port: int

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self, name: str) -> str:
        """Makes a bucket; returns its URI."""
        assert self.request("PUT", f"/{name}")[0] == 200
        return f"s3://{name}"

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of an answer to whom it does not know."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def contents(self, bucket: str) -> dict[str, bytes]:
        """Key -> bytes of all objects, without the marks of folders."""
        status, listing = self.request("GET", f"/{bucket}?list-type=2")
        assert status == 200
        assert b"<IsTruncated>false" in listing
        keys = [html.unescape(key) for key in re.findall("<Key>(.*?)</Key>", listing.decode())]
        place = Location.parse(f"s3://{bucket}?endpoint_override={self.url}")
        return {key: (place / key).read_bytes() for key in keys if not key.endswith("/")}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server without buckets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        # What it says when it listens.
        said = next((line for line in process.stderr if "Running on" in line), None)
        assert said is not None, "the server did not start"
        # The rest, a line a request, must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield S3Server(port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def flaky(server: S3Server, every: int = 3) -> Iterator[S3Server]:
    """The same server behind a process that spoils every so-manieth request, or none for 0, and counts."""
    command = [sys.executable, str(Path(__file__).with_name("flaky_proxy.py")), str(server.port), str(every)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield S3Server(int(process.stdout.readline()))
        finally:
            process.kill()


def spoilt(server: S3Server) -> int:
    """How many requests a flaky one spoilt."""
    return int(json.loads(server.request("GET", "/counts")[1])["spoilt"])


def gets(server: S3Server) -> dict[str, int]:
    """How often each object was asked for at a flaky one."""
    return dict(json.loads(server.request("GET", "/counts")[1])["gets"])
