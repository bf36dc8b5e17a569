"""The Debian archive for devices that have a cable and no way out: a small forwarder on the host's end of it.

Only what apt asks for: GET of plain http, streamed. Nothing is kept; what arrives is checked by apt itself.
"""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from tests.device.machine import Machine

PIECE = 1 << 16
PASSED = ("content-length", "content-type", "last-modified", "etag", "location")


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        upstream = http.client.HTTPConnection(parts.netloc, timeout=60)
        asked = {name: value for name, value in self.headers.items() if name.lower() in ("if-modified-since", "range")}
        try:
            upstream.request("GET", parts.path or "/", headers={**asked, "Host": parts.netloc})
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() in PASSED:
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read(PIECE):
                self.wfile.write(piece)
        except OSError:
            self.close_connection = True
        finally:
            upstream.close()

    def log_message(self, *_: object) -> None:
        pass


class Archive:
    """In the block, apt on this device reaches the archive."""

    def __init__(self, device: Machine, host_address: str) -> None:
        self._server = ThreadingHTTPServer((host_address, 0), _Forward)
        port = self._server.server_address[1]
        device.write("/etc/apt/apt.conf.d/00lab", f'Acquire::http::Proxy "http://{host_address}:{port}";\n')
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
