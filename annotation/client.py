"""A Label Studio server through label-studio-sdk: connecting, retries, one-line errors, tasks, backups.

Both kinds of token work: the legacy one of 40 characters, and a personal access token, which the SDK refreshes itself.
A token never appears in a message: errors are worded from the server's answer, and nothing is chained to them.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from annotation.config import SERVER_FOLDER
from annotation.server import DATABASE, Server, find_server
from data.atomic_io import atomic_folder
from data.errors import InputError, printable
from data.progress import ProgressBar

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"
TESTED_VERSIONS = "1.23."  # of Label Studio
TIMEOUT = 120.0  # seconds for one answer; an import of 250 tasks takes under a second
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each retry
CONNECTION_TRIES = 2  # a server that refuses connections is unlikely to appear
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))  # HTTP statuses worth a retry
START = "Start the server: python annotation/annotate.py start"
TRY_AGAIN = "Run the same command again; finished work is kept."
PAGE_SIZE = 1000
LINT = "lint"  # key of the task data that holds lint findings, for filtering in the Data Manager
DRAFT_SOURCE = "draft_by"  # key of a prediction's meta that holds the source of the draft
BACKUPS = "backups"
BACKUPS_KEPT = 10
T = TypeVar("T")
Request = Callable[[Any], T]  # gets the LabelStudio object of label-studio-sdk


class UnsureError(Exception):
    """A request was sent and no answer came: it may have been carried out, or not. Look before sending it again."""


class Client:
    """A connection to a Label Studio server."""

    def __init__(self, url: str, token: str, *, server: Server | None = None) -> None:
        """server: the local server behind the address, if it is one; its images are linked instead of uploaded."""
        import httpx
        from label_studio_sdk import LabelStudio

        self.url, self.server = url.rstrip("/"), server
        self.legacy_token = token.count(".") != 2
        local = urlsplit(self.url).hostname in {"127.0.0.1", "localhost", "::1"}
        self.http = httpx.Client(timeout=TIMEOUT, trust_env=not local, follow_redirects=True)  # no proxy if local
        try:
            how: dict[str, Any] = {"httpx_client": self.http, "timeout": TIMEOUT, "max_retries": 0}
            self.sdk = LabelStudio(base_url=self.url, api_key=token, **how)
        except Exception as error:  # an expired personal access token
            raise self.explain(error) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def retry(self, request: Request[T]) -> T:
        """Send a request that may safely be sent twice, with retries. Raises InputError."""
        import httpx

        for attempt, pause in enumerate((*PAUSES, None), 1):
            try:
                return request(self.sdk)
            except Exception as error:
                refused = isinstance(error, httpx.ConnectError) and attempt == CONNECTION_TRIES
                if pause is None or refused or not is_transient(error):
                    raise self.explain(error) from None
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def tasks(self, number: int, include: str, fields: str = "all", **which: Any) -> list[Any]:
        """The tasks of Label Studio project `number`, with the fields named in `include`."""
        which |= {"page_size": PAGE_SIZE, "fields": fields, "include": include}
        return self.retry(lambda sdk: list(sdk.tasks.list(project=number, **which)))

    def find(self, request: Request[T]) -> T | None:
        """As `retry`, but None for HTTP 404."""
        from label_studio_sdk.core.api_error import ApiError

        def found(sdk: Any) -> T | None:
            try:
                return request(sdk)
            except ApiError as error:
                if error.status_code == 404:
                    return None
                raise

        return self.retry(found)

    def once(self, request: Request[T]) -> T:
        """Send a request a single time. Raises InputError if it was refused, UnsureError if the answer got lost."""
        try:
            return request(self.sdk)
        except Exception as error:
            if is_transient(error):
                raise UnsureError(network_failure(error)) from None
            raise self.explain(error) from None

    def post(self, path: str, **request: Any) -> None:
        """Send a request that the SDK has no call for, with its token. Raises InputError."""
        headers = self.sdk._client_wrapper.get_headers()
        try:
            answer = self.http.post(self.url + path, headers=headers, **request)
        except Exception as error:
            raise self.explain(error) from None
        if answer.is_error:
            raise self.explain_status(answer.status_code, answer.text)

    def explain(self, error: Exception) -> InputError:
        """A failure as one line with what to do; our own bugs are raised as they are."""
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return invalid_url(self.url)
        if isinstance(error, httpx.TimeoutException):
            return InputError("does not answer in time", where=self.url, fix=TRY_AGAIN)
        if isinstance(error, httpx.TransportError):
            fix = START if self.server else "Check the address and the network."
            return InputError(f"cannot connect ({network_failure(error)})", where=self.url, fix=fix)
        if isinstance(error, ApiError):
            return self.explain_status(error.status_code or 0, error.body)
        raise error

    def explain_status(self, status: int, body: object) -> InputError:
        message = error_message(body)
        if status == 401:
            return InputError(f"the access token is rejected ({message})", where=self.url, fix=self.token_fix(message))
        if status == 403:
            fix = "Ask its administrator for permission, or use another account's token."
            return InputError(f"this account may not do that ({message})", where=self.url, fix=fix)
        if isinstance(body, str) and body.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
            fix = "Give the address that the browser shows, up to the first path."
            return InputError(f"answers with a web page (HTTP {status}), unlike Label Studio", where=self.url, fix=fix)
        fix = TRY_AGAIN if status in TRANSIENT else None
        return InputError(f"Label Studio refused (HTTP {status}): {message}", where=self.url, fix=fix)

    def token_fix(self, message: str) -> str:
        if self.server:
            return f"Copy the token from Account & Settings in Label Studio into {self.server.folder}/login.json."
        if "legacy" in message.lower():
            return "Create a personal access token under Account & Settings and use that one."
        return f"Copy it again from Account & Settings, into --token-file FILE or {TOKEN_VARIABLE}."


# ---- connecting


def connect(url: str | None = None, token_file: Path | None = None, *, folder: Path = SERVER_FOLDER) -> Client:
    """A client whose token was accepted. url: an existing Label Studio; None: the local server. Raises InputError."""
    if url:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise invalid_url(url)
        client = Client(url, read_token(token_file))
    else:
        server = find_server(folder)
        if server is None:
            raise InputError("the server is not running", where=folder, fix=START)
        client = Client(server.url, server.login.token, server=server)
    try:
        client.retry(lambda sdk: sdk.users.whoami())
    except BaseException:
        client.http.close()
        raise
    return client


def read_token(file: Path | None) -> str:
    """The token in a file, else in the environment."""
    source = f"--token-file {file}" if file else TOKEN_VARIABLE
    try:
        token = (file.read_text(encoding="utf-8") if file else os.environ.get(TOKEN_VARIABLE, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"cannot be read ({reason})", where=source) from None
    if not token and not file:
        fix = f"Copy it from Account & Settings into a file and give --token-file FILE, or set {TOKEN_VARIABLE}."
        raise InputError("an access token is needed", where="--url", fix=fix)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("is not an access token: one word of letters and digits", where=source)
    return token


def invalid_url(url: str) -> InputError:
    """An address that leads to no Label Studio; a password in it is not repeated."""
    allowed = "http://HOST:PORT or https://HOST, without user and password"
    return InputError(f"invalid address {printable(url.rpartition('@')[2])!r}", where="--url", allowed=allowed)


# ---- errors


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    if isinstance(error, ApiError):
        body = error.body if isinstance(error.body, dict) else {}
        bug = "does not match format" in str(body.get("detail"))  # a 500 that names what it cannot parse will recur
        return error.status_code in TRANSIENT and not bug
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def error_message(body: object) -> str:
    """The server's error message, on one line of at most 300 characters."""
    if isinstance(body, dict):
        body = body.get("validation_errors") or body.get("detail") or body.get("non_field_errors") or body
    text = printable(" ".join(str(body).split()))
    return text if len(text) <= 300 else f"{text[:300]}..."


