"""One request, from its socket to its reply. Read from here:

1. `connections.py`: a connection is counted, its headers are read with a time-out, and h11 makes a request of them.
2. `front.py`: the request gets an id; whatever happens further on, it ends with a reply and a line in the log.
3. `Server.respond`, below: the path leads to a format or to one of the GET routes; Host and key are checked.
4. `Server.answer`: the body is read (`bodies.py`) and parsed; the format's `read` makes an `Ask` of it, whose prompts
   are encoded in a thread; `queue.py` scores them together with other clients' prompts; the format's `reply` words it.
   While it waits, a client that leaves, or a limit that is passed, cancels its work.
5. `_Reply` in `front.py` adds the headers that all replies have, and sends it.

`lifecycle.py` starts and stops all this; `weights.py` loads the judge and exchanges it.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import Response

from taosr1 import __version__
from taosr1.server import events
from taosr1.server.bodies import Bodies, check_content_type, parse_json
from taosr1.server.errors import OutOfTime, Refused
from taosr1.server.formats import chat, label_scores, ours, rerank, tei
from taosr1.server.formats.format import Answer, Ask, Format
from taosr1.server.front import Exchange
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.queue import ScoringQueue
from taosr1.server.security import Access
from taosr1.server.served import Served
from taosr1.server.waiting import within
from taosr1.serving.explain import Explanation

EXPLAIN = Format("explain", ("/explain",), ours.read_explain, ours.reply, ours.error)
FORMATS = (
    ours.SCORE, EXPLAIN, tei.TEI, rerank.RERANK, label_scores.GENERATIVE_SCORING, label_scores.LABEL_SCORE, chat.CHAT
)  # fmt: skip
T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
LARGE_BODY = 64 << 10  # bytes; longer ones are read and tokenised in a thread of their own, or small ones would wait
LARGE_REPLY = 64  # results; work on more is done in a thread: the words of 1,000 products take 40 ms
SMALL_BODY = 1024  # bytes: read and tokenised in a fraction of a millisecond
JSON = "application/json"


class Server:
    """What all requests share.

    served: the judge that answers now, None until one passed its self-test; `weights.py` exchanges it.
    compare: the judge of --compare. draining: no request is accepted any more. active: requests that are not answered.
    """

    def __init__(self, limits: Limits, access: Access, *, max_new_tokens: int = 128, log_text: bool = False) -> None:
        self.limits, self.access, self.max_new_tokens, self.log_text = limits, access, max_new_tokens, log_text
        self.metrics = Metrics()
        self.queue = ScoringQueue(limits, self.metrics)
        self.served: Served | None = None
        self.compare: Served | None = None
        self.warnings: list[str] = []
        self.draining, self.active, self.working = False, 0, 0
        self.hurry = asyncio.Event()  # set where draining takes too long: what still waits gets 503
        self.bodies = Bodies(limits.max_body_bytes)
        self.encoders, self.large_encoder = ThreadPoolExecutor(2, "encode"), ThreadPoolExecutor(1, "encode large")
        self.forms = {path: form for form in FORMATS for path in form.paths}
        self.pages = _page_files()
        self.gets = {
            "/health": self.health, "/info": self.info, "/metrics": self.metrics_text, "/v1/models": self.models
        }  # fmt: skip

    # ---- Which way a request goes ------------------------------------------------------------------------------------
    async def respond(self, exchange: Exchange) -> Response:
        """Raises: Refused with the status of whatever is wrong, ClientLeft."""
        path, headers = exchange.path, exchange.headers
        self.access.check_host(headers)
        allowed = self.methods(path)
        if exchange.method == "OPTIONS" and self.access.cors and "access-control-request-method" in headers:
            return Response(status_code=204)  # a browser asks whether its page may ask; the headers say it
        if path not in self.pages and path != "/health":
            self.access.check_key(headers)
        if not allowed:
            posts, gets = ", ".join(self.forms), ", ".join(("/", *self.gets))
            raise Refused(404, f"no such path; POST to {posts}, or GET {gets}")
        if exchange.method not in allowed.split(", "):
            raise Refused(405, f"this path takes {allowed}, not {exchange.method[:20]}")
        if path in self.gets:
            return await self.gets[path]()
        if path in self.pages:
            return Response(*self.pages[path])
        form = self.forms[path]
        return await (self.explain(exchange) if form is EXPLAIN else self.answer(form, exchange))

    def methods(self, path: str) -> str:
        """The methods of a path, as the header Allow names them; "" for a path that does not exist."""
        if path in self.gets or path in self.pages:
            return "GET, HEAD"
        return "POST" if path in self.forms else ""

    def known_path(self, path: str) -> str:
        """The path as the metrics name it: unknown ones are one, else anybody could make any number of series."""
        return "/" if path in self.pages else path if self.methods(path) else "other"

    def error_body(self, path: str, refused: Refused) -> Any:
        return self.forms.get(path, ours.SCORE).error(refused)

    # ---- Scoring -----------------------------------------------------------------------------------------------------
    async def answer(self, form: Format, exchange: Exchange) -> Response:
        body = await self._body(exchange)
        with self._place(len(body)):
            ask, found = await self._in_time(self._score(form, exchange, body), exchange)
            begun = time.monotonic()
            reply = await self._for(len(found.scores) > LARGE_REPLY, lambda: _json(form.reply(ask, found)))
        self.metrics.part("write", time.monotonic() - begun)
        return Response(reply, media_type=JSON)

    async def explain(self, exchange: Exchange) -> Response:
        """POST /explain: one product, whose explanation is streamed as it is decoded (`events.py`)."""
        body = await self._body(exchange)
        with self._place(len(body)):
            told = await self._in_time(self._begin(exchange, body), exchange)
        return told.response(self.limits.request_timeout_s, self.hurry)

    async def _body(self, exchange: Exchange) -> bytes:
        """Raises: Refused where no request is taken now, or this one's body is not; ClientLeft."""
        if self.draining:
            raise Refused(503, "the server is stopping, ask another one", retry_after_s=5)
        if self.served is None:
            raise Refused(503, "the judge is being loaded", retry_after_s=5)
        check_content_type(exchange.headers)
        begun, timeout = time.monotonic(), self.limits.body_timeout_s
        try:
            body = await within(self.bodies.read(exchange.headers, exchange.receive), timeout, self.hurry)
        except OutOfTime:
            if self.hurry.is_set():
                raise Refused(503, "the server is stopping, ask another one", retry_after_s=5) from None
            raise Refused(408, f"the body took longer than {timeout:g} s (--body-timeout-s)") from None
        self.metrics.part("read", time.monotonic() - begun)
        return body

    @contextmanager
    def _place(self, size: int) -> Iterator[None]:
        """A place among those that are worked on, for a request whose body is so long.

        Raises: Refused with 429, before any work is done for the request.
        """
        if self.working >= self.limits.max_queue_requests:
            wait_s = self.queue.retry_after_s()
            raise Refused(429, "too many requests are waiting (--max-queue-requests)", retry_after_s=wait_s)
        self.working += 1
        try:
            with self.bodies.holding(size):
                yield
        finally:
            self.working -= 1

    async def _in_time(self, work: Coroutine[Any, Any, T], exchange: Exchange) -> T:
        """Raises: Refused with 503 where it takes too long, ClientLeft."""
        try:
            return await within(work, self.limits.request_timeout_s, self.hurry, exchange.receive)
        except OutOfTime:
            limit = f"no answer within {self.limits.request_timeout_s:g} s (--request-timeout-s)"
            raise Refused(503, "the server is stopping" if self.hurry.is_set() else limit, retry_after_s=5) from None

    async def _score(self, form: Format, exchange: Exchange, body: bytes) -> tuple[Ask, Answer]:
        ask, served, prompts = await self._prepared(form, exchange, body)
        judge, pairs = served.judge, list(ask.pairs)
        found = await self.queue.score(judge, prompts, pairs[0].query if pairs else None)
        large = len(found) > LARGE_REPLY or len(body) > LARGE_BODY
        scores = found if ask.prompts else await self._for(large, lambda: judge.with_outside(pairs, found))
        self.metrics.scores(scores)
        explanations: list[Explanation] = []
        if ask.explain:
            begun = time.monotonic()
            explanations = await events.explain_all(self.queue, judge, pairs, self.max_new_tokens)
            self.metrics.part("explain", time.monotonic() - begun)
        return ask, Answer(scores, explanations, served, exchange.tokens, exchange.id)

    async def _begin(self, exchange: Exchange, body: bytes) -> events.Told:
        """An explanation whose first event is there, so that a full queue is still a 429."""
        ask, served, _ = await self._prepared(EXPLAIN, exchange, body)
        told = await events.begin(self.queue, ask, served, exchange.id, self.max_new_tokens)
        self.metrics.scores([told.score])
        return told

    async def _prepared(self, form: Format, exchange: Exchange, body: bytes) -> tuple[Ask, Served, list[list[int]]]:
        """What the request asks for, of which judge, and its prompts. Raises: Refused."""
        with self.queue.on_its_way():
            size, read = len(body), lambda: self._read(form, body, self.served)
            ask, served, prompts = await self._for(size > SMALL_BODY, read, large=size > LARGE_BODY)
        exchange.products, exchange.tokens = len(prompts), sum(map(len, prompts))
        if self.log_text:
            exchange.texts = [*dict.fromkeys(pair.query for pair in ask.pairs), *(pair.title for pair in ask.pairs)]
        return ask, served, prompts

    def _read(self, form: Format, body: bytes, served: Served) -> tuple[Ask, Served, list[list[int]]]:
        """Everything that takes processor time before the model runs; in a thread."""
        begun = time.monotonic()
        ask = form.read(parse_json(body), served, self.limits)
        if ask.judge:
            if self.compare is None:
                ways = "leave the field out, or start the server with --compare MODEL"
                raise Refused(422, f"field 'judge' asks for a second judge, which this server does not have: {ways}")
            served = self.compare
        if ask.rubric not in ("", served.rubric_sha):
            ways = "leave the field out to take any"
            raise Refused(409, f"'rubric' is {ask.rubric[:60]!r}, but this judge has {served.rubric_sha!r}: {ways}")
        if ask.explain and served.judge.order == "label":
            ways = "ask POST /score without 'explain', or serve a judge with reasons (train/sft.py --order post-cot)"
            raise Refused(422, f"this judge answers with the grade alone and gives no reasons: {ways}")
        prompts = [*ask.prompts] or served.judge.model.prompts([*ask.pairs])
        self.metrics.part("tokenise", time.monotonic() - begun)
        return ask, served, prompts

    async def _for(self, long: bool, work: Callable[[], T], *, large: bool = False) -> T:
        """What `work` returns, from a thread if it takes long: short work is done before a thread would begin."""
        return await self._encode(work, large=large) if long else work()

    def _encode(self, work: Callable[[], T], *, large: bool = False) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self.large_encoder if large else self.encoders, work)

    # ---- What the server says about itself ---------------------------------------------------------------------------
    async def health(self) -> Response:
        """200 where requests are answered: after the self-test, until the server is asked to stop."""
        state = "loading" if self.served is None else "ready"
        state = state if self.queue.alive else "broken: the model's thread has ended, start the server again"
        state = "stopping" if self.draining else state
        facts = {} if self.served is None else {"model": self.served.name, "model_sha": self.served.model_sha}
        body = {"status": state, **facts, "warnings": self.warnings}
        headers = {} if state == "ready" else {"Retry-After": "5"}
        return Response(_json(body), 200 if state == "ready" else 503, headers, JSON)

    async def info(self) -> Response:
        if self.served is None:
            raise Refused(503, "the judge is being loaded", retry_after_s=5)
        judge = self.served.judge
        limits = {name: getattr(self.limits, name) for name in Limits.__dataclass_fields__}
        formats = {form.name: list(form.paths) for form in FORMATS}
        body = {
            **self.served.facts(), "order": judge.order, "fields": list(judge.fields), "version": __version__,
            "compare": self.compare.facts() if self.compare else None, "formats": formats, "limits": limits,
            "max_new_tokens": self.max_new_tokens,
        }  # fmt: skip
        return Response(_json(body), media_type=JSON)

    async def models(self) -> Response:
        """What is served, as OpenAI's API lists models: its clients ask before they use one."""
        names = [served.name for served in (self.served, self.compare) if served is not None]
        head = {"object": "model", "created": int(time.time()), "owned_by": "taosr1"}
        return Response(_json({"object": "list", "data": [{"id": name, **head} for name in names]}), media_type=JSON)

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": self.metrics.content_type})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _page_files() -> dict[str, tuple[bytes, int, None, str]]:
    """The page's files by path, as arguments of a `Response`; they are few and small, so they are read once."""
    found = {}
    for file in PAGE.iterdir():
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        found[f"/{file.name}"] = (file.read_bytes(), 200, None, kind)
    return found | {"/": found["/index.html"]}
