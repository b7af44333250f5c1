"""The http engine against a real model server: `transformers serve` on a tiny model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_serve_available

from posttrain.common.config import parse
from posttrain.common.errors import DataError
from posttrain.common.step import StepContext
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.formats.write import write_records
from posttrain.models.template import ChatTemplate
from posttrain.records import Message, Prompt, Provenance, Samples

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="transformers[serving] (fastapi, uvicorn, openai) is not installed"
)
START_S = 90


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tiny_folder("qwen2", tmp_path_factory.mktemp("serve") / "tiny", max_position_embeddings=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ChatTemplate(tokenizer, "chatml")  # becomes the tokenizer's own
    tokenizer.save_pretrained(folder)
    # `transformers serve` samples only where the model's own generation config says do_sample; random weights
    # say halves of characters, which are no text, unless they are kept from it
    halves = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    GenerationConfig(do_sample=True, eos_token_id=2, pad_token_id=0, suppress_tokens=halves).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def url(model, tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += [str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(health, timeout=1).read()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def ask(name: str, text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=name), messages=(Message(role="user", content=text),))


def run(folder: Path, url: str, model: Path, prompts, **fields):
    write_records(folder / "prompts.jsonl", prompts)
    out = folder / f"sample-{folder.name}"
    engine = {"name": "http", "base_url": url, "model": str(model), **fields.pop("engine", {})}
    given = {"engine": engine, "prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 12}
    summary = STEP.run(
        parse(SampleConfig, given | {"max_rejected": 0.9} | fields, "test"),
        StepContext(out, folder / "state", "sample", model.parent / "cache"),
    )
    lines = (out / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [Samples.model_validate_json(line) for line in lines]


PROMPTS = [ask(f"p{i}", text) for i, text in enumerate(("What is 12 + 30?", "Write a polite email.", "Add."))]


def test_greedy_answers_are_those_of_generate(tmp_path, url, model):
    summary, rows = run(tmp_path, url, model, PROMPTS, temperature=0)
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    expected = {}
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            said = hf.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        expected[prompt.provenance.id] = (tokenizer.decode(said, skip_special_tokens=True), len(said))
    assert rows
    for row in rows:
        text, tokens = expected[row.prompt.provenance.id]
        assert row.responses[0].text.strip() == text.strip()  # the server strips
        assert row.responses[0].finish == ("length" if tokens == 12 else "stop")
    assert len(rows) + summary["no_answer"] == len(PROMPTS)
    assert summary["completion_tokens"] == sum(tokens for _, tokens in expected.values())


def test_samples_differ_and_are_not_asked_for_twice(tmp_path, url, model):
    many = {"n": 4, "engine": {"concurrency": 4}}
    summary, rows = run(tmp_path, url, model, PROMPTS, **many)
    texts = {response.text for row in rows for response in row.responses}
    assert len(texts) > len(rows)
    assert summary["answers_paid"] == 12
    again, same = run(tmp_path / "b", "http://127.0.0.1:9/v1", model, PROMPTS, **many)  # nobody answers there
    assert again["cache_hits"] == 12
    assert [row.responses for row in same] == [row.responses for row in rows]


def test_what_the_server_does_not_know_is_not_ignored(tmp_path, url, model):
    with pytest.raises(DataError, match="HTTP 422: Unexpected fields in the request"):
        run(tmp_path, url, model, PROMPTS, top_k=5, engine={"extensions": ["top_k"]}, max_rejected=0.0)
