"""A server of images over HTTP: reads only, and knows nothing but what it was given."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from itkstream.errors import InputError
from itkstream.serving.documents import Document

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
# Seconds after which a connection on which nothing is asked is closed.
_IDLE = 60
# Seconds between looks whether the server is to stop.
_POLL = 0.1

Find = Callable[[str], Document | None]


class HttpServer:
    """A server on a thread of its own, until it is closed.

    Parameters
    ----------
    find : callable
        Gives what lies at a path, or None.
    host, port : str, int
        Where it listens; any free port for 0.
    reader : str
        Address of the web page that may read from it, beside programs of this machine.
    """

    def __init__(self, find: Find, host: str, port: int, reader: str) -> None:
        try:
            self._server = _Server(find, host, port, reader)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"nothing can listen on port {port} of {host} ({error}): choose another port, or 0 "
                "for any that is free"
            ) from error
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Address by which a browser of this machine finds it."""
        host, port = self._server.server_address[:2]
        host = str(host)
        if ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def wait(self) -> None:
        """Wait until it is closed, or Ctrl-C comes."""
        while self._thread.is_alive():
            self._thread.join(_POLL)  # without an end, Ctrl-C would not come through on Windows

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, find: Find, host: str, port: int, reader: str) -> None:
        self.find = find
        page = urlsplit(reader)
        self.origin = f"{page.scheme}://{page.netloc}"
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        # Other names may lead here from the page of somebody else ("DNS rebinding").
        own = ip_address(str(self.server_address[0]))
        self.names = {"localhost", "127.0.0.1", "::1", host} if own.is_loopback else None

    def server_bind(self) -> None:
        """Bind, and ask no name server for the name of this machine, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection: most are closed by a viewer that moved on."""
        logger.debug("connection of %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection: GET and HEAD of what there is."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "itkstream", ""
    timeout = _IDLE
    # Head and body are two packets: the second would wait for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send what lies at the path."""
        self._answer()

    def do_HEAD(self) -> None:
        """Tell its length; nothing is computed."""
        self._answer()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request, where all is logged."""
        logger.debug("%s %s", self.client_address[0], format % args)

    def _refuse(self) -> None:
        self.close_connection = True  # a body may follow, which nobody reads
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": "GET, HEAD"})

    def _answer(self) -> None:
        if self.server.names is not None and self._named_as() not in self.server.names:
            self._say(HTTPStatus.FORBIDDEN, "this server answers to the names of this machine")
            return
        found = self.server.find(urlsplit(self.path).path)
        if found is None:
            self._say(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        first, stop = _part(self.headers.get("Range"), found.length)
        if first >= stop:
            told = {"Content-Range": f"bytes */{found.length}"}
            self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no such part", told)
            return
        try:
            body = found.read()[first:stop] if self.command == "GET" else b""
        except Exception as error:
            # A chunk that cannot be computed is no reason to end for all others.
            logger.warning("%s: %s", self.path, error, exc_info=logger.isEnabledFor(logging.DEBUG))
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__)
            return
        self._send(found, (first, stop), body)

    def _named_as(self) -> str | None:
        """The name by which the server was reached."""
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return None

    def _send(self, found: Document, part: tuple[int, int], body: bytes) -> None:
        whole = part == (0, found.length)
        headers = {"Content-Type": found.type, "Accept-Ranges": "bytes"}
        if not whole:
            headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{found.length}"
        self._head(
            HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT, part[1] - part[0], headers
        )
        self._write(body)

    def _say(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
        body = f"{text}\n".encode()
        self._head(status, len(body), {"Content-Type": "text/plain", **(headers or {})})
        self._write(body)

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        # Another image may lie here when the server is started again.
        told = {**headers, "Content-Length": str(length), "Cache-Control": "no-store"}
        if self.headers.get("Origin") == self.server.origin:
            told["Access-Control-Allow-Origin"] = self.server.origin
        for name, value in {**told, "Vary": "Origin", "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _write(self, body: bytes) -> None:
        if self.command != "HEAD":
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)


def _part(asked: str | None, length: int) -> tuple[int, int]:
    """First byte and one past the last of what is asked for; what is not understood means all."""
    found = _RANGE.fullmatch((asked or "").strip())
    if found is None or found.groups() == ("", ""):
        return 0, length
    first, last = found.groups()
    if not first:
        return max(0, length - int(last)), length
    return int(first), min(length, int(last) + 1) if last else length
