"""Serve a judge over HTTP: a rerank service with reasons, and a page that shows what it does.

    python infer/serve.py                                   # the newest finished run, else the bundled student
    python infer/serve.py --model runs/mine --port 8080

It listens on this machine alone; examples/guide/serving.md goes on from there.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.server.limits import Limits
from taosr1.serving.deployed import MODEL_HELP


@dataclass(frozen=True)
class Config(Limits):
    model: str = option("", MODEL_HELP)
    host: str = option("127.0.0.1", "address to listen on; others than this machine's need --api-key or --insecure")
    port: int = option(8000, "port to listen on (0: any free one)")
    api_key: str = option("", "key that clients send as 'Authorization: Bearer KEY'")
    insecure: bool = option(False, "listen on other addresses without a key")
    max_new_tokens: int = option(128, "longest explanation")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    try:
        import uvicorn

        from taosr1.server.app import Server, build_app
        from taosr1.server.served import Served
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is not installed: pip install -c constraints.txt -e ".[serve]"') from error
    judge = Judge.load(config.model, device=config.device, dtype=config.dtype, max_tokens_per_batch=config.batch_tok)
    listening = socket.create_server((config.host, config.port), backlog=2048)
    print(f"http://{config.host}:{listening.getsockname()[1]} serves {judge.name}", flush=True)
    settings = uvicorn.Config(build_app(Server(Served.of(judge), config)), log_level="warning")
    uvicorn.Server(settings).run(sockets=[listening])


if __name__ == "__main__":
    run_main(main, Config)
