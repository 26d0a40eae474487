"""`ditto-jax judge --human`: an endpoint for runs and a page for the person who answers them, on one loopback address.

In: chat-completions requests. Out: completions with what was typed. Answers this machine under its loopback names
alone, and takes answers only from its own page. Judges nothing and keeps nothing: replies are kept by the run's cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import pydantic
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ditto_jax.judge.person.questions import Answered, Asked, Questions
from ditto_jax.serving.address import bound
from ditto_jax.serving.departure import unless_gone

HOST = "127.0.0.1"
MODEL = "person"
_MAX_BODY_BYTES = 4 * 2**20
_OWN = files("ditto_jax.judge.person").joinpath("page")
_PAGE = {
    "/": (_OWN / "page.html", "text/html"),
    "/palette.css": (files("ditto_jax.report") / "templates" / "palette.css", "text/css"),
    "/person.css": (_OWN / "person.css", "text/css"),
    "/person.js": (_OWN / "person.js", "text/javascript"),
    "/form.js": (_OWN / "form.js", "text/javascript"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class _Answer(pydantic.BaseModel):
    text: str = pydantic.Field(min_length=1, max_length=100_000)
    declined: bool = False


def person_app(questions: Questions) -> Starlette:
    """Returns the application: `/v1` for runs, `/` for the person."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "person"}]})

    async def complete(request: Request) -> Response:
        asked = await _read(request, Asked)
        if isinstance(asked, Response):
            return asked
        if asked.is_probe:
            return JSONResponse(_completion(asked, Answered("{}")))
        try:
            answered = await unless_gone(request, questions.ask(asked))
        except ClientDisconnect:  # the question is taken back
            return Response(status_code=499)
        return JSONResponse(_completion(asked, answered))

    async def waiting(request: Request) -> Response:
        return JSONResponse(questions.shown(), headers=_HEADERS)

    async def answer(request: Request) -> Response:
        given = await _read(request, _Answer)
        if isinstance(given, Response):
            return given
        taken = questions.answer(request.path_params["number"], Answered(given.text, given.declined))
        return JSONResponse({"taken": taken}, 200 if taken else 410, headers=_HEADERS)

    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/waiting.json", waiting),
        Route("/answers/{number:int}", answer, methods=["POST"]),
        *(Route(path, _file(file, kind)) for path, (file, kind) in _PAGE.items()),
    ]
    # Another name for this address means that a page of another site asks through the person's browser.
    names = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=routes, middleware=[names])


def serve_person(port: int, tell: Callable[[str], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; tells the address, and the flags with which a run asks here."""
    import uvicorn

    with bound(HOST, port) as listener:
        base = f"http://{HOST}:{listener.getsockname()[1]}"
        for line in advice(base):
            tell(line)
        settings = uvicorn.Config(
            person_app(Questions()), log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        uvicorn.Server(settings).run(sockets=[listener])


def advice(base: str) -> Sequence[str]:
    """Returns the lines that say where the page is and how a run comes to it."""
    return (
        f"the page: {base}/ (Ctrl-C ends it)",
        f"a run asks here with: --judge.kind openai --judge.base_url {base}/v1 --judge.model {MODEL} "
        "--judge.timeout_s 86400 --judge.max_concurrent 256",
    )


def _file(file: Traversable, kind: str) -> Callable[[Request], Awaitable[Response]]:
    body = file.read_bytes()

    async def send(request: Request) -> Response:
        return Response(body, media_type=kind, headers=_HEADERS)

    return send


async def _read(request: Request, model: type[Any]) -> Any:
    """The body as a `model`, or the response that says why it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":  # what a form of another site can send without being asked is never JSON
        return _error(415, f"Content-Type {kind or 'is absent'}: send application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            return _error(413, f"the body is longer than {_MAX_BODY_BYTES} bytes")
    try:
        return model.model_validate_json(bytes(body))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return _error(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


def _completion(asked: Asked, answered: Answered) -> dict[str, Any]:
    said = {"content": None, "refusal": answered.text} if answered.declined else {"content": answered.text}
    # Nothing is paid by the token here; the sizes are those of the text, in words.
    counts = {
        "prompt_tokens": sum(len(message.content.split()) for message in asked.messages),
        "completion_tokens": len(answered.text.split()),
    }
    return {
        "id": "person",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", **said}, "finish_reason": "stop"}],
        "usage": {**counts, "total_tokens": sum(counts.values())},
    }
