"""What a server answers: pictures, what the model is, whether it lives; and the page."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from patchform import __version__
from patchform.serving import guard, openapi
from patchform.serving.bodies import Bodies
from patchform.serving.dispatch import Dispatcher
from patchform.serving.errors import RequestError
from patchform.serving.guard import answer
from patchform.serving.jobs import Answer, Prepared, Refusal, Wishes

FOLDER = Path(__file__).parent / "page"
PAGE = {f"/{name}.js": (f"{name}.js", "text/javascript") for name in guard.MODULES} | {
    "/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/icon.svg": ("icon.svg", "image/svg+xml")
}  # fmt: skip
PHRASES = {404: ("no_such_place", "there is nothing here"), 405: ("wrong_method", "this place is asked otherwise")}
RANGES = {"threshold": "threshold is a number from 0 to 1", "files": "files is true or false"}
Many = TypeVar("Many")
Threshold = Annotated[
    float | None,
    Query(ge=0, le=1, allow_inf_nan=False, description="score from which an object counts; default: the model's own"),
]
Files = Annotated[bool, Query(description="also what is too large for JSON, such as the classes of all pixels as PNG")]


def build(dispatcher: Dispatcher) -> FastAPI:
    """The application, without what is around it (`serving.guard`).

    Args:
        dispatcher: answers.
    """
    app = FastAPI(
        title="patchform", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        summary="Send a picture, get what the model sees in it.",
    )  # fmt: skip
    bodies = Bodies(dispatcher.limits)

    @app.post(guard.PREDICT, summary="What the model says of pictures", **openapi.PREDICT)
    async def predict(request: Request, threshold: Threshold = None, files: Files = False) -> Response:
        begin = time.monotonic()
        _known_alone(request, set(RANGES))
        wishes = Wishes(threshold, files)
        async with bodies.pictures(request) as (contents, form):
            if (refusal := dispatcher.refusal(len(contents))) is not None:
                raise RequestError.of(refusal)
            prepared = await _while_there(request, [dispatcher.prepare(content) for content in contents])
            del contents
        said = await _while_there(request, [_answered(dispatcher, one, wishes) for one in prepared])
        response = _response(said, form)
        dispatcher.counters.predicted(time.monotonic() - begin)
        return response

    @app.get("/card", summary="What the model is", response_class=JSONResponse)
    async def card() -> dict[str, Any]:
        assert dispatcher.card is not None
        told = dispatcher.card._asdict() | {"latency": dispatcher.counters.latency, "patchform": __version__}
        return told | {"limits": dispatcher.limits.told()}

    @app.head("/live", include_in_schema=False)
    @app.get("/live", summary="Whether the server runs")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Whether it answers")
    async def ready() -> dict[str, str]:
        if not dispatcher.ready:
            raise RequestError(503, "restarting", "the model is being started again")
        return {"status": "ready"}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(dispatcher.counters.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_page(app)
    _add_errors(app)
    return app


class _Fixed:
    """A route that always answers the same."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self) -> Response:
        return self._response


def _add_page(app: FastAPI) -> None:
    for path, (name, kind) in PAGE.items():
        response = Response((FOLDER / name).read_bytes(), media_type=kind)
        app.add_api_route(path, _Fixed(response), methods=["GET", "HEAD"], include_in_schema=False)


def name(request: Request) -> str:
    """By which a request is found in the log."""
    return str(request.scope["state"]["request"])


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return answer(error, name(request))

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> Response:
        fields = sorted({str(one["loc"][-1]) for one in error.errors()} & set(RANGES))
        what = " and ".join(RANGES[field] for field in fields) or "an option of the URL is wrong"
        return answer(RequestError(422, "bad_field", what), name(request))

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        code, message = PHRASES.get(error.status_code, ("bad_request", "this is no request of this server"))
        return answer(RequestError(error.status_code, code, message, close=True), name(request))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:  # raised again after this, for the log
        return answer(RequestError(500, "bug", "the server failed; its log says why"), name(request))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it


def _known_alone(request: Request, known: set[str]) -> None:
    """Raise RequestError for options in the URL that there are not, or twice."""
    given = [name for name, _ in request.query_params.multi_items()]
    if set(given) - known:
        what = f"the URL has options that there are not; there are {' and '.join(sorted(known))}"
        raise RequestError(422, "unknown_field", what)
    if len(given) > len(set(given)):
        raise RequestError(422, "bad_field", "an option of the URL is given twice")


async def _while_there(request: Request, work: Sequence[Awaitable[Many]]) -> list[Many]:
    """All that is awaited, for as long as there is somebody who waits for it.

    Raises:
        ClientDisconnect: there is not, and it was cancelled.
    """
    everything = asyncio.gather(*work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((everything, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            raise ClientDisconnect
        return list(everything.result())
    finally:
        for task in (everything, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answered(dispatcher: Dispatcher, prepared: Prepared | Refusal, wishes: Wishes) -> Answer | Refusal:
    return prepared if isinstance(prepared, Refusal) else await dispatcher.answer(prepared, wishes)


def _response(said: Sequence[Answer | Refusal], form: bool) -> Response:
    """One picture as it is, those of a form in a list: where some are refused, with an error in their place."""
    refusals = [one for one in said if isinstance(one, Refusal)]
    if len(refusals) == len(said):
        raise RequestError.of(refusals[0])
    records = [_record(one) for one in said]
    content = {"answers": records} if form else records[0]
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def _record(said: Answer | Refusal) -> dict[str, Any]:
    if isinstance(said, Refusal):
        return {"error": RequestError.of(said).record()}
    files = {name.lstrip("."): b64encode(content).decode() for name, content in said.files.items()}
    return said.record | {"size": list(said.size)} | ({"files": files} if files else {})
