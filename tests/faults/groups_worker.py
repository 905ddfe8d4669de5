"""One rank of a job that takes GRPO steps with random numbers of kept groups; started by campaign.py.

    torchrun --nproc_per_node=2 tests/faults/groups_worker.py MODEL RUNS SEED ddp|fsdp REPORT

Only the choice of groups is not the real one: chance keeps any number of them, from none to all. A run that hangs is
ended by an alarm. After each run all ranks compare their weights.
"""

from __future__ import annotations

import copy
import json
import random
import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from taosr1.judge_model import DTYPES, load_judge
from taosr1.learning import rollouts
from taosr1.learning.distributed_model import DistributedModel, full_tensor, init_distributed
from taosr1.learning.gradient import accumulate
from taosr1.learning.losses import grpo_loss
from taosr1.learning.optimizers import make_optimizers
from taosr1.learning.reference import with_stored_logp
from taosr1.learning.rollouts import Sampler
from taosr1.runtime.distributed import gather, shutdown
from taosr1.synthetic.shop import read_pool
from train import grpo

HANG_S = 60


def main(argv: list[str]) -> None:
    model, runs, seed, kind, report = argv
    torch.set_num_threads(1)
    init_distributed("cpu")
    found, start = [], load_judge(model)
    for number in range(int(runs)):
        signal.alarm(HANG_S)
        found.append(one_run(start, random.Random(int(seed) * 10_000 + number), kind == "fsdp"))
        signal.alarm(0)
    if DistributedModel(start.model).ranks.is_rank_zero:
        Path(report).write_text(json.dumps(found))
    shutdown()


def one_run(start, chance: random.Random, fsdp: bool) -> tuple[list[int], int]:
    """Three steps. Returns how many groups were kept in each, and in how many of them the ranks had unequal parts."""
    judge, size = copy.deepcopy(start), chance.randint(1, 8)
    config = grpo.Config(
        groups=size, samples=3, difficulty=chance.choice(("samples", "prefill")),
        balance=chance.choice(("none", "root", "root", "class")), min_groups=chance.randint(0, 3),
        max_resample=chance.randint(1, 2), max_new_tokens=8, dtype=chance.choice(("float32", "bfloat16")),
        micro_batch_tok=chance.choice((30, 80, 200)), seed=chance.randint(0, 999),
    )  # fmt: skip
    dtype, reference = DTYPES[config.dtype], None
    if chance.random() < 0.7:
        frozen = copy.deepcopy(start.model).requires_grad_(False)
        reference = DistributedModel(frozen, start.engine, fsdp=fsdp, dtype=dtype)
    policy = DistributedModel(judge.model, judge.engine, fsdp=fsdp, dtype=dtype)
    rows = read_pool("labelled", 30)
    sampler = Sampler(judge, rows, config)
    (optimizer,) = make_optimizers(judge.model, 1e-4)
    cursor, kept, unequal = {}, [], 0
    for step in range(3):
        share = chance.choice((0, 0.5, 1, 1))
        rollouts.drop_reason = lambda *_, share=share: "" if chance.random() < share else "chance"
        drawn = grpo.rollouts(step, cursor, config=config, rows=rows, sampler=sampler, distributed=policy)
        batches = policy.deal(drawn.items, config.micro_batch_tok)
        batches = with_stored_logp(batches, drawn.items, policy, reference, config.temperature)
        parts = gather(sum(batch is not None for batch in batches))
        kept.append(drawn.metrics["kept_groups"])
        unequal += len(set(parts)) > 1
        accumulate(policy, batches, partial(loss_fn, judge.engine.completion_logp))
        optimizer.step()
        judge.model.zero_grad(set_to_none=True)
    weights = [full_tensor(parameter.detach()).double() for parameter in judge.model.parameters()]
    sums = gather(sum(float(weight.abs().sum()) for weight in weights))
    assert len(set(sums)) == 1, f"the ranks' weights differ: {sums}"
    return kept, unequal


def loss_fn(completion_logp, model, batch):
    logp, kl_beta = completion_logp(model, batch.ids, batch.mask), 0.0 if batch.ref_logp is None else 0.02
    return grpo_loss(logp, batch.old_logp, batch.advantages, batch.mask, ref_logp=batch.ref_logp, kl_beta=kl_beta)


if __name__ == "__main__":
    main(sys.argv[1:])
