"""A process between a client and an object store that spoils every so-manieth request, and counts:
`python flaky_proxy.py UPSTREAM EVERY`, or 0 to spoil none.

It prints its port. In turn it answers 503, cuts the answer's body short, and lets go of the connection. Requests for
`/counts` are answered with how many it spoilt, and how often each object was asked for. Ends with its standard input.
"""

import http.client
import itertools
import json
import os
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

OF_CONNECTION = ("connection", "content-length", "expect", "transfer-encoding")
"""Headers that are not handed on."""


class Proxy(BaseHTTPRequestHandler):
    """Hands one request on, or spoils it."""

    protocol_version = "HTTP/1.1"
    upstream = 0
    numbers = itertools.count(1)
    lock = threading.Lock()
    count = 0
    every = 0
    gets: ClassVar[Counter[str]] = Counter()

    def handle_request(self) -> None:
        self.close_connection = True
        if self.path == "/counts":
            self.answer(200, [], json.dumps({"spoilt": Proxy.count, "gets": self.gets}).encode())
            return
        body = self.body()
        with self.lock:
            turn = Proxy.count if self.every and next(self.numbers) % self.every == 0 else None
            Proxy.count += turn is not None
            self.gets[self.path] += self.command == "GET"
        if turn is not None and turn % 3 == 0:
            self.answer(503, [], b"<Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>")
            return
        if turn is not None and turn % 3 == 1:
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_CONNECTION}
        there = http.client.HTTPConnection("127.0.0.1", self.upstream)
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        data = answer.read()
        self.answer(answer.status, answer.getheaders(), data, len(data) // 2 if turn is not None else len(data))
        there.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

    def body(self) -> bytes:
        """That of the request."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, kept: int | None = None) -> None:
        self.send_response_only(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in OF_CONNECTION:
                self.send_header(name, value)
        # Of an answer to HEAD it is the length of what is not sent.
        self.send_header("Content-Length", lengths[0] if lengths and self.command == "HEAD" else str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data[:kept])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Clients that went away are none of its business."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Proxy.upstream, Proxy.every = map(int, sys.argv[1:])
    server = Server(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    os._exit(0)
