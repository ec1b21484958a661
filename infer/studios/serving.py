"""From options to a listening server: the port first, so that a mistake is said at once, then the page."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import InputError
from infer.studios.options import LOOPBACK, StudioOptions, password_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from infer.studios.workshop import Workshop

PATIENCE = 4.0  # seconds after which the model is loaded even if nobody has opened the page


def run(options: StudioOptions) -> int:
    """Serve until Ctrl-C. Raises InputError: the port is taken, the password missing, the model unknown."""
    password = password_of(options)
    listening = listen(options.host, options.port)
    try:
        check_model(options)
        print("starting ...", flush=True)
        serve(options, password, listening)
    finally:
        listening.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises InputError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
    except OSError as error:
        raise InputError(f"{host!r} is no address ({error.strerror})", where="--host", allowed=LOOPBACK) from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        raise refused(error, host, port) from None
    return found


def refused(error: OSError, host: str, port: int) -> InputError:
    if error.errno == errno.EADDRINUSE:
        fix = f"Is a studio running already? Else take another: --port {port + 1}"
        return InputError(f"port {port} is taken", where="--port", fix=fix)
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(f"{host} is no address of this machine", where="--host", allowed=f"{LOOPBACK}, 0.0.0.0")
    return InputError(f"port {port} cannot be used ({error.strerror})", where="--port", allowed="1024 to 65535")


def check_model(options: StudioOptions) -> None:
    """Raises InputError for a model that is not there; the default is always there and needs no look."""
    if options.model:
        from infer import source
        from infer.config import GenerateOptions
        from train import base_model

        chosen = source.choose(GenerateOptions(model=options.model, tokenizer=options.tokenizer))
        base_model.load(chosen.model, tokenizer=chosen.tokenizer)


def serve(options: StudioOptions, password: str, listening: socket.socket) -> None:
    """Build everything and answer until Ctrl-C."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(scratch())}
    import uvicorn

    from infer.studios.workshop import Workshop

    workshop = Workshop(options)
    app = built(workshop, address(options, listening))
    from infer.studios.guard import Guard

    guarded = Guard(app, password, options.is_private)
    config = uvicorn.Config(guarded, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)  # pyright: ignore
    with suppress(KeyboardInterrupt):  # that is how a studio is closed; uvicorn passes it on once it has ended well
        uvicorn.Server(config).run(sockets=[listening])
    print("\nthe studio is closed")


def scratch() -> Path:
    """Where the page's library keeps what it is sent; ours, and not one that all users of the machine share."""
    from data.files import cache_root

    return cache_root() / "studio"


def address(options: StudioOptions, listening: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listening.getsockname()[:2]
    shown = LOOPBACK if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def built(workshop: Workshop, url: str = "") -> FastAPI:
    """The API, the pictures and the page in one application."""
    from infer.studios import page

    return page.mounted(without_page(workshop, url), workshop)


def without_page(workshop: Workshop, url: str = "") -> FastAPI:
    """The API and the pictures. url: what is said once it is open."""
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse

    from infer.studios import api

    app = FastAPI(title="Atelier", docs_url=None, redoc_url=None, lifespan=life(workshop, url))
    app.include_router(api.routes(workshop))
    app.add_exception_handler(InputError, api.refused)
    app.add_exception_handler(RequestValidationError, api.misread)

    @app.get("/pictures/{name:path}")
    def picture(name: str) -> FileResponse:
        return FileResponse(workshop.picture(name), headers={"cache-control": "private, max-age=3600"})

    return app


def life(workshop: Workshop, url: str) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What happens between the start and the end of the server."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        workshop.desk.open()
        later = asyncio.get_running_loop().call_later(PATIENCE, workshop.begin) if url else None
        if url:
            print(f"the studio is open: {url}   (Ctrl-C closes it)", flush=True)
        if workshop.options.open:
            webbrowser.open(url)
        yield
        if later is not None:
            later.cancel()
        workshop.desk.close()

    return running
