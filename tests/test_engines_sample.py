"""The `sample` step: rows that keep what was sampled and where it came from, and survive a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.engines import sample
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import Completion, SamplingParams
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.engines.scripted import ScriptedEngine
from posttrain.engines.token_writer import as_response, model_name, respond
from posttrain.engines.writer import Written
from posttrain.formats.write import write_records
from posttrain.models.spec import ModelSpec
from posttrain.models.template import ChatTemplate
from posttrain.records import Comparison, Message, Prompt, Provenance, Response, Samples


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_folder("qwen2", tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=96)


def ask(name: str, text: str = "What is 12 + 30?", **fields) -> Prompt:
    message = Message(role="user", content=text)
    return Prompt(provenance=Provenance(id=name, licence="MIT", **fields), messages=(message,))


def run(folder: Path, model: Path, rows, **fields):
    write_records(folder / "prompts.jsonl", rows)
    given = {"model": str(model), "prompts": str(folder / "prompts.jsonl"), "precision": "float32"}
    cfg = parse(SampleConfig, given | {"max_new_tokens": 8} | fields, "test")
    ctx = StepContext(folder / "out", folder / "state", "sample")
    summary = STEP.run(cfg, ctx)
    lines = (folder / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [Samples.model_validate_json(line) for line in lines]


def test_rows_keep_tokens_logprobs_and_origin(tmp_path, model):
    prompts = [ask("a", makers={"prompt": "anna"}), ask("b", "Write a polite email.")]
    summary, rows = run(tmp_path, model, prompts, n=3, temperature=0.5, top_p=0.9, seed=4)
    assert [row.prompt for row in rows] == prompts
    assert summary["responses"] == 6 == summary["stopped"] + summary["cut_off"]
    assert summary["tokens"] == sum(len(r.token_ids) for row in rows for r in row.responses)
    provenance = rows[0].provenance
    assert provenance.parents == ("a",)
    assert provenance.licence == "MIT"
    assert provenance.makers == {
        "prompt": "anna",
        "response": "tiny, max_new_tokens 8, temperature 0.5, top_p 0.9, seed 4",
    }
    assert len({row.provenance.id for row in rows}) == 2
    for response in rows[0].responses:
        assert len(response.logps) == len(response.token_ids) <= 8
        assert (response.finish == "length") == (len(response.token_ids) == 8)


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path, model, monkeypatch):
    monkeypatch.setattr(sample, "_CHUNK", 4)
    prompts = [ask(f"p{i}", f"What is {i} + {i}?") for i in range(7)]
    _, undisturbed = run(tmp_path / "whole", model, prompts, n=2)
    generate, calls = LocalEngine.generate, []

    def dies(self, asked, params, label="sample"):
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, asked, params, label)

    monkeypatch.setattr(LocalEngine, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", model, prompts, n=2)
    assert not (tmp_path / "killed" / "out" / "rows.jsonl").exists()
    _, resumed = run(tmp_path / "killed", model, prompts, n=2)
    assert resumed == undisturbed
    assert calls == [2, 2, 2, 2, 1]  # the two finished chunks are not asked again
    assert len({row.responses[0].token_ids for row in resumed}) > 1


def test_prompts_are_taken_from_other_rows_once(tmp_path, model):
    prompt = ask("a")
    pairs = [
        Comparison(
            provenance=Provenance(id=f"c{i}"),
            prompt=prompt,
            chosen=Response(text="42"),
            rejected=Response(text=f"{i}"),
        )
        for i in range(3)
    ]
    summary, rows = run(tmp_path, model, pairs)
    assert len(rows) == 1
    assert summary["repeated_prompts"] == 2


def test_a_line_that_stands_twice_in_a_file_is_asked_once(tmp_path, model):
    line = json.dumps({"prompt": [{"role": "user", "content": "a"}]})
    other = json.dumps({"prompt": [{"role": "user", "content": "b"}]})
    path = tmp_path / "raw.jsonl"
    path.write_text(f"{line}\n{other}\n{line}\n")
    summary, rows = run(tmp_path, model, [], prompts=str(path))
    assert [row.prompt.messages[0].content for row in rows] == ["a", "b"]
    assert summary["repeated_prompts"] == 1


def test_a_prompt_without_room_is_rejected_with_its_reason(tmp_path, model):
    prompts = [ask("short"), ask("long", "word " * 100)]
    summary, rows = run(tmp_path / "a", model, prompts, max_rejected=0.5)
    assert [row.prompt.provenance.id for row in rows] == ["short"]
    assert summary["rejected"] == 1
    rejected = json.loads((tmp_path / "a" / "out" / "rejected.jsonl").read_text("utf-8"))
    assert rejected["line"] == 2
    assert "the model takes 96" in rejected["reason"]
    with pytest.raises(DataError, match="max_rejected"):
        run(tmp_path / "b", model, prompts)
    with pytest.raises(DataError, match=r"no prompt to answer: 1 × .*rejected\.jsonl"):
        run(tmp_path / "c", model, prompts[1:], max_rejected=1.0)
    broken = tmp_path / "broken.jsonl"
    for text, why in (("", "it has no rows"), ('{"prompt"', "1 × invalid JSON")):
        broken.write_text(text)
        with pytest.raises(DataError, match=f"no prompt to answer: {why}"):
            run(tmp_path / "d", model, [], prompts=str(broken))


class Parrot(Config):
    """A third party's engine: repeats each prompt, and falls silent at the word "hush"."""

    takes: ClassVar[frozenset[str]] = frozenset()
    name: str = "polly"
    keeps: bool = False

    def check(self, params):
        if params.temperature == 0:
            raise ValueError("a parrot is never greedy")

    def open(self, job):
        assert job.model is None
        return self

    def turned_away(self, prompts):
        return ["too clever" if "why" in prompt.text else "" for prompt in prompts]

    def write(self, prompts, params, label="sample"):
        return [
            Written((), ("hush",) * params.n)
            if "hush" in prompt.text
            else Written((Response(text=prompt.text, finish="stop"),), ("tired",) * (params.n - 1))
            for prompt in prompts
        ]

    def spent(self):
        return {"seeds": 7}


