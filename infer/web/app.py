"""The web application: page, API and images on one server."""

import asyncio
import socket
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse

from data.errors import InputError
from infer.config import StudioOptions
from infer.web import api, page
from infer.web.auth import AuthMiddleware, url_of
from infer.web.service import LoadBackend, StudioService

WARM_UP_AFTER = 4.0  # seconds after which the model is loaded even if nobody has opened the page


def serve(options: StudioOptions, password: str, listener: socket.socket, load_backend: LoadBackend) -> int:
    """Serve until Ctrl-C; returns the exit code. Raises InputError for an unknown model."""
    service = StudioService(options, load_backend)
    if options.model:
        service.backend().worker.check_default_model()
    app = page.mount(build(service, url_of(listener)), service)
    protected = AuthMiddleware(app, password, options.is_private)
    config = uvicorn.Config(protected, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)  # pyright: ignore
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
        uvicorn.Server(config).run(sockets=[listener])
    print("\nthe studio is closed")
    return 0


def build(service: StudioService, url: str = "") -> FastAPI:
    """The API and the images, without the page. url: printed once the server is running."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.queue.start()
        timer = asyncio.get_running_loop().call_later(WARM_UP_AFTER, service.warm_up) if url else None
        if url:
            print(f"the studio is open: {url}   (Ctrl-C closes it)", flush=True)
        if service.options.open:
            webbrowser.open(url)
        yield
        if timer is not None:
            timer.cancel()
        service.queue.close()

    app = FastAPI(title="Atelier", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(api.routes(service))
    app.add_exception_handler(InputError, api.input_error)
    app.add_exception_handler(RequestValidationError, api.validation_error)

    @app.get("/pictures/{name:path}")
    def image(name: str) -> FileResponse:
        return FileResponse(service.image_path(name), headers={"cache-control": "private, max-age=3600"})

    return app
