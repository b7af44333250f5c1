"""The vLLM engine against a fake of exactly the calls it makes; vLLM itself cannot run here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import tiny_folder, tiny_tokenizer

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, PosttrainError
from posttrain.common.step import StepContext
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.engines.vllm import Vllm, VllmEngine
from posttrain.formats.write import write_records
from posttrain.models.template import ChatTemplate
from posttrain.records import Message, Prompt, Provenance, Samples


@dataclass
class FakeLogprob:
    logprob: float


@dataclass
class FakeOutput:
    token_ids: list[int]
    logprobs: list[dict[int, FakeLogprob]]
    finish_reason: str


@dataclass
class FakeRequestOutput:
    outputs: list[FakeOutput]


@dataclass
class FakeVllm:
    """What `vllm.LLM` and `vllm.SamplingParams` were called with. ends: how requests end."""

    ends: str = "stop"
    made: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)


@pytest.fixture
def fake(monkeypatch) -> FakeVllm:
    seen = FakeVllm()

    class LLM:
        def __init__(self, *, model, tokenizer, dtype, max_model_len, tensor_parallel_size, **more) -> None:
            named = {"model": model, "tokenizer": tokenizer, "dtype": dtype, "max_model_len": max_model_len}
            seen.made.append(named | {"tensor_parallel_size": tensor_parallel_size} | more)

        def generate(self, prompts, sampling_params, *, use_tqdm):
            assert len(prompts) == len(sampling_params)
            assert use_tqdm is False
            seen.prompts += prompts
            return [
                self._answer(prompt, params) for prompt, params in zip(prompts, sampling_params, strict=True)
            ]

        def _answer(self, prompt, params) -> FakeRequestOutput:
            ids = [params["seed"] % 300 + 3, params["stop_token_ids"][0]]
            logprobs = [{1: FakeLogprob(-9.0), token: FakeLogprob(-0.25 * token)} for token in ids]
            return FakeRequestOutput([FakeOutput(ids, logprobs, seen.ends)])

        def collective_rpc(self, method, *, kwargs):
            seen.calls.append((method, kwargs))

        def reset_prefix_cache(self):
            seen.calls.append("reset_prefix_cache")

    def params(**given):
        seen.params.append(given)
        return given

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, params  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return seen


def engine() -> VllmEngine:
    return VllmEngine(Path("model"), ChatTemplate(tiny_tokenizer(), "chatml"), Vllm())


def test_ids_go_in_and_ids_logprobs_and_finish_come_out(fake):
    params = SamplingParams(
        n=2, max_new_tokens=9, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, stop=("\n",), seed=4
    )
    said = engine().generate([[5, 6], [7]], params)
    assert fake.prompts == [{"prompt_token_ids": ids} for ids in ([5, 6], [5, 6], [7], [7])]
    assert [len(samples) for samples in said] == [2, 2]
    seeds = [given.pop("seed") for given in fake.params]
    assert len(set(seeds)) == 4
    stop_ids = list(ChatTemplate(tiny_tokenizer(), "chatml").stop_ids)
    assert fake.params[0] == {
        "n": 1,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "max_tokens": 9,
        "stop": ["\n"],
        "stop_token_ids": stop_ids,
        "skip_special_tokens": False,
        "logprobs": 0,
    }
    first = said[0][0]
    assert first.token_ids == (seeds[0] % 300 + 3, stop_ids[0])
    assert first.logps == tuple(-0.25 * token for token in first.token_ids)
    assert first.finish == "stop"
    assert fake.made[0]["logprobs_mode"] == "processed_logprobs"


def test_filters_that_are_off_are_said_to_be_off_and_greedy_is_certain(fake):
    (said,), *_ = engine().generate([[5]], SamplingParams(temperature=0))
    assert (fake.params[0]["top_k"], fake.params[0]["top_p"], fake.params[0]["min_p"]) == (0, 1.0, 0.0)
    assert said.logps == (0.0, 0.0)


def test_a_request_that_was_broken_off_is_no_answer(fake):
    fake.ends = "abort"
    with pytest.raises(PosttrainError, match="'abort'"):
        engine().generate([[5]], SamplingParams())


def test_weights_are_exchanged_and_what_was_cached_is_forgotten(fake):
    engine().update_weights(Path("runs/round-2/model"))
    assert fake.calls == [("reload_weights", {"weights_path": "runs/round-2/model"}), "reset_prefix_cache"]


def test_the_sample_step_runs_on_it(fake, tmp_path):
    folder = tiny_folder("qwen2", tmp_path / "tiny", max_position_embeddings=96)
    long, short = (
        Prompt(provenance=Provenance(id=i), messages=(Message(role="user", content=text),))
        for i, text in (("long", "word " * 100), ("short", "Hi"))
    )
    write_records(tmp_path / "prompts.jsonl", [long, short])
    given = {
        "engine": {"name": "vllm", "tensor_parallel_size": 2},
        "model": str(folder),
        "precision": "bfloat16",
    }
    given |= {"prompts": str(tmp_path / "prompts.jsonl"), "max_rejected": 0.5, "n": 2}
    cfg = parse(SampleConfig, given, "test")
    summary = STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "sample"))
    (row,) = map(
        Samples.model_validate_json, (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    )
    assert row.model == "tiny"
    assert [response.finish for response in row.responses] == ["stop", "stop"]
    assert (summary["rejected"], summary["tokens"]) == (1, 4)
    assert fake.made == [
        {
            "model": str(folder),
            "tokenizer": str(folder),
            "dtype": "bfloat16",
            "max_model_len": None,
            "tensor_parallel_size": 2,
            "gpu_memory_utilization": 0.9,
            "trust_remote_code": False,
            "logprobs_mode": "processed_logprobs",
        }
    ]


def test_what_it_cannot_take_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="'device' is set, and engine vllm takes none"):
        parse(SampleConfig, {"engine": "vllm", "model": "m", "prompts": "p", "device": "cpu"}, "test")
    with pytest.raises(ConfigError, match="'model' is missing"):
        parse(SampleConfig, {"engine": "vllm", "prompts": "p"}, "test")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'vllm>="):
        engine()


def test_a_prompt_may_have_a_limit_of_its_own(fake):
    engine().generate([[5], [7]], SamplingParams(n=2, max_new_tokens=9), limits=[3, 20])
    assert [given["max_tokens"] for given in fake.params] == [3, 3, 9, 9]