def network_failure(error: Exception) -> str:
    """The kind of a network failure, without addresses that httpx may add."""
    cause: Any = error
    while cause.__context__ is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error) or type(error).__name__


# ---- tasks


@dataclass(frozen=True)
class Task:
    """A task that push created, without its answers."""

    id: int
    sha256: str
    data: dict[str, Any]
    overlap: int  # annotators it is given to
    drafts: int
    touched: bool  # answered or skipped by anybody


def list_tasks(client: Client, number: int) -> Iterator[Task]:
    """Every task of Label Studio project `number` that push created; tasks added by hand have no SHA-256."""
    fields = "id,data,overlap,total_annotations,cancelled_annotations,total_predictions"
    for task in client.tasks(number, fields, "task_only"):
        data = task.data if isinstance(task.data, dict) else {}
        if isinstance(data.get("sha256"), str):
            answers = (task.total_annotations or 0) + (task.cancelled_annotations or 0)
            yield Task(task.id, data["sha256"], data, task.overlap or 1, task.total_predictions or 0, bool(answers))


def tasks_by_sha256(client: Client, number: int) -> tuple[dict[str, Task], int]:
    """The tasks of a project by SHA-256, in the server's order, and how many duplicates were deleted.

    An image has two tasks if a push was killed and the next one looked too early: the touched one stays, else the
    older.
    """
    tasks: dict[str, Task] = {}
    duplicates: list[Task] = []
    for task in sorted(list_tasks(client, number), key=lambda task: (not task.touched, task.id)):
        if task.sha256 not in tasks:
            tasks[task.sha256] = task
        elif not task.touched:
            duplicates.append(task)
    for task in duplicates:
        client.find(lambda sdk, task=task: sdk.tasks.delete(id=str(task.id)))
    return {task.sha256: task for task in sorted(tasks.values(), key=lambda task: task.id)}, len(duplicates)


# ---- backups


def back_up(folder: Path, running: Server | None) -> Path:
    """Copy the database of `folder` and, from a running server, its projects. Returns the new folder in backups/."""
    backups = folder / BACKUPS
    backups.mkdir(mode=0o700, exist_ok=True)
    path = backups / time.strftime("%Y-%m-%d-%H%M%S")
    with atomic_folder(path) as temporary:
        source = sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True)
        with closing(source) as old, closing(sqlite3.connect(temporary / DATABASE)) as new:
            old.backup(new)  # consistent even while the server writes
        (temporary / DATABASE).chmod(0o600)
        if running is not None:
            with Client(running.url, running.login.token, server=running) as client:
                export_projects(client, temporary)
    for old in sorted(each for each in backups.iterdir() if not each.name.startswith("."))[:-BACKUPS_KEPT]:
        shutil.rmtree(old)
    return path


def export_projects(client: Client, folder: Path) -> None:
    """Every project with its tasks and answers, as NUMBER-TITLE.json, which any Label Studio can import."""
    projects = client.retry(lambda sdk: list(sdk.projects.list(page_size=PAGE_SIZE, include="id,title")))
    for project in ProgressBar(projects, "backing up projects", unit="project"):
        content = client.retry(
            lambda sdk, number=project.id: b"".join(
                sdk.projects.exports.download_sync(id=number, export_type="JSON", download_all_tasks=True)
            )
        )
        (folder / f"{project.id}-{safe_file_name(str(project.title))}.json").write_bytes(content)


def safe_file_name(title: str) -> str:
    """A title as part of a file name, without path separators."""
    return re.sub(r"[^\w -]+", "_", title)[:60].strip() or "untitled"
