"""The routes: a request is read, becomes pairs, is scored in the queue, and is answered in its own format."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from taosr1.server.errors import Refused
from taosr1.server.formats import ours, rerank, tei
from taosr1.server.formats.format import Answer, Format
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.queue import ScoringQueue
from taosr1.server.served import Served

FORMATS = (ours.SCORE, rerank.RERANK, tei.TEI)
PAGE = Path(__file__).parent / "page"


class Server:
    """What the routes share."""

    def __init__(self, served: Served, limits: Limits, compare: Served | None = None) -> None:
        self.served, self.compare, self.limits, self.metrics = served, compare, limits, Metrics()
        self.queue = ScoringQueue(limits, self.metrics)

    async def answer(self, form: Format, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            ask = form.read(body, self.served, self.limits)
            served = self.served  # the weights may be swapped while this request waits
            prompts = ask.prompts or await asyncio.to_thread(served.judge.model.prompts, list(ask.pairs))
            scores = await self.queue.score(served.judge, prompts)
            found = Answer(scores, (), served, sum(map(len, prompts)), uuid.uuid4().hex)
            return JSONResponse(form.reply(ask, found))
        except Refused as refused:
            return JSONResponse(form.error(refused), refused.status)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def info(self, request: Request) -> Response:
        return JSONResponse(self.served.facts())

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


def build_app(server: Server) -> Starlette:
    def route(form: Format, path: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await server.answer(form, request)

        return Route(path, endpoint, methods=["POST"])

    routes = [route(form, path) for form in FORMATS for path in form.paths]
    routes += [Route("/health", server.health), Route("/info", server.info), Route("/metrics", server.metrics_text)]
    routes += [Mount("/", StaticFiles(directory=PAGE, html=True))]
    return Starlette(routes=routes)
