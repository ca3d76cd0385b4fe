"""A way to a server on which requests are late, and some are answered by an error of their own."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "server", "date"}
"""Headers of an answer that the way back has of its own."""


@contextmanager
def gateway(url: str, *, delay_s: float, errors: float, seed: int = 1) -> Iterator[str]:
    """URL of one before `url`: each request is `delay_s` late, a fraction of `errors` gets status 500 instead."""
    chance = random.Random(seed)

    class Passing(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(delay_s)
            if chance.random() < errors:
                self.send_error(500)
                return
            server = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in NOT_PASSED_ON:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            server.close()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Passing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
