"""The local engine against transformers' own generation, the exact distribution, and its own promises."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from tiny import FALLBACK_ARCHS, FOREST_ARCHS, VOCAB, tiny_folder, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from posttrain.common.errors import ConfigError
from posttrain.engines.decoder import wire
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.sampling import probabilities
from posttrain.engines.scripted import ScriptedEngine
from posttrain.engines.stopping import stop_ids
from posttrain.models.attention import install
from posttrain.models.load import Model, load_model
from posttrain.models.selfcheck import check_forest
from posttrain.models.spec import LoRA, ModelSpec
from posttrain.models.template import ChatTemplate

ARCHS = (*FOREST_ARCHS, *FALLBACK_ARCHS)
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)


def model_of(hf: torch.nn.Module, forest: bool = True) -> Model:
    """forest: let it run as one where it can."""
    tokenizer = tiny_tokenizer()
    model = Model(hf, tokenizer, ChatTemplate(tokenizer, "chatml"), "tiny", torch.float32)
    if forest and isinstance(hf, PreTrainedModel):
        install(hf)
        check_forest(model)
    return model


def distribution(logits, params):
    """[R, V] log-probabilities that tokens are drawn from."""
    weights = probabilities(logits, params)
    return (weights / weights.sum(-1, keepdim=True)).log()


def prompts_of(*lengths: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in lengths]


def generated(hf, prompt: list[int], stop: list[int], tokens: int = 16) -> list[int]:
    ids = torch.tensor([prompt])
    out = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore:sampling from")
@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_is_what_transformers_generates(arch):
    """Prompts of many lengths in one batch, some longer than the sliding windows, some that stop early."""
    hf = tiny_model(arch)
    prompts = prompts_of(5, 3, 17, 9, 9, 30)
    middle = generated(hf, prompts[0], [2])[5]
    hf.generation_config.eos_token_id = [2, middle]
    found = LocalEngine(model_of(hf)).generate(prompts, GREEDY)
    expected = [generated(hf, prompt, [2, middle]) for prompt in prompts]
    assert [list(answers[0].token_ids) for answers in found] == expected
    finishes = ["stop" if ids[-1] in (2, middle) else "length" for ids in expected]
    assert [answers[0].finish for answers in found] == finishes
    assert finishes[0] == "stop"
    assert "length" in finishes


@pytest.mark.parametrize(
    ("arch", "mode"), [("llama", "padded"), ("gemma3", "padded"), ("bloom", "padded"), ("mamba", "even")]
)
def test_the_way_to_continue_is_found_by_trying(arch, mode):
    with warnings.catch_warnings(record=True) as said, torch.inference_mode():
        warnings.simplefilter("always")
        assert wire(tiny_model(arch)).mode == mode
    slower = [w for w in said if "slower" in str(w.message)]
    assert len(slower) == (mode != "padded")


class Parrot(torch.nn.Module):
    """Says the token after the last one, in the order of `line`, and has no cache."""

    def __init__(self, line: list[int], end: int | None = None) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB, 4)
        self.next = dict(itertools.pairwise(line))
        self.config = SimpleNamespace(eos_token_id=None, max_position_embeddings=end)
        self.config.get_text_config = lambda: self.config
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, use_cache=None):
        after = torch.tensor([[self.next.get(i, 5) for i in row] for row in input_ids.tolist()])
        return SimpleNamespace(logits=20.0 * torch.nn.functional.one_hot(after, VOCAB).float())


def test_a_model_without_a_cache_is_read_whole_every_time():
    engine = LocalEngine(model_of(Parrot([10, 11, 12, 2])))
    with pytest.warns(UserWarning, match="every token costs a whole forward"):
        found = engine.generate([[10], [3, 11]], GREEDY)
    assert [answers[0].token_ids for answers in found] == [(11, 12, 2), (12, 2)]


def test_a_cache_that_lies_is_not_used():
    """A model whose steps through the cache differ from its forward: found out, and read whole instead."""
    honest, lying = tiny_model("llama"), tiny_model("llama")
    forward = lying.forward

    def lie(input_ids, past_key_values=None, position_ids=None, attention_mask=None, use_cache=None):
        out = forward(input_ids, attention_mask, position_ids, past_key_values, use_cache=use_cache)
        if past_key_values is not None and input_ids.shape[1] == 1:
            out.logits = out.logits.flip(-1)
        return out

    lying.forward = lie
    prompts = prompts_of(5, 9)
    with pytest.warns(UserWarning, match="logits with the cache are off"):
        found = LocalEngine(model_of(lying, forest=False)).generate(prompts, GREEDY)
    assert [list(answers[0].token_ids) for answers in found] == [generated(honest, p, [2]) for p in prompts]


@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8}])
def test_two_tokens_are_drawn_from_the_exact_distribution(filters):
    """Chi-square over all pairs of tokens of an 8-token vocabulary, so the second's noise is its own."""
    hf = tiny_model("llama", vocab_size=8, eos_token_id=None, initializer_range=0.2)
    engine = LocalEngine(model_of(hf))
    engine._stop_ids = torch.tensor([], dtype=torch.long)
    params = SamplingParams(n=6000, max_new_tokens=2, seed=3, **filters)
    prompt = [3, 1, 4]
    with torch.no_grad():
        first = distribution(hf(torch.tensor([prompt])).logits[:, -1], params)[0].exp()
        second = torch.stack(
            [distribution(hf(torch.tensor([[*prompt, a]])).logits[:, -1], params)[0].exp() for a in range(8)]
        )
    expected = (first[:, None] * second * params.n).flatten().double()
    drawn = Counter(answer.token_ids for answer in engine.generate([prompt], params)[0])
    counts = torch.tensor([drawn[a, b] for a in range(8) for b in range(8)]).double()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    table = torch.stack([torch.cat([x[common], x[~common].sum()[None]]) for x in (counts, expected)])
    table = table[:, table[1] > 0]
    assert table.shape[1] > 10
    assert stats.chisquare(table[0], table[1] * table[0].sum() / table[1].sum()).pvalue > 1e-3


