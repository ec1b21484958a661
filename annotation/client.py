"""A Label Studio, ours or anybody's, through label-studio-sdk: connected, retried, and its errors said in one line.

Both kinds of token work: the older one of 40 letters, and a personal access token, which the SDK refreshes itself.
A token never gets into a message: errors are told anew from what the server answered, and nothing is chained to them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from annotation import server as servers
from data.errors import InputError, show

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio

VARIABLE = "LABEL_STUDIO_API_KEY"
VERSIONS = "1.23."  # of Label Studio, that were tried
TIMEOUT = 120.0  # seconds for one answer; an import of 250 tasks takes under a second
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
TRIES_TO_CONNECT = 2  # where nobody listens, nobody is likely to come
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # HTTP statuses that may be gone at the next try
START = "Start the server: python annotation/annotate.py start"
T = TypeVar("T")


class UnsureError(Exception):
    """A request was sent and no answer came: it may have been carried out, or not. Look before asking again."""


class Client:
    """A connection to one Label Studio."""

    def __init__(self, url: str, token: str, *, own: servers.Server | None = None) -> None:
        """own: the local server that this is, whose pictures can be linked instead of sent."""
        import httpx
        from label_studio_sdk import LabelStudio

        self.url, self.own, self.legacy = url.rstrip("/"), own, token.count(".") != 2  # a newer one has three parts
        # a proxy has nothing to do with a server on this machine
        self.http = httpx.Client(timeout=TIMEOUT, trust_env=not is_local(self.url), follow_redirects=True)
        try:
            self.sdk: LabelStudio = LabelStudio(
                base_url=self.url, api_key=token, httpx_client=self.http, timeout=TIMEOUT, max_retries=0
            )
        except Exception as error:  # a personal access token that ran out
            raise self.explain(error) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def read(self, ask: Callable[[LabelStudio], T]) -> T:
        """Ask for something that changes nothing, again and again if need be. Raises InputError."""
        for tried, pause in enumerate(PAUSES, 1):
            try:
                return ask(self.sdk)
            except Exception as error:
                if not passing(error) or (tried == TRIES_TO_CONNECT and is_absent(error)):
                    raise self.explain(error) from None
            time.sleep(pause)
        return self.once(ask)

    def once(self, ask: Callable[[LabelStudio], T]) -> T:
        """Ask a single time. Raises InputError."""
        try:
            return ask(self.sdk)
        except Exception as error:
            raise self.explain(error) from None

    def change(self, ask: Callable[[LabelStudio], T]) -> T:
        """Ask for a change, once. Raises InputError if it was refused, UnsureError if nobody knows."""
        try:
            return ask(self.sdk)
        except Exception as error:
            if passing(error):
                raise UnsureError(brief(error)) from None
            raise self.explain(error) from None

    def insist(self, ask: Callable[[LabelStudio], T]) -> T:
        """Ask for a change that does no harm when it is made twice. Raises InputError."""
        return self.read(ask)

    def post(self, path: str, **request: Any) -> None:
        """A request for which the SDK has no call, sent with its token; raises as `once` does."""
        headers = self.sdk._client_wrapper.get_headers()
        try:
            answer = self.http.post(self.url + path, headers=headers, **request)
        except Exception as error:
            raise self.explain(error) from None
        if answer.is_error:
            raise self.explain_status(answer.status_code, answer.text)

    def version(self) -> str:
        """The Label Studio that answers, e.g. "1.23.2"."""
        said = self.read(lambda sdk: sdk.versions.get()).model_dump()
        return str(said.get("release") or "of an unknown version")

    def explain(self, error: Exception) -> InputError:
        """What went wrong, as one line with what to do; errors that are no one's but ours pass through."""
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return bad_url(self.url)
        if isinstance(error, httpx.TimeoutException):
            return InputError("does not answer in time", where=self.url, fix="Try again; what was done is kept.")
        if isinstance(error, httpx.TransportError):
            fix = START if self.own else "Check the address and the network."
            return InputError(f"nobody answers ({brief(error)})", where=self.url, fix=fix)
        if isinstance(error, ApiError):
            return self.explain_status(error.status_code or 0, error.body)
        raise error

    def explain_status(self, status: int, body: object) -> InputError:
        """An HTTP status and what came with it."""
        said = detail(body)
        if status == 401:
            return InputError(f"the access token is refused ({said})", where=self.url, fix=self.token_fix(said))
        if status == 403:
            fix = "Ask its administrator for the right, or use another account's token."
            return InputError(f"this account may not do that ({said})", where=self.url, fix=fix)
        if is_page(body):
            return InputError(f"answers with a web page (HTTP {status}), not as Label Studio does", where=self.url,
                              fix="Give the address that the browser shows, up to the first path.")  # fmt: skip
        fix = "Try again; what was done is kept." if status in PASSING else None
        return InputError(f"Label Studio refused (HTTP {status}): {said}", where=self.url, fix=fix)

    def token_fix(self, said: str) -> str:
        if self.own:
            return f"Put the token that Label Studio shows under Account & Settings into {self.own.folder}/login.json."
        if "legacy" in said.lower():
            return "Make a personal access token under Account & Settings, and give that one."
        return f"Copy it anew from Account & Settings, and give it with --token-file FILE or in {VARIABLE}."


