"""Who may talk to the studio: programs of this machine, or whoever knows the password; and how much at once."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

LARGEST = 64 << 20  # bytes of a request: a drawing, or a picture whose text is read
# pages load nothing from anywhere else, whatever a library would like to
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
LOCALHOST = "localhost"
TOO_MUCH = f"more than {LARGEST >> 20} MB"
READING = {"GET", "HEAD", "OPTIONS"}  # methods that change nothing


@dataclass(frozen=True)
class Guard:
    """ASGI middleware. private: only names of this machine are answered, so that no foreign page can pose as one of it.

    password: what HTTP Basic must bring, with any user name; empty for none. A page of another site can ask for nothing
    that changes anything, though the browser that shows it may come in.
    """

    app: Any
    password: str = ""
    private: bool = True

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no socket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(headers, scope["method"])
        if refusal is not None:
            await refuse(send, *refusal)
            return
        await self.app(scope, limited(receive), with_policy(send))

    def refusal(self, headers: Mapping[str, str], method: str) -> tuple[int, str, Mapping[str, str]] | None:
        """Status, words and headers of a refusal; None for who may come in."""
        if self.private and not is_local(host_of(headers.get("host", ""))):
            return 421, "the studio answers to 127.0.0.1 alone", {}
        if method not in READING and is_foreign(headers):
            return 403, "this was asked by a page of another site", {}
        if self.password and not self.knows(headers.get("authorization", "")):
            return (
                401,
                "the password is missing or wrong",
                {"www-authenticate": 'Basic realm="Atelier", charset="UTF-8"'},
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > len(str(LARGEST)) or int(length) > LARGEST:
            return 413, TOO_MUCH, {}
        return None

    def knows(self, authorization: str) -> bool:
        kind, _, coded = authorization.partition(" ")
        try:
            given = base64.b64decode(coded, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, self.password.encode())


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = header.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() else header.strip().lower()


def is_local(host: str) -> bool:
    """Whether a name of the Host header can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == LOCALHOST


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site asks. Programs say neither; both are out of a page's reach."""
    origin = headers.get("origin")
    other = origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").strip().lower()
    return other or headers.get("sec-fetch-site") in ("cross-site", "same-site")


def limited(receive: Any) -> Any:
    """`receive` that ends a body which grows too large, whatever its headers said of it."""
    read = 0

    async def received() -> Any:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > LARGEST:
            raise HTTPException(413, TOO_MUCH)
        return message

    return received


async def refuse(send: Any, status: int, words: str, headers: Mapping[str, str]) -> None:
    fields = {"content-type": "text/plain; charset=utf-8", **headers}
    coded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": words.encode()})


def with_policy(send: Any) -> Any:
    """`send` that adds the policy to every answer."""

    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
                   (b"referrer-policy", b"no-referrer")]  # fmt: skip
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return sent