def test_a_third_partys_engine_is_named_by_its_path(tmp_path):
    rows = [ask("a", "why?"), ask("b", "hello"), ask("c", "hush")]
    write_records(tmp_path / "prompts.jsonl", rows)
    given = {"engine": f"{__name__}:Parrot", "prompts": str(tmp_path / "prompts.jsonl"), "n": 3}
    cfg = parse(SampleConfig, given | {"max_rejected": 0.7}, "test")
    summary = STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "sample"))
    (row,) = map(
        Samples.model_validate_json, (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    )
    assert (row.model, [response.text for response in row.responses]) == ("polly", ["hello"])
    assert (summary["rejected"], summary["seeds"], summary["tokens"]) == (2, 7, None)
    assert summary["no_answer_reasons"] == {"hush": 3, "tired": 2}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in lines] == [
        (1, "too clever"),
        (2, "no answer: tired"),
        (2, "no answer: tired"),
        (3, "no answer: hush"),
    ]
    with pytest.raises(ConfigError, match="never greedy"):
        parse(SampleConfig, given | {"temperature": 0}, "test")


def test_limit_takes_the_first_prompts(tmp_path, model):
    _, rows = run(tmp_path, model, [ask(f"p{i}", f"{i}?") for i in range(5)], limit=2)
    assert [row.prompt.provenance.id for row in rows] == ["p0", "p1"]


def test_respond_asks_the_templates_prompt_and_cuts_text_at_a_stop_string():
    template = ChatTemplate(tiny_tokenizer(), "chatml")
    said = template.tokenizer("It is 42.\nUser: more", add_special_tokens=False)["input_ids"]
    engine = ScriptedEngine(lambda prompt, sample: [*said, template.stop_ids[0]])
    params = SamplingParams(n=2, stop=("\nUser:",))
    found = respond(engine, template, [ask("a")], params)
    assert [list(prompt) for prompt in engine.asked[0][0]] == [template.prompt(ask("a").messages)]
    assert [response.text for response in found[0]] == ["It is 42."] * 2
    assert found[0][0].token_ids == (*said, template.stop_ids[0])
    assert found[0][0].finish == "stop"


def test_the_models_own_logprobs_are_kept_where_they_are_others():
    template = ChatTemplate(tiny_tokenizer(), "chatml")
    same = as_response(Completion((5,), (-1.0,), "stop", (-1.0,)), template)
    other = as_response(Completion((5,), (-1.0,), "stop", (-2.0,)), template)
    assert (same.logps, same.model_logps) == ((-1.0,), None)
    assert (other.logps, other.model_logps) == ((-1.0,), (-2.0,))
    with pytest.raises(ValueError, match="model_logps and token_ids differ in length"):
        Response(text="a", token_ids=(5,), model_logps=(-1.0, -2.0))


def test_a_model_may_say_half_a_character():
    template = ChatTemplate(tiny_tokenizer(), "chatml")
    half = template.tokenizer("ä", add_special_tokens=False)["input_ids"][:1]
    response = as_response(Completion(tuple(half), (-1.0,), "length"), template)
    assert Response.model_validate_json(response.model_dump_json()) == response


def test_models_are_named_by_step_and_key(tmp_path):
    (tmp_path / "sft-0123").mkdir()
    manifest = {"step": "sft", "key": "0123456789abcdef", "inputs": {}}
    (tmp_path / "sft-0123" / "manifest.json").write_text(json.dumps(manifest))
    assert model_name(ModelSpec(path=str(tmp_path / "sft-0123"))) == "sft-0123456789ab"
    assert model_name(ModelSpec(path=str(tmp_path))) == tmp_path.name
    assert model_name(ModelSpec(path="Qwen/Qwen3-0.6B", revision="abc")) == "Qwen/Qwen3-0.6B@abc"


def test_the_config_is_strict_and_needs_no_torch():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        parse(SampleConfig, {"model": "m", "prompts": "p", "temprature": 1}, "step")


def test_the_engine_computes_in_the_precision_it_is_told(tmp_path, model, monkeypatch):
    seen = []
    generate = LocalEngine.generate
    monkeypatch.setattr(
        LocalEngine,
        "generate",
        lambda self, *a, **k: seen.append(self.model.hf.dtype) or generate(self, *a, **k),
    )
    run(tmp_path, model, [ask("a")], precision="bfloat16")
    assert seen == [torch.bfloat16]
