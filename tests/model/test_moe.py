"""The mixture of experts against its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def test_a_mixture_adds_what_each_chosen_expert_says_by_its_weight(make_model):
    model = make_model("qwen3_moe")
    mlp, x = model.model.layers[0].mlp, torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(6, 24)
    for row, token in enumerate(x.view(6, 24)):
        probs = (mlp.gate.weight @ token).softmax(0)
        best = probs.topk(2)
        for weight, expert in zip(best.values / best.values.sum(), best.indices):
            gate, up, down = (
                stack[expert] for stack in (mlp.experts.gate_proj, mlp.experts.up_proj, mlp.experts.down_proj)
            )
            expected[row] += weight * (down @ (F.silu(gate @ token) * (up @ token)))
    torch.testing.assert_close(mlp(x).view(6, 24), expected, rtol=1e-4, atol=1e-4)


def test_where_the_probabilities_are_not_normalised_they_are_used_as_they_are(make_model):
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    raw, summed = (
        make_model("qwen3_moe", norm_topk_prob=flag).model.layers[0].mlp.route(x)[0] for flag in (False, True)
    )
    assert (raw.sum(-1) < 0.999).any()
    torch.testing.assert_close(summed, raw / raw.sum(-1, keepdim=True))


def test_layers_named_dense_have_an_ordinary_mlp(make_model):
    model = make_model("qwen3_moe", dense_layers=(0,))
    assert [type(layer.mlp).__name__ for layer in model.model.layers] == ["MLP", "MixtureOfExperts"]
