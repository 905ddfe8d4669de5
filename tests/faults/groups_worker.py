"""One rank of a job that takes GRPO steps with random numbers of kept groups; started by campaign.py under torchrun.

    torchrun --nproc_per_node=2 tests/faults/groups_worker.py MODEL RUNS SEED ddp|fsdp REPORT

Everything is the real thing but the choice of groups: chance keeps any number of them, from none to all. A run that hangs is ended by
an alarm. After each run all ranks compare their weights.
"""

from __future__ import annotations

import copy
import json
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from taosr1.judge import load_judge
from taosr1.learning import rollouts
from taosr1.learning.distributed_model import DistributedModel, init_distributed, whole_tensor
from taosr1.learning.loop import accumulate, make_optimizers
from taosr1.learning.losses import grpo_loss
from taosr1.learning.rollout_group import RolloutSettings
from taosr1.learning.rollouts import Sampler
from taosr1.model.logprobs import completion_logp
from taosr1.runtime.distributed import gather, shutdown
from taosr1.synthetic.shop import read_pool

HANG_S = 60


def main(model: str, runs: int, seed: int, kind: str, report: str) -> None:
    torch.set_num_threads(1)
    init_distributed("cpu")
    found, start = [], load_judge(model)
    for number in range(runs):
        signal.alarm(HANG_S)
        found.append(one_run(start, random.Random(seed * 10_000 + number), kind == "fsdp"))
        signal.alarm(0)
    if DistributedModel(start.model).ranks.is_rank_zero:
        Path(report).write_text(json.dumps(found))
    shutdown()


def one_run(start, chance: random.Random, fsdp: bool) -> tuple[list[int], int]:
    """Three steps. Returns how many groups were kept in each, and in how many of them the ranks had unequal parts."""
    judge = copy.deepcopy(start)
    reference = DistributedModel(copy.deepcopy(start.model).requires_grad_(False), fsdp=fsdp) if chance.random() < 0.7 else None
    team = DistributedModel(judge.model, fsdp=fsdp)
    size = chance.randint(1, 8)
    rollouts.keep_groups = lambda right, samples, gamma: torch.tensor([kept_by(chance, share) for share in [chance.choice((0, 0.5, 1, 1))] for _ in right], dtype=torch.bool)
    rollouts.drop_reason = lambda *_: "chance"
    settings = RolloutSettings(
        groups=size, samples=3, gamma=None, difficulty=chance.choice(("samples", "prefill")), balance=chance.choice(("none", "root", "root", "class")), min_groups=chance.randint(0, 3),
        max_resample=chance.randint(1, 2), temperature=1.0, max_new_tokens=8, adv_std="group", adv_clamp=None,
        compute_dtype=chance.choice((torch.float32, torch.bfloat16)), label_weight=1.0, micro_batch_tok=chance.choice((30, 80, 200)), seed=chance.randint(0, 999),
    )  # fmt: skip
    sampler = Sampler(judge, read_pool("labelled", 30), settings, {"label": 1.0}, reference, team)
    (optimizer,) = make_optimizers(judge.model, 1e-4)
    cursor, kept, unequal = {}, [], 0
    for step in range(3):
        batches, _ = sampler.collect(step, cursor)
        parts = gather(sum(batch is not None for batch in batches))
        kept.append(sampler.metrics["kept_groups"])
        unequal += len(set(parts)) > 1
        accumulate(judge.model, batches, loss_fn, settings.compute_dtype, team)
        optimizer.step()
        judge.model.zero_grad(set_to_none=True)
    sums = gather(sum(float(whole_tensor(parameter.detach()).double().abs().sum()) for parameter in judge.model.parameters()))
    assert len(set(sums)) == 1, f"the ranks' weights differ: {sums}"
    return kept, unequal


def kept_by(chance: random.Random, share: float) -> bool:
    return chance.random() < share


def loss_fn(model, batch):
    return grpo_loss(completion_logp(model, batch.ids, batch.mask), batch.old_logp, batch.advantages, batch.mask, ref_logp=batch.ref_logp, kl_beta=0.02 if batch.ref_logp is not None else 0.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