@pytest.mark.filterwarnings("ignore:sampling from")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.8, "top_k": 20}, {"temperature": 0}])
def test_logps_are_those_of_a_dense_forward(arch, filters):
    """Long enough for the cache to grow and for sliding windows to leave the prompt behind."""
    hf = tiny_model(arch)
    params = SamplingParams(n=3, max_new_tokens=40, **filters)
    prompts = prompts_of(4, 13, 37)
    prompts[2][:4] = prompts[0]  # two prompts that begin alike
    found = LocalEngine(model_of(hf)).generate(prompts, params)
    assert max(len(answer.token_ids) for answers in found for answer in answers) > 32
    for prompt, answers in zip(prompts, found, strict=True):
        for answer in answers:
            ids = torch.tensor([[*prompt, *answer.token_ids]])
            with torch.no_grad():
                logits = hf(ids).logits[0, len(prompt) - 1 : -1]
            said = torch.tensor(answer.token_ids)[:, None]
            own = logits.log_softmax(-1).gather(-1, said)[:, 0]
            drawn = torch.zeros_like(own)
            if params.temperature:
                drawn = distribution(logits, params).gather(-1, said)[:, 0]
            torch.testing.assert_close(torch.tensor(answer.model_logps), own, rtol=1e-4, atol=2e-4)
            torch.testing.assert_close(torch.tensor(answer.logps), drawn, rtol=1e-4, atol=2e-4)
            assert filters or answer.logps == answer.model_logps


def test_an_answer_does_not_depend_on_its_batch():
    """Other batch sizes, other neighbours, rows that leave early: the same tokens."""
    model = model_of(tiny_model("qwen2"))
    params = SamplingParams(n=5, max_new_tokens=24, temperature=1.5, seed=11)
    prompts = prompts_of(6, 3, 12, 6, 20)
    whole = LocalEngine(model).generate(prompts, params)
    assert {len(answer.token_ids) for answers in whole for answer in answers} != {24}
    for batch_tokens in (1, 100, 333):
        assert tokens_of(LocalEngine(model, batch_tokens).generate(prompts, params)) == tokens_of(whole)
    others = [*prompts_of(9, 2, seed=5), prompts[2], *prompts_of(40, seed=6)]
    assert tokens_of(LocalEngine(model).generate(others, params))[2] == tokens_of(whole)[2]
    assert tokens_of(
        LocalEngine(model).generate(prompts, params.model_copy(update={"seed": 12}))
    ) != tokens_of(whole)
    assert len({answer.token_ids for answer in whole[0]}) == 5


def tokens_of(answers):
    return [[answer.token_ids for answer in row] for row in answers]


def test_streaming_says_what_generating_says():
    model = model_of(tiny_model("llama"))
    engine = LocalEngine(model)
    for params in (GREEDY, SamplingParams(max_new_tokens=20, seed=4)):
        prompt = prompts_of(7)[0]
        assert tuple(engine.stream(prompt, params)) == engine.generate([prompt], params)[0][0].token_ids


