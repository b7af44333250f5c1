"""Models that rotate all rows of a forward by the longest: no long row changes what a short one says."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_engines import model_of, prompts_of, tokens_of
from tiny import ARCHS
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.engines.decoder import RowDecoder
from posttrain.engines.forest_decoder import ForestDecoder
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import SamplingParams
from posttrain.models import forward as module
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import forward
from posttrain.models.rope import common_length

COMMON = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": COMMON,
    }  # fmt: skip
    more = {"pad_token_id": 0, "eos_token_id": 0, "original_max_position_embeddings": COMMON}
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHS["phi3"], **more, rope_parameters=rope))
    hf.generation_config.eos_token_id = None
    return model_of(hf.eval())


def rows(*lengths):
    return [Branch(tokens, [False] + [True] * (len(tokens) - 1)) for tokens in prompts_of(*lengths)]


def dense(model, tokens):
    with torch.no_grad():
        logps = model.hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]


def test_log_probs_are_those_of_each_row_alone(model, monkeypatch):
    assert model.forest
    assert common_length(model.hf.config) == COMMON
    as_forest = []
    inner = module.by_forest
    monkeypatch.setattr(module, "by_forest", lambda *given: as_forest.append(1) or inner(*given))
    for lengths, together in (((20, 9, COMMON), True), ((20, 9, COMMON + 1), False)):
        branches = rows(*lengths)
        with torch.no_grad():
            found = forward(model, plant([tree_of([branch]) for branch in branches])).logps
        expected = torch.cat([dense(model, list(branch.tokens)) for branch in branches])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert bool(as_forest) is together
        as_forest.clear()


def test_a_long_row_does_not_change_what_a_short_one_says(model):
    short, other, long = prompts_of(12, 17, COMMON + 20)
    params = SamplingParams(n=8, max_new_tokens=20, seed=1)
    engine = LocalEngine(model)
    alone = tokens_of(engine.generate([short], params))
    assert [*engine._decoders] == [ForestDecoder]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rows of one length that alone share a batch
        beside = engine.generate([short, other, long], params)
    assert [*engine._decoders] == [ForestDecoder, RowDecoder]
    assert tokens_of(beside)[:1] == alone
    expected = dense(model, [*long, *beside[2][0].token_ids])[len(long) - 1 :]
    torch.testing.assert_close(torch.tensor(beside[2][0].logps), expected, rtol=1e-3, atol=1e-4)
