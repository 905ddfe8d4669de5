"""Serve a judge over HTTP: a rerank service with reasons, and a page that shows what it does.

    pip install -c constraints.txt -e ".[serve]"
    python infer/serve.py                                   # the newest finished run, else the bundled student
    python infer/serve.py --model runs/mine --port 8080
    python infer/serve.py --watch runs/mine                 # its best checkpoint, and every better one that comes
    python infer/serve.py --model runs/mine --compare bundled             # two judges side by side on the page
    TAOSR1_API_KEY=... python infer/serve.py --host 0.0.0.0               # for other machines, with a key

    curl localhost:8000/score -H 'Content-Type: application/json' \\
        -d '{"query": "travel mug but not steel", "products": ["red wood travel mug", "steel travel mug"]}'

The first line of the standard output says where it listens, once it is ready. Open that address for the page.
POST /score, /explain (streamed), and the formats of other systems, which GET /info lists; GET /health is 200 when
requests are answered, else 503; GET /metrics is for Prometheus. examples/guide/serving.md explains the replies.

Who may ask: this machine alone, unless --host says otherwise; other machines need a key (--api-key, or better the
environment variable TAOSR1_API_KEY, which no list of processes shows), or --insecure. Pages of other origins may not
ask, unless --cors names theirs.

What a client is told: 400 no JSON, 401 no key, 403 another Host, 404, 405, 408 too slow, 409 another rubric, 413 too
large, 415 another content type, 422 what cannot be used, 429 the queue is full, 431 headers too large, 503 not ready,
stopping, out of time or too many connections. 429 and 503 come with Retry-After. Every bound is a flag below.

Signals: SIGTERM or Ctrl-C answers what was accepted and ends with exit code 0, within --drain-s; a second one ends at
once. SIGHUP loads --model again (or the best checkpoint of --watch). If the new weights cannot be loaded or fail the
self-test, the log says why, and the old ones go on serving.

The log on stderr has one line a request: time, id (X-Request-Id), method, path, status, products, tokens, ms. Texts of
queries and products are in it with --log-text alone.

One process serves one model on one device. Several of them go behind an HTTP balancer: examples/serving/nginx.conf.

Deviations from the paper: it says how the judge is deployed, not its server; beta and temperature are those of
infer/score.py.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.runtime.checkpoint import best_checkpoint, checkpoints
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import verify
from taosr1.runtime.messages import install
from taosr1.runtime.signals import run_main
from taosr1.server.limits import Limits, limit_problems
from taosr1.server.security import Access, access_problems
from taosr1.serving.deployed import ANSWERS_FIRST, MODEL_HELP, TEMPERATURE_SCALING, chosen_temperature, open_judge
from taosr1.task.prompt_flags import AskFlags, prompt_problems

if TYPE_CHECKING:
    from taosr1.server.served import Served

KEY_VARIABLE = "TAOSR1_API_KEY"


@dataclass(frozen=True)
class Config(Limits, AskFlags):
    model: str = option("", MODEL_HELP)
    watch: str = option("", "run folder: serve its best checkpoint, and load every better one; in place of --model")
    watch_s: float = option(5.0, "time between two looks at the run of --watch")
    compare: str = option("", "a second judge, asked with judge: compare; named as for --model")
    host: str = option("127.0.0.1", "address to listen on; others than this machine's need --api-key or --insecure")
    port: int = option(8000, "port to listen on (0: any free one)")
    api_key: str = option("", f"key that clients send as 'Authorization: Bearer KEY' (none: {KEY_VARIABLE}, if set)")
    insecure: bool = option(False, "listen on other addresses without a key")
    cors: str = option("", "origin whose pages may ask from a browser, such as https://shop.example (none: no other's)")
    log_text: bool = option(False, "write queries and titles into the log, too")
    beta: float | None = option(None, "CumPT: smaller is more generous; none: the checkpoint's tiering.json, else 0.5")
    temperature_scaling: str = option(
        "stored",
        "stored: scale probs by the checkpoint's calibration.json, where it has one; off: leave them unscaled",
        TEMPERATURE_SCALING,
    )
    max_new_tokens: int = option(128, "longest explanation")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)

    def __post_init__(self) -> None:
        check([
            (bool(self.watch and self.model), "--watch and --model are given, expected one of the two"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            (not 0 <= self.port < 65536, f"--port is {self.port}, expected 0 to 65535"),
            *access_problems(self.key, self.cors),
            *limit_problems(self),
            *prompt_problems(self),
            *at_least(self, max_new_tokens=1, watch_s=0.1),
        ])  # fmt: skip

    @property
    def key(self) -> str:
        return self.api_key or os.environ.get(KEY_VARIABLE, "")


def best_of(run: str) -> str:
    """The best checkpoint of --watch, its files checked: the run may be going on.

    Raises: FileNotFoundError and ValueError naming what is missing or damaged.
    """
    folder = Path(run) / "checkpoints"
    if folder.is_dir() and not checkpoints(folder):
        raise FileNotFoundError(f"--watch {run}: no complete checkpoint yet; start again when the run has saved one")
    found = best_checkpoint(run)
    if found is None:
        raise FileNotFoundError(f"--watch {run}: not a run folder, expected one with checkpoints/")
    verify(found)
    return str(found)


def load_tested(config: Config, spec: str, flag: str = "--model") -> tuple[Served, list[str]]:
    """The judge that a flag names (--model, --watch or --compare), with warnings about it.

    Raises: FileNotFoundError and ValueError, which name the flag, where the judge cannot be loaded, reasons before it
        answers, or fails the self-test.
    """
    try:
        return _load_tested(config, best_of(spec) if flag == "--watch" else spec)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(re.sub("^--model", flag, str(error))) from error


def _load_tested(config: Config, spec: str) -> tuple[Served, list[str]]:
    from taosr1.server.self_test import self_test
    from taosr1.server.served import Served

    settings = {"dtype": config.dtype, "device": config.device, "max_new_tokens": config.max_new_tokens}
    name, model = open_judge(spec, orders=ANSWERS_FIRST, asked=config, **settings)
    if model.prompt.order == "pre-cot":
        raise ValueError(
            f"--model {name} reasons before it answers (pre-cot): each product would take a whole reply. Serve one "
            "that answers first: 'bundled', or one made with train/label_pool.py, then train/sft.py --order post-cot"
        )
    served = {"beta": config.beta, "temperature": chosen_temperature(name, config.temperature_scaling)}
    found = Served.of(Judge.serving(name, model, **served, max_tokens_per_batch=config.batch_tok))
    return found, self_test(found, exact=config.dtype == "float32")


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    try:
        from taosr1.server import lifecycle
        from taosr1.server.app import Server
        from taosr1.server.weights import Loads
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: {install('serve')}") from error
    lifecycle.allow_open_files(config.max_connections)
    listening = lifecycle.listen(config.host, config.port)
    address, port = listening.getsockname()[:2]
    loopback = ip_address(address).is_loopback
    if not (loopback or config.key or config.insecure):
        ways = f"add --api-key KEY or set {KEY_VARIABLE}, or add --insecure to let everybody ask"
        raise ValueError(f"--host {config.host} can be reached from other machines: {ways}")
    shown = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    def server() -> Server:
        access = Access(config.key, config.cors, loopback)
        return Server(config, access, max_new_tokens=config.max_new_tokens, log_text=config.log_text)

    def announce(ready: Server) -> None:
        beside = f" beside {ready.compare.name}" if ready.compare else ""
        with suppress(OSError):  # nobody reads it
            print(f"{shown} serves {ready.served.name}{beside}", flush=True)

    load = partial(load_tested, config, config.watch or config.model, "--watch" if config.watch else "--model")
    load_second = partial(load_tested, config, config.compare, "--compare") if config.compare else None
    lifecycle.serve(server, Loads(load, load_second, config.watch, config.watch_s), listening, announce)


if __name__ == "__main__":
    run_main(main, Config)
