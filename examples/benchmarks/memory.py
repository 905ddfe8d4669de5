"""Peak memory of a GRPO and a DPO step beside TRL's on the same model and batch, each in a process of its own.

    python examples/benchmarks/memory.py                                    # small shape, CPU, float32
    python examples/benchmarks/memory.py --shape qwen3-0.6b --device cuda --dtype bfloat16

GRPO: 4 prompts of 192 tokens x 8 samples of 64, KL to the start, AdamW, two steps. DPO: 8 pairs of 192 + 64 tokens.
All rows go through one forward and backward pass in both programs (no micro-batches): activations kept, recomputed,
or recomputed under LoRA adapters of rank 16, in both. What counts is the peak above what the imports take; the whole
process is shown beside it. "floor" is what both must hold whatever they do: weights, gradients, AdamW's moments, and
GRPO's reference, over TRL's peak. TRL and PEFT come with `.[dev]`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks.common import SHAPES, in_fresh_process, load_fast, machine, make_model, peak_bytes
from taosr1.judge_model import DTYPES
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.signals import run_main

PROMPT_TOK, REPLY_TOK, PROMPTS, SAMPLES, PAIRS, STEPS, RANK = 192, 64, 4, 8, 8, 2, 16


@dataclass(frozen=True)
class Config:
    shape: str = option("small", "which model", tuple(SHAPES))
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type over float32 weights", tuple(DTYPES))
    threads: int = option(1, "CPU threads")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure only this, as WHO/STAGE/RECOMPUTE")
    folder: str = option("", "internal: the model's folder")

    def __post_init__(self) -> None:
        check(at_least(self, threads=1))


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    if config.one:
        who, stage, mode = config.one.split("/")
        print(json.dumps({"ours": ours, "trl": trl}[who](stage, mode, config)))
        return []
    rows = []
    print(f"{config.shape}, {config.dtype}, {config.device}, {config.threads} thread(s); {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        make_model(config.shape, Path(folder))
        for stage in ("grpo", "dpo"):
            for mode in ("keep", "recompute", "lora"):
                found = {}
                for who in ("trl", "ours"):
                    arguments = (
                        "--one",
                        f"{who}/{stage}/{mode}",
                        "--folder",
                        folder,
                        "--shape",
                        config.shape,
                        "--device",
                        config.device,
                        "--dtype",
                        config.dtype,
                    )
                    found[who] = in_fresh_process(__file__, *arguments, threads=config.threads)
                above = {who: value["peak"] - value["base"] for who, value in found.items()}
                copies = {"lora": 1}.get(
                    mode, 4 + (stage == "grpo")
                )  # weights, gradients, two moments, GRPO's reference
                floor = copies * found["ours"]["weights"] / above["trl"]
                row = {
                    "stage": stage,
                    "mode": mode,
                    "floor": round(floor, 3),
                    **{f"{who}_mib": round(value / 2**20) for who, value in above.items()},
                    **{f"{who}_process_mib": round(value["peak"] / 2**20) for who, value in found.items()},
                    "ratio": round(above["ours"] / above["trl"], 3),
                }
                rows.append(row)
                print(
                    f"{stage:4} {mode:9}  ours {row['ours_mib']:6} MiB  TRL {row['trl_mib']:6} MiB  "
                    f"ratio {row['ratio']:.2f}  floor {floor:.2f}"
                    f"   (process: {row['ours_process_mib']} and {row['trl_process_mib']})",
                    flush=True,
                )
    if config.out:
        Path(config.out).write_text(
            json.dumps({"machine": machine(), "shape": config.shape, "dtype": config.dtype, "rows": rows}, indent=1)
            + "\n"
        )
    return rows


def token_ids(rows: int, length: int, seed: int) -> list[list[int]]:
    """Random ids that are no control tokens."""
    return torch.randint(10, 1000, (rows, length), generator=torch.Generator().manual_seed(seed)).tolist()


def ours(stage: str, mode: str, config: Config) -> dict:
    # PyTorch's optimizers import it when the first is made (70 MiB, beside Triton 150); TRL has by now.
    import torch._dynamo  # noqa: F401

    from taosr1.fast import FAST
    from taosr1.learning.distributed_model import DistributedModel
    from taosr1.learning.gradient import accumulate
    from taosr1.learning.optimizers import make_optimizers
    from taosr1.model.lora import LoraConfig, add_adapters

    base = peak_bytes(config.device)
    model = load_fast(config.folder, device=config.device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model.activation_checkpointing = mode != "keep"
    if mode == "lora":
        FAST.prepare(add_adapters(model, LoraConfig(RANK, 2.0 * RANK)))
    distributed = DistributedModel(model, FAST, dtype=DTYPES[config.dtype])
    (optimizer,) = make_optimizers(model, 1e-5)
    step = {"grpo": our_grpo, "dpo": our_dpo}[stage](distributed, config)
    started = time.perf_counter()
    for number in range(STEPS):
        batch, loss_fn = step(number)
        accumulate(distributed, [batch], loss_fn)
        optimizer.step()
        model.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    return {"base": base, "peak": peak_bytes(config.device), "seconds": seconds, "weights": weights}


def our_grpo(distributed, config: Config):
    from taosr1.fast.generate import generate
    from taosr1.fast.logprobs import completion_logp
    from taosr1.learning.batches import Example, collate
    from taosr1.learning.losses import group_advantages, grpo_loss
    from taosr1.learning.reference import reference_policy
    from taosr1.model.lora import adapters_off

    model = distributed.model
    reference = reference_policy(model)

    def step(number: int):
        prompts = token_ids(PROMPTS, PROMPT_TOK, number)
        generator = torch.Generator().manual_seed(number)
        sampler = distributed.sampling_model()
        settings = {"samples": SAMPLES, "max_new_tokens": REPLY_TOK, "stop_ids": [0]}
        replies = generate(sampler, prompts, generator=generator, **settings).replies()
        batch = collate([Example(prompts[row // SAMPLES], reply) for row, reply in enumerate(replies)], config.device)
        with torch.no_grad(), distributed.compute_dtype():
            old = completion_logp(model, batch.ids, batch.mask)
            with adapters_off(reference):
                ref = completion_logp(reference, batch.ids, batch.mask)
        rewards = torch.randn(len(replies), generator=generator, dtype=torch.float64)
        advantages = group_advantages(rewards, SAMPLES).float().to(config.device)

        def loss_fn(model, batch):
            logp = completion_logp(model, batch.ids, batch.mask)
            return grpo_loss(logp, old, advantages, batch.mask, ref_logp=ref, kl_beta=0.04)

        return batch, loss_fn

    return step


def our_dpo(distributed, config: Config):
    from taosr1.fast.logprobs import completion_logp
    from taosr1.learning.batches import Example, collate
    from taosr1.learning.losses import dpo_loss
    from taosr1.model.logprobs import sequence_logp

    def step(number: int):
        prompts, replies = token_ids(PAIRS, PROMPT_TOK, number), token_ids(2 * PAIRS, REPLY_TOK, 100 + number)
        # Chosen, rejected, chosen, rejected, ...
        batch = collate([Example(prompts[row // 2], reply) for row, reply in enumerate(replies)], config.device)
        with torch.no_grad(), distributed.compute_dtype():
            ref = sequence_logp(completion_logp(distributed.model, batch.ids, batch.mask), batch.mask)

        def loss_fn(model, batch):
            logp = sequence_logp(completion_logp(model, batch.ids, batch.mask), batch.mask)
            return dpo_loss(logp[::2], logp[1::2], ref[::2], ref[1::2])

        return batch, loss_fn

    return step


def trl(stage: str, mode: str, config: Config) -> dict:
    """TRL's trainer on the same numbers of tokens. Its prompts are text, cut by its tokenizer to our lengths."""
    import datasets
    import peft
    import transformers
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    from taosr1.model.lora import TARGETS

    transformers.utils.logging.set_verbosity_error()
    base = peak_bytes(config.device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.folder, dtype=torch.float32)
    common = dict(
        output_dir=tempfile.mkdtemp(),
        max_steps=STEPS,
        learning_rate=1e-5,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=mode != "keep",
        bf16=config.dtype == "bfloat16",
        fp16=config.dtype == "float16",
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=False,
        optim="adamw_torch",
    )
    adapters = (
        peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        if mode == "lora"
        else None
    )
    texts = [tokenizer.decode(ids) for ids in token_ids(64, 4 * PROMPT_TOK, 0)]
    if stage == "grpo":
        exact = [tokenizer.decode(tokenizer(text)["input_ids"][:PROMPT_TOK]) for text in texts]
        rows = datasets.Dataset.from_dict({"prompt": exact})
        arguments = GRPOConfig(
            **common,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=REPLY_TOK,
            beta=0.04,
            generation_kwargs={"min_new_tokens": REPLY_TOK},
        )
        reward = lambda completions, **_: [float(hash(text) % 97) for text in completions]  # noqa: E731
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapters,
        )
    else:
        ids = [tokenizer(text)["input_ids"] for text in texts]
        rows = datasets.Dataset.from_dict(
            {
                "prompt": [tokenizer.decode(row[:PROMPT_TOK]) for row in ids],
                "chosen": [tokenizer.decode(row[PROMPT_TOK : PROMPT_TOK + REPLY_TOK]) for row in ids],
                "rejected": [tokenizer.decode(row[PROMPT_TOK + REPLY_TOK : PROMPT_TOK + 2 * REPLY_TOK]) for row in ids],
            }
        )
        arguments = DPOConfig(**common, per_device_train_batch_size=PAIRS, max_length=PROMPT_TOK + REPLY_TOK)
        trainer = DPOTrainer(
            model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapters
        )
    started = time.perf_counter()
    trainer.train()
    return {"base": base, "peak": peak_bytes(config.device), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run_main(main)