def test_a_stop_string_may_span_tokens():
    """`t o p` over three tokens: the tokens run to the one that completes it, and no further."""
    tokenizer = tiny_tokenizer()
    word = [tokenizer.convert_tokens_to_ids(c) for c in "abstopcd"]
    engine = LocalEngine(model_of(Parrot([9, *word])))
    with pytest.warns(UserWarning, match="slower"):
        found = engine.generate([[9]], SamplingParams(max_new_tokens=8, stop=("never", "top")))[0][0]
    assert found.token_ids == tuple(word[:6])
    assert found.finish == "stop"
    assert tuple(engine.stream([9], SamplingParams(max_new_tokens=8, stop=("top",)))) == found.token_ids


@pytest.mark.parametrize("forest", [True, False])
def test_an_answer_is_cut_off_at_the_models_length_and_a_prompt_must_leave_room(forest):
    """One row is over long before the others and stays in the batch, where it must not pass the end."""
    engine = LocalEngine(model_of(tiny_model("gpt2", n_positions=24, eos_token_id=None), forest))
    engine._stop_ids = torch.tensor([], dtype=torch.long)
    found = engine.generate(prompts_of(23, *[12] * 20), SamplingParams(max_new_tokens=40))
    assert [len(answers[0].token_ids) for answers in found] == [1, *[12] * 20]
    assert {answers[0].finish for answers in found} == {"length"}
    with pytest.raises(ConfigError, match="prompt 1 has 24 tokens and the model takes 24"):
        engine.generate(prompts_of(4, 24), GREEDY)
    with pytest.raises(ConfigError, match="prompt 0 has no tokens"):
        engine.generate([[]], GREEDY)


def test_sampling_leaves_a_model_in_training_as_it_was():
    hf = tiny_model("llama", attention_dropout=0.5)
    hf.train()
    engine = LocalEngine(model_of(hf))
    first = engine.generate(prompts_of(5), GREEDY)
    assert hf.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in hf.parameters())
    assert engine.generate(prompts_of(5), GREEDY) == first
    hf(torch.tensor(prompts_of(5))).logits.sum().backward()  # weights are no inference tensors
    assert engine.generate([], GREEDY) == []


def test_a_lora_model_is_sampled_with_its_adapter(tmp_path):
    spec = ModelSpec(path=str(tiny_folder("qwen2", tmp_path / "m")), lora=LoRA(rank=4))
    model = load_model(spec, dtype=torch.float32, train=True)
    plain = load_model(tmp_path / "m", dtype=torch.float32)
    for name, parameter in model.hf.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts = prompts_of(5, 9)
    found = LocalEngine(model).generate(prompts, GREEDY)
    model.hf.eval()
    stop = sorted(stop_ids(model))
    assert [list(a[0].token_ids) for a in found] == [generated(model.hf, p, stop) for p in prompts]
    assert tokens_of(found) != tokens_of(LocalEngine(plain).generate(prompts, GREEDY))


def test_a_reward_model_cannot_write():
    model = model_of(tiny_model("llama"))
    model.lm_head = False
    with pytest.raises(ConfigError, match="cannot write"):
        LocalEngine(model)


def test_the_scripted_engine_keeps_the_protocol():
    engine = ScriptedEngine({(1, 2): [(7, 8, 9), (7,)]})
    found = engine.generate([(1, 2)], SamplingParams(n=2, max_new_tokens=2))
    assert [(answer.token_ids, answer.finish) for answer in found[0]] == [((7, 8), "length"), ((7,), "stop")]
    assert found[0][0].logps == (0.0, 0.0)
    with pytest.raises(ConfigError, match="asked for more"):
        engine.generate([(5,)], SamplingParams())
    assert len(engine.asked) == 2
    echo = ScriptedEngine(lambda prompt, sample: [*prompt, sample])
    assert echo.generate([(3,)], SamplingParams(n=2))[0][1].token_ids == (3, 1)


def test_ids_that_only_round_the_vocabulary_up_are_never_sampled(tmp_path):
    """An untrained model gives them as much probability as any; no tokenizer could read them."""
    from tiny import VOCAB, tiny_folder

    from posttrain.models.load import load_model

    folder = tiny_folder("qwen2", tmp_path / "m", vocab_size=VOCAB + 640)
    engine = LocalEngine(load_model(folder, dtype=torch.float32))
    params = SamplingParams(n=20, max_new_tokens=20, temperature=5.0)
    ids = [i for completion in engine.generate([[5, 6, 7]], params)[0] for i in completion.token_ids]
    assert len(ids) > 100
    assert max(ids) < VOCAB
