"""A tiny judge whose parts the tests of runs, checkpoints, the loop and rollouts share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from taosr1.judge import Judge
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.task.prompt import PromptConfig
from taosr1.task.world import read_pool

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    texts = [f" {row.query}\n {row.title}\n{row.cot}" for row in read_pool("reasoned", 100)]
    return train_tokenizer(texts, 360, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_judge(tiny_tokenizer) -> Callable[..., Judge]:
    """make_judge(order, seed=0, **shape): fresh weights every time, so that tests may train them."""

    def make(order: str = "post-cot", seed: int = 0, **shape) -> Judge:
        config = DecoderConfig(tiny_tokenizer.vocab_size, **{**SHAPE, "max_position_embeddings": 160, **shape})
        model = Decoder(config).init_weights(torch.Generator().manual_seed(seed))
        return Judge(model, tiny_tokenizer, PromptConfig(order, "brief", ("title",)))

    return make
