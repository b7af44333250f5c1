"""What the http engine is told: keys stay secret, and what a server would ignore is refused."""

from __future__ import annotations

import json

import pytest
from chat_server import Answer, echo, in_turn, serving
from http_engine import SECRET, config, impatient, out_of, rejected, run  # noqa: F401

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.common.step import StepContext
from posttrain.engines.engines import read_engine
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.flow.fingerprint import Outsiders, fingerprint
from posttrain.flow.hashing import Hasher


def test_the_key_is_sent_and_nowhere_written(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", SECRET)
    refused = Answer({"error": {"message": f"not you, {SECRET}"}}, 400)
    with serving(in_turn(refused, echo)) as (url, seen):
        cfg = config(tmp_path, url, engine={"api_key_env": "MY_KEY", "concurrency": 1}, max_rejected=0.5)
        summary = STEP.run(cfg, StepContext(out_of(tmp_path), tmp_path / "state", "sample"))
    assert seen.headers[0]["authorization"] == f"Bearer {SECRET}"
    identity = fingerprint(STEP, cfg, lambda name: None, Outsiders(Hasher())).identity
    written = json.dumps([summary, identity, cfg.model_dump(mode="json", serialize_as_any=True)])
    written += "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert SECRET not in written
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert "not you, [key]" in rejected(tmp_path)[0]["reason"]


def test_without_a_named_key_none_is_sent_and_a_missing_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving() as (url, seen):
        run(tmp_path / "a", url)
        assert SECRET not in seen.headers[0]["authorization"]
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(ConfigError, match="MY_KEY"):
            run(tmp_path / "b", url, engine={"api_key_env": "MY_KEY"})


def test_what_matters_is_in_the_key_and_nothing_else(tmp_path):
    def key(url="http://a/v1", fields=None, **engine):
        cfg = config(tmp_path, url, engine=engine, **(fields or {}))
        return fingerprint(STEP, cfg, lambda name: None, Outsiders(Hasher())).key

    assert key() == key("https://b/v1", concurrency=2, timeout_s=1, retries=0, api_key_env="X")
    assert key() == key(budget={"tokens": 5})
    assert key() != key(model="writer-2")
    assert key() != key(fields={"temperature": 0.5})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "runs/sft"}, "'model' is set, and engine http takes none"),
        ({"precision": "float32"}, "'precision' is set"),
        ({"batch_tokens": 9}, "'batch_tokens' is set"),
        ({"top_k": 5}, r"set engine.extensions: \[top_k\]"),
        ({"min_p": 0.1}, r"set engine.extensions: \[min_p\]"),
    ],
)
def test_what_a_server_would_ignore_is_refused_before_anything_runs(tmp_path, fields, says):
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, "http://a/v1", **fields)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"base_url": "localhost:8000"}, "begins with http"),
        ({"base_url": "http://me:pw@host/v1"}, "no user, password or query"),
        ({"base_url": "http://host/v1?key=abc"}, "no user, password or query"),
        ({"api_key_env": SECRET}, "not the name of an environment variable"),
        ({"modell": "x"}, "did you mean 'model'"),
        ({"name": "htp"}, "did you mean 'http'"),
        ({"name": "posttrain.records:Prompt"}, "is no engine"),
    ],
)
def test_an_engine_that_does_not_hold_is_refused_without_repeating_secrets(tmp_path, engine, says):
    with pytest.raises(ConfigError, match=says) as e:
        config(tmp_path, "http://a/v1", engine=engine)
    for secret in (SECRET, "me:pw", "abc"):
        assert secret not in str(e.value)


def test_a_model_is_needed_where_the_engine_has_none(tmp_path):
    with pytest.raises(ConfigError, match="'model' is missing: engine local needs one"):
        parse(SampleConfig, {"prompts": "p"}, "test")
    assert parse(SampleConfig, {"prompts": "p", "model": "m"}, "test").engine == read_engine(
        {"name": "local"}
    )
