"""Who may talk to the studio: programs of this machine, or whoever knows the password; and how much at once."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 64 << 20  # bytes of a request: a drawing, or a picture whose text is read
# pages load nothing from anywhere else, whatever a library would like to
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
NAMES = {"127.0.0.1", "localhost", "[::1]"}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware. private: only names of this machine are answered, so that no foreign page can pose as one of it.

    password: what HTTP Basic must bring, with any user name; empty for none.
    """

    app: Any
    password: str = ""
    private: bool = True

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(headers)
        if refusal is not None:
            await refuse(send, *refusal)
            return
        await self.app(scope, receive, with_policy(send))

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str, Mapping[str, str]] | None:
        """Status, words and headers of a refusal; None for who may come in."""
        if self.private and host_of(headers.get("host", "")) not in NAMES:
            return 421, "the studio answers to 127.0.0.1 alone", {}
        if self.password and not self.knows(headers.get("authorization", "")):
            return (
                401,
                "the password is missing or wrong",
                {"www-authenticate": 'Basic realm="Atelier", charset="UTF-8"'},
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST:
            return 413, f"more than {LARGEST >> 20} MB", {}
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
