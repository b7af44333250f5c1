"""The http engine against a real server on this machine: what it asks, takes for an answer, and stops at."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import Answer, completion, echo, in_turn, serving
from http_engine import PROMPTS, SECRET, ask, impatient, out_of, rejected, run  # noqa: F401

from posttrain.common.errors import DataError
from posttrain.engines import retrying
from posttrain.engines.retrying import _backoff, _retry_after
from posttrain.engines.server import ServerError
from posttrain.records import ImagePart, TextPart


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


def test_concurrency_is_used_and_bounded(tmp_path):
    many = [ask(f"q{i}", f"Say {i}") for i in range(12)]
    with serving(lambda body: Answer(echo(body).body, wait_s=0.05)) as (url, seen):
        _, rows = run(tmp_path, url, many, {"concurrency": 3})
    assert seen.most_at_once == 3
    assert [row.responses[0].text.split(" #")[0] for row in rows] == [f"Say {i}" for i in range(12)]


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


def test_extensions_are_sent(tmp_path):
    with serving() as (url, seen):
        run(tmp_path, url, engine={"extensions": ["top_k", "min_p"]}, top_k=5, min_p=0.1)
    assert (seen.bodies[0]["top_k"], seen.bodies[0]["min_p"]) == (5, 0.1)


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


def test_waits_grow_and_a_date_is_understood():
    for attempt in range(12):
        full = min(retrying._FIRST_S * 2**attempt, 30.0)
        assert full / 2 <= _backoff(attempt) <= full
    assert _retry_after({"retry-after": "2"}) == 2.0
    assert _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _retry_after({"retry-after": soon}) <= 30
    assert _retry_after({}) == _retry_after({"retry-after": "soon"}) == 0.0
