"""The routes: `/predict`, `/health`, `/policy`, and a page to try them on. Every answer but the page is JSON."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

import natix_hf
from natix_hf.errors import first_line, printable, shortened
from natix_hf.serve.answers import answer_json
from natix_hf.serve.bodies import Body
from natix_hf.serve.limits import RefusedError
from natix_hf.serve.page import PAGE_HEADERS, example_base64, page
from natix_hf.serve.reading import SlowImage
from natix_hf.serve.service import Service
from natix_hf.terminal import tell

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]
_LONGEST_PATH = 100
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def make_app(service: Service) -> Asgi:
    """The application of a service, with one line in the log for each request."""
    app = FastAPI(
        title="natix_hf",
        version=natix_hf.__version__,
        description="A yes/no image classifier that may abstain. Images in, decisions out.",
        docs_url=None,  # FastAPI's page loads its scripts from another server
        redoc_url=None,
    )

    @app.post("/predict", summary="Answer pictures", openapi_extra=_body(), responses=_responses())
    async def predict(request: Request) -> Response:
        """Answer one or several pictures, in their order.

        A picture that cannot be read has `error` in its place and takes no other with it. If it is the only one, the
        status is 422, or 504 if its time was over.
        """
        body = Body(request, service.limits, service.held)
        service.requests += 1
        try:
            _require_token(service, request)
            service.require_open()
            sent = await body.pictures()
            request.scope["natix_hf.images"] = len(sent)
            answers = await service.answer(sent)
        except RefusedError as refused:
            await body.drain()
            return _refusal(refused, close=True)
        finally:
            request.scope["natix_hf.bytes"] = body.size
            body.release()
            service.requests -= 1
        told = [answer_json(picture.name, answer) for picture, answer in zip(sent, answers, strict=True)]
        if len(told) == 1 and "error" in told[0]:
            status = 504 if isinstance(answers[0], SlowImage) else 422
            return JSONResponse({"error": told[0]["error"], "answers": told}, status, _HEADERS)
        return JSONResponse({"answers": told}, 200, _HEADERS)

    @app.get("/health", summary="Is it alive and ready", responses={503: {"description": "It is stopping."}})
    async def health() -> Response:
        """Status 200 if pictures are answered, 503 if the server is stopping."""
        found = service.health()
        return JSONResponse(found, 200 if found["ready"] else 503, _HEADERS)

    @app.get("/policy", summary="How it decides", responses={401: {"description": "The token is missing or wrong."}})
    async def policy(request: Request) -> Response:
        """Threshold, calibration, names of the answers, and the promise in words."""
        try:
            _require_token(service, request)
        except RefusedError as refused:
            return _refusal(refused)
        return JSONResponse(service.policy, 200, _HEADERS)

    shown = page(service.policy, service.limits, service.token is not None)

    async def show(_: Request) -> Response:
        return HTMLResponse(shown, headers=PAGE_HEADERS | _HEADERS)

    for path in ("/", "/docs"):
        app.add_route(path, show, methods=["GET"], include_in_schema=False)

    @app.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> Response:
        lines = {404: "there is no such page: see /", 405: "this method is not taken here: see /"}
        told = {"error": lines.get(error.status_code, str(error.detail))}
        return JSONResponse(told, error.status_code, _HEADERS | dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "an error of the server: its log names it"}, 500, _HEADERS)

    return _logged(app)


def _require_token(service: Service, request: Request) -> None:
    if service.token is None:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    fits = hmac.compare_digest(given.strip().encode(), service.token.encode())
    if kind.lower() != "bearer" or not fits:
        raise RefusedError(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")


def _refusal(refused: RefusedError, close: bool = False) -> Response:
    headers = dict(_HEADERS)
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close:  # the rest of a body that was not read ends with the connection
        headers["Connection"] = "close"
    return JSONResponse({"error": refused.problem}, refused.status, headers)


def _logged(app: Asgi) -> Asgi:
    async def run(scope: Scope, receive: Any, send: Any) -> None:
        begun, status = time.perf_counter(), 0

        async def watch(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, watch)
        except Exception as error:  # the client has its answer; a traceback would be no line
            tell(f"error    {type(error).__name__}: {shortened(printable(first_line(error)), 300)}")
        if scope["type"] == "http":
            spent = (time.perf_counter() - begun) * 1000
            path = shortened(printable(scope["path"]), _LONGEST_PATH)
            pictures = scope.get("natix_hf.images")
            count = f"  pictures {pictures}, bytes {scope.get('natix_hf.bytes', 0)}" if pictures else ""
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            tell(f"{stamp}  {scope['method'][:10]} {path}  {status}  {spent:.0f} ms{count}")

    return run


def _body() -> dict[str, Any]:
    several = {"type": "array", "items": {"type": "string", "format": "binary"}}
    text = {"type": "string", "description": "The base64 of an image file, plain or as a data URL."}
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "additionalProperties": False,
                        "properties": {"images": {"type": "array", "minItems": 1, "items": text}},
                    },
                    "example": {"images": [example_base64()]},
                },
                "multipart/form-data": {
                    "schema": {"type": "object", "required": ["images"], "properties": {"images": several}}
                },
                "image/*": binary,
                "application/octet-stream": binary,
            },
        }
    }


def _responses() -> dict[int | str, dict[str, Any]]:
    answer = {
        "image": "street.jpg",
        "decision": "yes",
        "label": "yes",
        "probability": 0.93,
        "threshold": 0.41,
        "accepted": True,
    }
    bad = {"image": "image 1", "error": "image 1 cannot be read as an image (…)"}
    told = {
        200: ("An answer for each picture, in order.", {"answers": [answer, bad]}),
        400: ("The body is malformed.", {"error": "…"}),
        401: ("The token is missing or wrong.", {"error": "…"}),
        408: ("The body came too slowly.", {"error": "…"}),
        413: ("The body is too large, or has too many pictures.", {"error": "…"}),
        415: ("The content type is not taken.", {"error": "…"}),
        422: ("The only picture cannot be read.", {"error": bad["error"], "answers": [bad]}),
        503: ("The queue is full, or the server is stopping: see Retry-After.", {"error": "…"}),
        504: ("Reading the only picture took too long.", {"error": "…", "answers": [bad]}),
    }
    return {
        status: {"description": words, "content": {"application/json": {"example": example}}}
        for status, (words, example) in told.items()
    }