# ---- connecting


def connect(url: str | None = None, token_file: Path | None = None, *, folder: Path = servers.FOLDER) -> Client:
    """A client that was let in. Raises InputError if not.

    url: somebody's Label Studio, with the token in a file or in $LABEL_STUDIO_API_KEY; None for the local server.
    """
    client = foreign(url, token_file) if url else local(folder)
    try:
        client.read(lambda sdk: sdk.users.whoami())
    except BaseException:
        client.http.close()
        raise
    return client


def local(folder: Path) -> Client:
    """A client of the local server, which must be running."""
    own = servers.find(folder)
    if own is None:
        raise InputError("the server is not running", where=folder, fix=START)
    return Client(own.url, own.token, own=own)


def foreign(url: str, token_file: Path | None) -> Client:
    """A client of somebody's server."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise bad_url(url)
    return Client(url, read_token(token_file))


def read_token(file: Path | None) -> str:
    """The token in a file, else in the environment."""
    if file is None:
        token = os.environ.get(VARIABLE, "").strip()
        if not token:
            fix = f"Copy it from Account & Settings into a file and give --token-file FILE, or set {VARIABLE}."
            raise InputError("an access token is needed", where="--url", fix=fix)
    else:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise InputError(f"cannot be read ({reason})", where=f"--token-file {file}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        source = f"--token-file {file}" if file else VARIABLE
        raise InputError("is not an access token: one word of letters and digits", where=source)
    return token


def bad_url(url: str) -> InputError:
    """An address that leads to no Label Studio; a password in it is not repeated."""
    shown = url.rpartition("@")[2] if "@" in url else url
    allowed = "http://HOST:PORT or https://HOST, without user and password"
    return InputError(f"{show(shown)!r} is not such an address", where="--url", allowed=allowed)


def is_local(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


# ---- errors


def passing(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    if isinstance(error, ApiError):
        return error.status_code in PASSING and not is_bug(error.body)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def is_absent(error: Exception) -> bool:
    """Nobody listens at that address."""
    import httpx

    return isinstance(error, httpx.ConnectError)


def is_bug(body: object) -> bool:
    """A 500 that says what it could not read will say so for ever."""
    return isinstance(body, dict) and "does not match format" in str(body.get("detail"))


def is_page(body: object) -> bool:
    return isinstance(body, str) and body.lstrip()[:9].lower().startswith(("<!doctype", "<html"))


def detail(body: object) -> str:
    """What the server said, on one line, not too long."""
    if isinstance(body, dict):
        said = body.get("validation_errors") or body.get("detail") or body.get("non_field_errors") or body
    else:
        said = body
    text = show(" ".join(str(said).split()))
    return text if len(text) <= 300 else f"{text[:300]}..."


def brief(error: Exception) -> str:
    """The kind of a network failure, without addresses that httpx may add."""
    cause: Any = error
    while cause.__context__ is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error) or type(error).__name__
