"""The http engine against a real server on this machine: faults, budgets, kills, nothing paid for twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from chat_server import Answer, completion, echo, in_turn, serving

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.common.step import StepContext
from posttrain.engines import retrying
from posttrain.engines.budget import Budget, Meter
from posttrain.engines.chat_replies import NoReply, Reply, from_json, to_json
from posttrain.engines.engines import read_engine
from posttrain.engines.openai_client import ChatClient
from posttrain.engines.reply_cache import Spent
from posttrain.engines.retrying import _backoff, _retry_after
from posttrain.engines.sample import STEP, SampleConfig
from posttrain.engines.server import OutOfBudget, Request, Server, ServerError
from posttrain.flow.fingerprint import Outsiders, fingerprint
from posttrain.flow.hashing import Hasher
from posttrain.flow.oneoff import run_into
from posttrain.formats.write import write_records
from posttrain.records import ImagePart, Message, Prompt, Provenance, Samples, TextPart

SECRET = "sk-very-secret-0123"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(retrying, "_FIRST_S", 0.01)


def ask(name: str, content="Say it") -> Prompt:
    return Prompt(provenance=Provenance(id=name), messages=(Message(role="user", content=content),))


PROMPTS = [ask(f"p{i}", f"Say {i}") for i in range(4)]


def config(folder: Path, url: str, prompts=PROMPTS, engine=None, **fields) -> SampleConfig:
    write_records(folder / "prompts.jsonl", prompts)
    used = {"name": "http", "base_url": url, "model": "writer-1"} | (engine or {})
    given = {"engine": used, "prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 50}
    return parse(SampleConfig, given | fields, "test")


def out_of(folder: Path) -> Path:
    return folder / f"sample-{folder.name}"


def run(folder: Path, url: str, prompts=PROMPTS, engine=None, cache: Path | None = None, **fields):
    cfg = config(folder, url, prompts, engine, **fields)
    summary = STEP.run(cfg, StepContext(out_of(folder), folder / "state", "sample", cache))
    lines = (out_of(folder) / "rows.jsonl").read_text("utf-8").splitlines()
    return summary, [Samples.model_validate_json(line) for line in lines]


def rejected(folder: Path) -> list[dict]:
    text = (out_of(folder) / "rejected.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def client(folder: Path, url: str, **fields) -> ChatClient:
    server = parse(Server, {"base_url": url, "model": "judge-1"} | fields, "test")
    return ChatClient(server, folder / "replies.sqlite", "payer")


def question(text: str = "Hi", draw: str = "", max_tokens: int = 50) -> Request:
    return Request({"messages": [{"role": "user", "content": text}]}, max_tokens, draw)


def test_answers_become_samples_with_their_origin(tmp_path):
    with serving() as (url, seen):
        summary, rows = run(tmp_path, url, n=2, temperature=0.5, top_p=0.9, stop=("#9",), seed=3)
    assert [row.prompt for row in rows] == PROMPTS
    texts = [response.text for row in rows for response in row.responses]
    assert len(set(texts)) == 8  # each draw has a seed of its own
    assert all(text.startswith(f"Say {i // 2} #") for i, text in enumerate(texts))
    response = rows[0].responses[0]
    assert (response.finish, response.token_ids, response.logps) == ("stop", None, None)
    assert rows[0].model == "writer-1"
    assert rows[0].provenance.makers["response"].startswith("writer-1, max_new_tokens 50, temperature 0.5")
    body = seen.bodies[0]
    assert {name: body[name] for name in ("model", "temperature", "top_p", "stop")} == {
        "model": "writer-1",
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["#9"],
    }
    assert body["max_completion_tokens"] == 50
    assert "top_k" not in body
    assert summary["tokens"] is None  # texts alone: how many tokens they have here is not known
    costs = ("answers_paid", "prompt_tokens", "completion_tokens", "answers_without_token_count")
    costs += ("usd", "retries", "cache_hits")
    assert {name: summary[name] for name in costs} == {
        "answers_paid": 8,
        "prompt_tokens": 80,
        "completion_tokens": 24,
        "answers_without_token_count": 0,
        "usd": None,
        "retries": 0,
        "cache_hits": 0,
    }


def test_what_passes_is_waited_out_and_retry_after_is_kept(tmp_path):
    limited = Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.3"})
    broken = Answer(b"oops", 503)
    faults = in_turn(limited, broken, Answer(drop=True), Answer(b"{half", 200), echo)
    with serving(faults) as (url, seen):
        began = time.monotonic()
        summary, rows = run(tmp_path, url, PROMPTS[:1])
        assert time.monotonic() - began >= 0.3
    assert rows[0].responses[0].text.startswith("Say 0")
    assert (summary["retries"], len(seen.bodies)) == (4, 5)
    assert all(body == seen.bodies[0] for body in seen.bodies)


def test_a_slow_answer_is_asked_for_again(tmp_path):
    slow = completion("late")
    with serving(in_turn(Answer(slow.body, wait_s=1.0), echo)) as (url, seen):
        _, rows = run(tmp_path, url, PROMPTS[:1], {"timeout_s": 0.2})
    assert rows[0].responses[0].text.startswith("Say 0")
    assert len(seen.bodies) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion("half", "content_filter"), "content filter"),
        (completion(None, "tool_calls"), "a tool call"),
        (completion(None, message={"role": "assistant", "content": None, "refusal": "no"}), "refusal"),
        (completion(""), "no text"),
        (completion("br\ufffdken"), "a U+FFFD replacement character"),
        (Answer({"choices": []}), "no choice"),
        (Answer(b"<html>"), "the answer is no JSON"),
        (Answer({"hello": 1}), "the answer is no chat completion"),
        (Answer({"error": {"message": "too long"}}, 400), "HTTP 400: too long"),
        (Answer({"detail": "what?"}, 422), "HTTP 422: what?"),
    ],
)
def test_no_answer_is_never_made_up(tmp_path, answer, reason):
    def say(body):
        return answer if body["messages"][-1]["content"] == "Say 1" else echo(body)

    with serving(say) as (url, _):
        summary, rows = run(tmp_path, url, max_rejected=0.5)
    assert [row.prompt.provenance.id for row in rows] == ["p0", "p2", "p3"]
    assert (summary["no_answer"], summary["rejected"], summary["responses"]) == (1, 1, 3)
    (entry,) = rejected(tmp_path)
    assert entry["line"] == 2
    assert reason in entry["reason"]
    assert "Say 1" in entry["row"]


def test_a_prompt_with_some_answers_keeps_them(tmp_path):
    texts = in_turn(completion("one"), completion("x", "content_filter"), completion("two", "length"))
    with serving(texts) as (url, _):
        summary, rows = run(tmp_path, url, PROMPTS[:1], {"concurrency": 1}, n=3)
    assert [(r.text, r.finish) for r in rows[0].responses] == [("one", "stop"), ("two", "length")]
    assert summary["no_answer_reasons"] == {"content filter": 1}
    assert (summary["rejected"], summary["cut_off"]) == (0, 1)
    assert rejected(tmp_path)[0]["reason"] == "no answer: content filter"


def test_too_many_without_an_answer_fail_the_step(tmp_path):
    with serving(lambda body: completion("x", "content_filter")) as (url, _), pytest.raises(DataError) as e:
        run(tmp_path, url)
    assert "4 × 'responses': no answer" in str(e.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer({"error": {"message": f"bad key {SECRET}"}}, 401), "HTTP 401: bad key"),
        (Answer({"error": {"message": "no such model"}}, 404), "HTTP 404: no such model"),
        (Answer({"error": {"message": "pay", "code": "insufficient_quota"}}, 429), "account is used up"),
        (Answer({"error": {"message": "later"}}, 429, {"Retry-After": "3600"}), "come back in 3600 s"),
        (Answer(b"oops", 500), "HTTP 500"),
        (Answer(drop=True), "cannot be reached"),
    ],
)
def test_a_server_that_will_not_work_stops_the_step(tmp_path, monkeypatch, answer, says):
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving(in_turn(echo, answer)) as (url, seen):
        given = {"api_key_env": "MY_KEY", "retries": 1, "concurrency": 1}
        with pytest.raises(ServerError, match="run again to go on") as e:
            run(tmp_path, url, engine=given)
        assert says in str(e.value)
        assert SECRET not in str(e.value)
        assert len(seen.bodies) <= 3
    assert not (out_of(tmp_path) / "rows.jsonl").exists()
    with serving() as (url, seen):  # elsewhere, and the one answer that there was is not asked for again
        summary, rows = run(tmp_path, url, engine=given)
    assert len(rows) == 4
    assert len(seen.bodies) == 3 == 4 - summary["cache_hits"]


def test_a_server_that_refuses_everything_is_not_asked_for_ever(tmp_path):
    many = [ask(f"q{i}", f"Say {i}") for i in range(60)]
    with serving(lambda body: Answer({"error": {"message": "no such field"}}, 400)) as (url, seen):
        with pytest.raises(ServerError, match="refused all of 16 requests: HTTP 400: no such field"):
            run(tmp_path, url, many, {"concurrency": 2})
        assert len(seen.bodies) <= 18


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


def test_concurrency_is_used_and_bounded(tmp_path):
    many = [ask(f"q{i}", f"Say {i}") for i in range(12)]
    with serving(lambda body: Answer(echo(body).body, wait_s=0.05)) as (url, seen):
        _, rows = run(tmp_path, url, many, {"concurrency": 3})
    assert seen.most_at_once == 3
    assert [row.responses[0].text.split(" #")[0] for row in rows] == [f"Say {i}" for i in range(12)]


def test_a_shared_cache_serves_other_steps_and_other_addresses(tmp_path):
    with serving() as (url, _):
        _, first = run(tmp_path / "a", url, cache=tmp_path / "cache", n=2)
    with serving() as (url, seen):
        summary, again = run(tmp_path / "b", url, cache=tmp_path / "cache", n=2)
        assert [row.responses for row in again] == [row.responses for row in first]
        assert (seen.bodies, summary["cache_hits"], summary["answers_paid"]) == ([], 8, 0)
        # more answers to more prompts: only those are asked for
        run(tmp_path / "c", url, [ask("new", "Say 9"), *PROMPTS], cache=tmp_path / "cache", n=3)
        assert len(seen.bodies) == 3 + 4
        run(tmp_path / "d", url, engine={"model": "writer-2"}, cache=tmp_path / "cache")
        assert len(seen.bodies) == 3 + 4 + 4


def test_a_greedy_answer_is_asked_for_once(tmp_path):
    with serving() as (url, seen):
        _, rows = run(tmp_path, url, PROMPTS[:2], n=3, temperature=0)
    assert [len(row.responses) for row in rows] == [3, 3]
    assert len(seen.bodies) == 2


def test_two_rows_with_one_question_are_answered_each(tmp_path):
    with serving() as (url, _):
        _, rows = run(tmp_path, url, [ask("a", "Same"), ask("b", "Same")], n=2)
    assert len({response.text for row in rows for response in row.responses}) == 4


def test_a_budget_in_tokens_is_a_ceiling_and_raising_it_goes_on(tmp_path):
    def say(body):
        return completion("fine", tokens=50, prompt=100)  # 150 an answer

    many = [ask(f"q{i}", f"Say {i}") for i in range(8)]
    with serving(say) as (url, seen):
        with pytest.raises(OutOfBudget) as e:
            run(tmp_path, url, many, {"budget": {"tokens": 800}, "concurrency": 4})
        # 256 around the prompt + its 5 bytes + 50 is the worst case: it no longer fits after the 4th
        assert "600 of 800 tokens spent on 4 answers" in str(e.value)
        assert len(seen.bodies) == 4
        with pytest.raises(OutOfBudget, match="600 of 800"):  # the same budget is still spent
            run(tmp_path, url, many, {"budget": {"tokens": 800}})
        assert len(seen.bodies) == 4
        summary, rows = run(tmp_path, url, many, {"budget": {"tokens": 5000}})
    assert len(rows) == 8
    assert len(seen.bodies) == 8
    assert (summary["answers_paid"], summary["cache_hits"]) == (8, 4)


def test_a_command_that_ran_out_of_budget_goes_on_in_its_folder(tmp_path):
    """With `--out`, a higher budget and another address are the same run: it resumes, and ends as a hit."""

    def say(body):
        return completion("fine", tokens=50, prompt=100)

    with serving(say) as (url, seen):
        with pytest.raises(OutOfBudget):
            run_into(STEP, config(tmp_path, url, engine={"budget": {"tokens": 500}}), tmp_path / "made")
        assert len(seen.bodies) == 2
    with serving(say) as (url, seen):
        done = run_into(STEP, config(tmp_path, url, engine={"budget": {"tokens": 9000}}), tmp_path / "made")
        assert done.summary["cache_hits"] == 2
        assert len(seen.bodies) == 2
        run_into(STEP, config(tmp_path, url, engine={"concurrency": 1}), tmp_path / "made")
        assert len(seen.bodies) == 2
    assert not (tmp_path / "made" / "state").exists()


def test_a_budget_in_money(tmp_path):
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    assert Budget(usd=1, **prices).money(500_000, 20_000) == pytest.approx(0.5 + 0.2)
    # worst case of a request: (256 + 5) / 1e6 + 50 * 10 / 1e6 = 0.000761; its price: 10/1e6 + 30/1e6
    with serving() as (url, _):
        with pytest.raises(OutOfBudget, match=r"\$0.0001 of \$0.00083 spent on 2 answers"):
            run(tmp_path, url, engine={"budget": {"usd": 0.00083, **prices}, "concurrency": 1})
        summary, _ = run(tmp_path, url, engine={"budget": prices})
    assert summary["usd"] == pytest.approx(4 * (10 + 30) / 1e6)


def test_a_meter_waits_for_what_is_under_way():
    async def scene() -> list[str]:
        meter, said = Meter(Budget(tokens=100), Spent()), []
        assert await meter.reserve(60, 10)

        async def second():
            said.append(f"second {await meter.reserve(50, 10)}")

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        said.append("settled")
        await meter.settle((60, 10), Spent(1, 30, 5))
        await waiting
        said.append(f"third {meter.spent.input + meter.spent.output}")
        return said

    assert asyncio.run(scene()) == ["settled", "second True", "third 35"]


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"usd": 1},
        {"usd": 1, "usd_per_million_input": 1},
        {"tokens": 5, "usd_per_million_output": 1},
        {"tokens": 0},
    ],
)
def test_a_budget_that_means_nothing_is_refused(budget):
    with pytest.raises(ConfigError):
        parse(Budget, budget, "test")


def test_a_server_that_does_not_count_cannot_be_held_to_a_budget(tmp_path):
    with serving(lambda body: Answer({"choices": [{"message": {"content": "hi"}}]})) as (url, seen):
        with pytest.raises(ServerError, match="does not count tokens"):
            run(tmp_path / "a", url, engine={"budget": {"tokens": 10_000}, "concurrency": 1})
        assert len(seen.bodies) == 1
        summary, rows = run(tmp_path / "b", url)
    assert rows[0].responses[0].finish is None
    assert summary["answers_without_token_count"] == 4


def test_a_server_that_ignores_the_length_is_noticed(tmp_path):
    with serving(lambda body: completion("long", tokens=51)) as (url, _), pytest.raises(ServerError) as e:
        run(tmp_path, url)
    assert "wrote 51 tokens where 50 were allowed" in str(e.value)
    assert "length_field" in str(e.value)


def test_the_older_name_of_the_length(tmp_path):
    with serving() as (url, seen):
        run(tmp_path, url, engine={"length_field": "max_tokens", "send_seed": False})
    assert seen.bodies[0]["max_tokens"] == 50
    assert not {"seed", "max_completion_tokens"} & set(seen.bodies[0])


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


def test_extensions_are_sent(tmp_path):
    with serving() as (url, seen):
        run(tmp_path, url, engine={"extensions": ["top_k", "min_p"]}, top_k=5, min_p=0.1)
    assert (seen.bodies[0]["top_k"], seen.bodies[0]["min_p"]) == (5, 0.1)


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


def test_token_ids_and_logprobs_travel_where_the_server_gives_them(tmp_path):
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
    with serving(lambda body: completion("ab", token_ids=[7, 9], logprobs=logprobs)) as (url, seen):
        _, rows = run(tmp_path / "a", url, engine={"token_ids": "model"})
        assert (rows[0].responses[0].token_ids, rows[0].responses[0].logps) == ((7, 9), (-0.5, -1.5))
        assert seen.bodies[0]["return_token_ids"] is seen.bodies[0]["logprobs"] is True
        _, rows = run(tmp_path / "b", url)
        assert rows[0].responses[0].token_ids is None
        for said, known in (("model", (None, (-0.5, -1.5))), ("sampled", ((-0.5, -1.5), None))):
            _, rows = run(tmp_path / said, url, engine={"token_ids": said}, temperature=0.7)
            assert (rows[0].responses[0].logps, rows[0].responses[0].model_logps) == known
    with serving() as (url, seen):
        for says in ("gives no token ids", "without token ids"):  # at the first answer; from the cache
            with pytest.raises(ServerError, match=says):
                run(tmp_path / "c", url, PROMPTS[:1], engine={"token_ids": "model", "concurrency": 1})
        assert len(seen.bodies) == 1


def test_images_are_sent_as_data_and_files_are_turned_away(tmp_path):
    data = "data:image/png;base64,AAAA"
    seen_image = ask("a", (TextPart(text="What is this?"), ImagePart(image=data)))
    file = ask("b", (TextPart(text="And this?"), ImagePart(image="cat.png")))
    with serving(lambda body: completion("a cat")) as (url, seen):
        summary, _ = run(tmp_path, url, [seen_image, file], max_rejected=0.5)
    parts = seen.bodies[0]["messages"][0]["content"]
    assert parts[1] == {"type": "image_url", "image_url": {"url": data}}
    assert summary["rejected"] == 1
    assert "an image that is a file" in rejected(tmp_path)[0]["reason"]


def test_equal_requests_share_an_answer_and_draws_do_not(tmp_path):
    with serving(in_turn(completion("one"), completion("two"), completion("three"))) as (url, seen):
        asking = client(tmp_path, url, concurrency=1)
        said = asking.ask_all([question("a"), question("a"), question("a", "1")], "judge")
        assert [reply.text for reply in said] == ["one", "one", "two"]
        assert len(seen.bodies) == 2

        # inside an event loop, as in a notebook
        async def cell():
            return asking.ask_all([question("a")], "judge")

        assert asyncio.run(cell())[0].text == "one"
        assert len(seen.bodies) == 2


def test_replies_come_back_from_the_cache_as_they_were():
    for reply in (
        Reply("hä\ud800", "stop", (1, 2), (-0.1, -2.5), 7, 2),
        Reply("x", None),
        NoReply("content filter", 7, 0),
    ):
        assert from_json(to_json(reply)) == reply


def test_a_damaged_cache_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "replies.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with serving() as (url, seen):
        with pytest.raises(StoreError, match=r"replies.sqlite.*delete it"):
            client(tmp_path, url).ask_all([question()], "judge")
        assert seen.bodies == []


def test_payments_are_booked_to_whoever_paid(tmp_path):
    with serving() as (url, _):
        first = client(tmp_path, url)
        first.ask_all([question("a"), question("b")], "judge")
        second = ChatClient(first.server, tmp_path / "replies.sqlite", "another")
        second.ask_all([question("a"), question("c")], "judge")
    assert first.spent()["prompt_tokens"] == 20
    assert second.spent()["prompt_tokens"] == 10


def test_waits_grow_and_a_date_is_understood():
    for attempt in range(12):
        full = min(retrying._FIRST_S * 2**attempt, 30.0)
        assert full / 2 <= _backoff(attempt) <= full
    assert _retry_after({"retry-after": "2"}) == 2.0
    assert _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _retry_after({"retry-after": soon}) <= 30
    assert _retry_after({}) == _retry_after({"retry-after": "soon"}) == 0.0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_pays_for_nothing_twice(tmp_path, how):
    """Cut off in the middle: what was answered is on the disk, and only the rest is asked for again."""
    many = [ask(f"q{i}", f"Say {i}") for i in range(20)]
    with serving(lambda body: Answer(echo(body).body, wait_s=0.05)) as (url, seen):
        cfg = config(tmp_path, url, many, {"concurrency": 2})
        (tmp_path / "cfg.json").write_text(cfg.model_dump_json(exclude_unset=True))
        code = (
            # where make runs in the background, the shell has its children ignore Ctrl-C
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "import json; from pathlib import Path; from posttrain.common.step import StepContext;"
            "from posttrain.engines.sample import STEP, SampleConfig;"
            f"folder = Path({str(tmp_path)!r});"
            "cfg = SampleConfig.model_validate(json.loads((folder / 'cfg.json').read_text()));"
            f"STEP.run(cfg, StepContext(folder / {out_of(tmp_path).name!r}, folder / 'state', 'sample'))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 60
        while len(seen.bodies) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        assert process.wait(timeout=10) != 0
        asked_before = len(seen.bodies)
        with sqlite3.connect(tmp_path / "state" / "replies" / "http.sqlite") as kept:
            (answered,) = kept.execute("SELECT COUNT(*) FROM replies").fetchone()
        assert asked_before - 2 <= answered < 20  # at most the two under way are lost
        summary, rows = run(tmp_path, url, many, {"concurrency": 2})
    assert len(rows) == 20
    assert summary["cache_hits"] == answered
    assert len(seen.bodies) - asked_before == 20 - answered
    assert summary["answers_paid"] == 20
