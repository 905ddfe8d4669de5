"""What serving costs: latency and throughput of infer/serve.py beside the batch script, a naive server and padding.

    pip install -c constraints.txt -e ".[serve,dev]"
    python examples/benchmarks/serve.py                                     # everything: about three minutes
    python examples/benchmarks/serve.py --parts alone,growth                # one minute

closed: 1 to 64 clients, each sends its next request of --products products when it has the reply to its last one.
        "batch" is `Judge.score_judgements` on the same rows in this process: infer/score.py without its files.
open:   requests at random times (Poisson), at shares of the rate that `closed` reached.
alone:  one client and one product, beside a bare prefill of the same prompt in this process.
growth: one client, 1 to 500 products a query, beside `score_judgements`.

The sides are measured by turns, each with the same requests; all run one thread of torch, the servers and this process
on one core, the clients (`serve_load.py`) on another. Ratios are medians over the turns, in brackets the least and the
most. "CPU" is the processor time of the whole process for a product, which other programs on the machine change least;
behind it, in brackets, the batch script's over it. The peers (`serve_peers.py`) have the
same weights; padded tries several budgets and the fastest is measured. Before anything is timed, the probabilities of
all sides must equal those of the batch script to 1e-5.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import machine
from taosr1.judge import Judge
from taosr1.judge_model import BUNDLED_STUDENT
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.serving.inputs import judgements_of
from taosr1.synthetic.shop import read_pool

HERE = Path(__file__).parent
PARTS = ("closed", "open", "alone", "growth")
SIDES = {
    "ours": ("../../infer/serve.py", "--port", "0"),
    "naive": ("serve_peers.py", "--kind", "naive"),
    "padded": ("serve_peers.py", "--kind", "padded"),
}
PADDED_TOK = (1024, 4096, 16384)
OPEN_FRACS = (0.5, 0.8)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Config:
    parts: str = option(",".join(PARTS), "what to measure, comma-separated")
    model: str = option(BUNDLED_STUDENT, "the judge: a bundled one or a folder")
    clients: str = option("1,8,64", "clients of the closed part")
    products: int = option(20, "products of a request")
    requests: int = option(96, "requests of one measurement")
    growth: str = option("1,5,20,100,500", "products of a query in the growth part")
    repeats: int = option(3, "turns")
    seed: int = option(0, "of requests and arrival times")
    out: str = option("", "JSON file to write")

    def __post_init__(self) -> None:
        unknown = [name for name in self.parts.split(",") if name not in PARTS]
        message = f"--parts has {', '.join(unknown)}, expected some of {', '.join(PARTS)}"
        check([(bool(unknown), message), *at_least(self, products=1, requests=1, repeats=1)])


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # of this process, and of the servers that it starts
    judge, rows, parts = Judge.load(config.model), [], config.parts.split(",")
    print(f"1 thread, {len(cores)} cores, load {os.getloadavg()[0]:.1f}, seed {config.seed}; {machine()}")
    with ExitStack() as stack:
        work = Work(config, judge, cores[-1])
        sides = SIDES if "closed" in parts else ("ours",)
        servers = {side: stack.enter_context(started(side, config)) for side in sides}
        for server in servers.values():
            work.compare(server)
        if "closed" in parts:
            servers["padded"] = fastest_padding(servers["padded"], stack, work)
            rows += closed(work, servers)
        if "open" in parts:
            best = max((row["per_s"] for row in rows if row.get("side") == "ours"), default=0.0)
            rows += opened(work, servers["ours"], best or work.closed(servers["ours"], 64, config.products, 0)["per_s"])
        if "alone" in parts:
            rows += alone(work, servers["ours"])
        if "growth" in parts:
            rows += growth(work, servers["ours"])
    if config.out:
        report = {"machine": machine(), "load": os.getloadavg(), "config": asdict(config), "rows": rows}
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


# --- The parts --------------------------------------------------------------------------------------------------------
def closed(work: Work, servers: dict[str, Server]) -> list[dict]:
    print(
        f"closed: requests of {work.config.products} products; products a second, of the batch script's, latency in ms"
    )
    rows = []
    for clients in map(int, work.config.clients.split(",")):
        found: dict[str, list[dict]] = {side: [] for side in (*servers, "batch")}
        for turn in range(work.config.repeats):
            requests = work.requests(max(clients * 2, work.config.requests), work.config.products, turn)
            for side, server in servers.items():
                found[side].append(work.load(server, requests, clients=clients))
            found["batch"].append(work.batch(requests))
        rows += [summary(side, measured, found["batch"], clients=clients) for side, measured in found.items()]
    return rows


def opened(work: Work, server: Server, products_per_s: float) -> list[dict]:
    print(
        f"open: requests of {work.config.products} products at random times, of {products_per_s:.0f} products a second"
    )
    rows = []
    for share in OPEN_FRACS:
        per_s = share * products_per_s / work.config.products
        found = [
            work.load(server, work.requests(work.config.requests, work.config.products, turn), per_s=per_s, seed=turn)
            for turn in range(work.config.repeats)
        ]
        rows.append(summary(f"requests a second, {share:.0%}", found, per_s=per_s))
    return rows


def alone(work: Work, server: Server) -> list[dict]:
    print("alone: one client, one product, beside a bare prefill")
    served, bare = [], []
    for turn in range(work.config.repeats):
        requests = work.requests(work.config.requests, 1, turn)
        prompts = work.judge.model.prompts(work.rows(requests))
        served.append(work.load(server, requests, clients=1))
        bare.append(measured(len(prompts), [partial(work.judge.score_prompts, [prompt]) for prompt in prompts]))
    rows = [summary("ours", served, bare, clients=1), summary("prefill", bare, bare, clients=1)]
    ratios = [statistics.median(a["latencies_s"]) / statistics.median(b["latencies_s"]) for a, b in zip(served, bare)]
    print(f"  median latency {statistics.median(ratios):.2f} x a bare prefill's")
    return [*rows, {"side": "ours", "times_prefill": statistics.median(ratios)}]


def growth(work: Work, server: Server) -> list[dict]:
    print("growth: one client; latency in ms by products of a query, beside the batch script")
    rows = []
    for products in map(int, work.config.growth.split(",")):
        served, bare = [], []
        for turn in range(work.config.repeats):
            requests = work.requests(max(3, min(20, 500 // products)), products, turn)
            served.append(work.load(server, requests, clients=1))
            calls = [partial(work.judge.score_judgements, work.rows([request])) for request in requests]
            bare.append(measured(products * len(requests), calls))
        rows += [summary(side, found, bare, products=products) for side, found in (("ours", served), ("batch", bare))]
    return rows


def summary(side: str, found: list[dict], batch: Sequence[dict] = (), **given: float) -> dict:
    """One line: products a second and their share of the batch script's, medians of the turns; latencies of all."""
    rates = [run["products"] / run["seconds"] for run in found]
    cpu_ms = [1000 * run["cpu_s"] / run["products"] for run in found]
    row = {**given, "side": side, "per_s": statistics.median(rates), "cpu_ms": statistics.median(cpu_ms)}
    name = " ".join([*(f"{value:.4g} {key}" for key, value in given.items()), side])
    line = f"  {name:36} {row['per_s']:6.0f}/s"
    if batch:
        shares = [rate * other["seconds"] / other["products"] for rate, other in zip(rates, batch)]
        row |= {"of_batch": statistics.median(shares), "least": min(shares), "most": max(shares)}
        line += f"  {row['of_batch']:.2f} of batch ({min(shares):.2f} to {max(shares):.2f})"
    if latencies := sorted(1000 * seconds for run in found for seconds in run.get("latencies_s", ())):
        at = {share: latencies[min(len(latencies) - 1, share * len(latencies) // 100)] for share in (50, 95, 99)}
        row |= {f"p{share}_ms": value for share, value in at.items()}
        line += "".join(f"  p{share} {value:6.1f}" for share, value in at.items())
    line += f"  CPU {row['cpu_ms']:.3f} ms"
    if batch:
        theirs = [1000 * other["cpu_s"] / other["products"] for other in batch]
        row["cpu_of_batch"] = statistics.median(other / ours for ours, other in zip(cpu_ms, theirs))
        line += f" ({row['cpu_of_batch']:.2f})"
    print(line, flush=True)
    return {**row, "statuses": [run["statuses"] for run in found if "statuses" in run]}


# --- The work ---------------------------------------------------------------------------------------------------------
class Work:
    """Requests drawn from the shop's dev pool, and what carries them out. core: where the clients run."""

    def __init__(self, config: Config, judge: Judge, core: int) -> None:
        self.config, self.judge, self.core, self.pool = config, judge, core, read_pool("dev")

    def requests(self, count: int, products: int, turn: int) -> list[dict]:
        draw = random.Random(f"{self.config.seed} {products} {turn}")
        return [
            {
                "query": draw.choice(self.pool).query,
                "products": [{"title": row.title, "price": row.price} for row in draw.sample(self.pool, products)],
            }
            for _ in range(count)
        ]

    def rows(self, requests: list[dict]) -> list:
        return [row for request in requests for row in judgements_of(request["query"], request["products"])[0]]

    def batch(self, requests: list[dict]) -> dict:
        rows = self.rows(requests)
        found = measured(len(rows), [partial(self.judge.score_judgements, rows)])
        return {key: value for key, value in found.items() if key != "latencies_s"}

    def closed(self, server: Server, clients: int, products: int, turn: int) -> dict:
        found = self.load(server, self.requests(2 * clients, products, turn), clients=clients)
        return {**found, "per_s": found["products"] / found["seconds"]}

    def load(self, server: Server, requests: list[dict], **how: float) -> dict:
        """What `serve_load.py` measured, with the server's processor time."""
        work = {"port": server.port, "requests": requests, **how}
        before = server.cpu_s()
        run = subprocess.run(
            [sys.executable, HERE / "serve_load.py"], input=json.dumps(work), capture_output=True, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, [self.core]),
        )  # fmt: skip
        if run.returncode:
            sys.exit(f"the load failed:\n{run.stderr[-3000:]}")
        return {**json.loads(run.stdout), "cpu_s": server.cpu_s() - before}

    def compare(self, server: Server) -> None:
        """Ends the program where probabilities differ from the batch script's. Also a warm-up."""
        requests = self.requests(10, self.config.products, -1)
        for request in requests:
            expected = self.judge.score_judgements(self.rows([request]))
            found = server.ask(request)["results"]
            worst = max(
                abs(a - b) for ours, theirs in zip(expected, found) for a, b in zip(ours.probs, theirs["probs"])
            )
            if not (worst <= TOLERANCE and len(found) == len(expected)):
                sys.exit(f"{server.side}: a probability differs by {worst}, allowed is {TOLERANCE}")
        self.load(server, self.requests(32, self.config.products, -2), clients=8)


def measured(products: int, calls: list[Callable[[], object]]) -> dict:
    """Calls in this process, measured as requests are."""
    cpu, begun, latencies = time.process_time(), time.perf_counter(), []
    for call in calls:
        since = time.perf_counter()
        call()
        latencies.append(time.perf_counter() - since)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    return {"latencies_s": latencies, "products": products, "seconds": seconds, "cpu_s": cpu_s}


# --- The servers ------------------------------------------------------------------------------------------------------
class Server:
    def __init__(self, side: str, process: subprocess.Popen) -> None:
        self.side, self.process = side, process
        self.port = int(process.stdout.readline().split()[0].rsplit(":", 1)[1])

    def ask(self, request: dict) -> dict:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/score", json.dumps(request), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(side: str, config: Config, *flags: object) -> Iterator[Server]:
    script, *arguments = SIDES[side]
    command = [sys.executable, HERE / script, *arguments, "--model", config.model, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": environment}
    process = subprocess.Popen(command, **settings)
    try:
        yield Server(side, process)
    finally:
        process.terminate()
        process.wait(30)


def fastest_padding(server: Server, stack: ExitStack, work: Work) -> Server:
    """The padded server with the budget that gives most products a second. server: the one with the largest budget."""
    tried = {PADDED_TOK[-1]: server}
    tried |= {
        most: stack.enter_context(started("padded", work.config, "--batch-tok", most)) for most in PADDED_TOK[:-1]
    }
    rates = {}
    for most, candidate in tried.items():
        work.compare(candidate)
        rates[most] = work.closed(candidate, 16, work.config.products, -3)["per_s"]
    print("  tried: padded, products a second by budget: " + ", ".join(f"{m} {r:.0f}" for m, r in rates.items()))
    return tried[max(rates, key=rates.get)]


if __name__ == "__main__":
    run_main(main)
