"""Who may connect to the studio: the listening socket, the password, and the middleware that checks each request."""

import base64
import binascii
import errno
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from data.errors import InputError
from infer.config import LOOPBACK, StudioOptions

MIN_PASSWORD = 8  # characters
MAX_BODY = 64 << 20  # bytes of a request: a scribble, or an image whose metadata is read
TOO_LARGE = f"more than {MAX_BODY >> 20} MB"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
# The page loads nothing from elsewhere, whatever a library would like to.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def read_password(options: StudioOptions) -> str:
    """The password, or "" if none is required. Raises InputError if it is missing, too short or readable by others."""
    file = options.password_file
    password = _first_line(file) if file else options.password
    flag = "--password-file" if file else "--password"
    if password and len(password) < MIN_PASSWORD:
        raise InputError(f"has {len(password)} characters", where=flag, allowed=f"{MIN_PASSWORD} or more")
    if file and not password:
        raise InputError("is empty", where=flag, fix="Put the password into its first line.")
    if not password and not options.is_private:
        what = f"{options.host} can be reached by others, and no password is set"
        raise InputError(what, where="--host", fix="Add --password-file FILE.")
    return password


def _first_line(file: Path) -> str:
    where = f"--password-file {file}"
    try:
        if file.stat().st_mode & 0o077:
            raise InputError("other users can read this file", where=where, fix=f"chmod 600 {file}")
        return (file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot be read ({reason})", where=where) from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError if the address is unknown or the port is in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"invalid address {host!r} ({error.strerror})", where="--host", allowed=LOOPBACK) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            what, allowed = f"{host} is not an address of this machine", f"{LOOPBACK}, 0.0.0.0"
            raise InputError(what, where="--host", allowed=allowed) from None
        fix = f"Is a studio running already? Or use another port: --port {max(port, 1024) + 1}"
        raise InputError(f"port {port} cannot be used ({error.strerror})", where="--port", fix=fix) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL to open in a browser."""
    host, port = listener.getsockname()[:2]
    shown = LOOPBACK if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


@dataclass(frozen=True)
class AuthMiddleware:
    """ASGI middleware that checks host, origin, password and size of every request.

    password: the HTTP Basic password, with any user name; empty for none. private: accept only host names of this
    machine, so that a foreign page cannot reach the studio through DNS rebinding.
    """

    app: Any
    password: str = ""
    private: bool = True

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers, scope["method"])
        if refusal is None:
            await self.app(scope, _limit_body(receive), _add_headers(send))
            return
        status, text = refusal
        response = [(b"content-type", b"text/plain; charset=utf-8")]
        if status == 401:
            response.append((b"www-authenticate", b'Basic realm="Atelier", charset="UTF-8"'))
        await send({"type": "http.response.start", "status": status, "headers": response})
        await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, headers: Mapping[str, str], method: str) -> tuple[int, str] | None:
        """Status and text of a refusal; None if the request is allowed."""
        if self.private and not _is_local(headers.get("host", "")):
            return 421, "the studio only answers to 127.0.0.1"
        if method not in SAFE_METHODS and _is_cross_site(headers):
            return 403, "cross-site request"
        if self.password and not self._is_authorized(headers.get("authorization", "")):
            return 401, "the password is missing or wrong"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
            return 413, TOO_LARGE
        return None

    def _is_authorized(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            password = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(password, self.password.encode())


def _is_local(header: str) -> bool:
    """Whether a Host header can only mean this machine."""
    host = header.strip().lower()
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal():
        host = name
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_cross_site(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site sent this request. Browsers set both headers; a page cannot forge them."""
    origin = headers.get("origin")
    other = origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").strip().lower()
    return other or headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _limit_body(receive: Any) -> Any:
    """A `receive` that rejects a body that grows too large, whatever its headers said."""
    size = 0

    async def limited() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


def _add_headers(send: Any) -> Any:
    """A `send` that adds HEADERS to every response."""

    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sent
