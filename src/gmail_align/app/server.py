"""A small web server for one person on this machine: a page, and answers about images."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gmail_align.app.looking import FinishedRun
from gmail_align.data.decode import decode_rgb
from gmail_align.errors import UserError
from gmail_align.report.templating import environment

HOST: Final = "127.0.0.1"
MOST_BYTES: Final = 32 * 2**20
_ASKED_BY_PAGE: Final = "X-Gmail-Align"
"""A header that another site's form cannot send without being asked first."""


def make_server(run: FinishedRun, port: int) -> ThreadingHTTPServer:
    """Return a server of a run on this machine alone; 0 takes a free port.

    Raises:
        UserError: the port is taken.
    """
    page = _page(run)
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, run, page, Lock()))
    except OSError as error:
        raise UserError(
            f"port {port} of this machine cannot be used ({error.strerror}): give another --port"
        ) from error


def _page(run: FinishedRun) -> bytes:
    files = resources.files("gmail_align.app")
    script = (files / "app.js").read_text(encoding="utf-8")
    style = resources.files("gmail_align.report") / "templates" / "style.css"
    template = environment().from_string((files / "app.html").read_text(encoding="utf-8"))
    text = template.render(title=run.title, style=style.read_text(encoding="utf-8"), script=script)
    return str(text).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def __init__(self, run: FinishedRun, page: bytes, lock: Lock, *rest: Any) -> None:
        self._run, self._page, self._lock = run, page, lock
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Serve the page, or one of the run's images."""
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if parts == [""]:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self._page)
        elif len(parts) == 3 and parts[0] == "image":
            self._answer("application/octet-stream", lambda: self._run.image(parts[1], parts[2]))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here")

    def do_POST(self) -> None:
        """Say what the run makes of the image in the body."""
        size = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != "/look" or _ASKED_BY_PAGE not in self.headers:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here")
        elif not size.isdecimal() or len(size) > 9 or int(size) > MOST_BYTES:
            self.close_connection = True  # the body stays unread
            self._send(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "text/plain", b"give an image below 32 MB"
            )
        else:
            body = self.rfile.read(int(size))
            self._answer("application/json", lambda: self._look(body))

    def log_message(self, *_: Any) -> None:
        """Keep the terminal quiet."""

    def _look(self, body: bytes) -> bytes:
        return json.dumps(self._run.look(decode_rgb(body))).encode()

    def _answer(self, kind: str, make: Callable[[], bytes]) -> None:
        try:
            with self._lock:  # models and stores serve one request at a time
                body = make()
        except UserError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", str(error).encode())
        else:
            self._send(HTTPStatus.OK, kind, body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        here = f"{HOST}:{self.connection.getsockname()[1]}"
        if self.headers.get("Host") not in (here, here.replace(HOST, "localhost")):
            # Another site's name that points to this machine must not read the run.
            status, kind = HTTPStatus.FORBIDDEN, "text/plain"
            body = f"open this page as http://{here}".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        )
        try:
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the page was closed before its answer came
            self.close_connection = True
