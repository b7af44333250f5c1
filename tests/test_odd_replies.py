"""Replies of servers that cannot be, and damage to what is kept of them."""

from __future__ import annotations

import json
import sqlite3

import pytest
from chat_server import Answer, completion, echo, serving
from http_engine import PROMPTS, client, impatient, out_of, question, rejected, run  # noqa: F401

from posttrain.common.chunks import in_chunks
from posttrain.common.errors import StoreError
from posttrain.engines.chat_replies import Unreadable, from_json, read_reply

IDS = {"token_ids": [7, 9], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.5}]}}
ODD = {
    "logprobs a list": (completion("x", logprobs=[1]), "logprobs of '[1]'"),
    "content a number": (completion("x", logprobs={"content": 5}), "logprobs of"),
    "finish a list": (completion("x", finish=["stop"]), "finish_reason of"),
    "deep": (Answer(b"[" * 200_000), "no JSON"),
    "many tokens": (completion("x", prompt=10**30), "more prompt_tokens than there can be"),
    "negative id": (completion("x", **IDS | {"token_ids": [7, -9]}), "the token ids -9 to 7"),
    "endless id": (completion("x", **IDS | {"token_ids": [7, 10**40]}), "the token ids 7 to 1000"),
    "above certain": (
        completion("x", **IDS | {"logprobs": {"content": [{"logprob": 0.5}, {"logprob": -1}]}}),
        "a log-probability of 0.5",
    ),
}


def body(answer: Answer) -> bytes:
    return answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()


@pytest.mark.parametrize("name", ODD)
def test_a_reply_that_cannot_be_is_unreadable(name):
    answer, says = ODD[name]
    with pytest.raises(Unreadable) as e:
        read_reply(body(answer))
    assert says in str(e.value)


def test_what_can_be_is_read():
    whole = read_reply(body(completion("x", **IDS)))
    assert (whole.token_ids, whole.logps) == ((7, 9), (-0.5, -1.5))
    rounded = completion("x", **IDS | {"logprobs": {"content": [{"logprob": 1e-6}, {"logprob": -1}]}})
    assert read_reply(body(rounded)).logps == (1e-6, -1.0)
    for lacking in (None, {}, {"content": None}, {"content": [{"logprob": -(10**400)}, {"logprob": -1}]}):
        assert read_reply(body(completion("x", **IDS | {"logprobs": lacking}))).token_ids is None


def test_it_is_asked_for_again_and_then_counted(tmp_path):
    def say(asked):
        odd = asked["messages"][-1]["content"] == "Say 1"
        return completion("x", finish=["stop"]) if odd else echo(asked)

    with serving(say) as (url, seen):
        summary, rows = run(tmp_path, url, max_rejected=0.5)
    assert [row.prompt.provenance.id for row in rows] == ["p0", "p2", "p3"]
    assert (summary["no_answer"], summary["rejected"], summary["retries"]) == (1, 1, 2)
    assert len(seen.bodies) == 6
    assert "the answer is a completion with a finish_reason of" in rejected(tmp_path)[0]["reason"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '"reason"', "{}", '{"reason": 5}', '{"text": "x"}', "[" * 100_000]
)
def test_a_damaged_answer_in_the_cache_is_named(tmp_path, text):
    with pytest.raises(Unreadable):
        from_json(text)
    with serving() as (url, seen):
        asking = client(tmp_path, url)
        asking.ask_all([question()], "test")
        with sqlite3.connect(asking.cache.path) as db:
            db.execute("UPDATE replies SET reply = ?", (text,))
            (key,) = db.execute("SELECT key FROM replies").fetchone()
        with pytest.raises(StoreError, match="is damaged at the key") as e:
            asking.ask_all([question()], "test")
        told = str(e.value)
        assert str(asking.cache.path) in told
        statement = f"DELETE FROM replies WHERE key = '{key}'"
        assert statement in told
        with sqlite3.connect(asking.cache.path) as db:
            db.execute(statement)
        assert asking.ask_all([question()], "test")[0].text.startswith("Hi")
        assert len(seen.bodies) == 2


def test_a_file_in_the_place_of_the_folder_of_answers(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "replies").write_text("not a folder")
    with serving() as (url, seen), pytest.raises(StoreError, match=r"cache/replies is a file.*delete it"):
        run(tmp_path / "a", url, cache=cache)
    assert not seen.bodies


def doubled(number, chunk):
    return [b"%d\n" % (2 * item) for item in chunk]


@pytest.mark.parametrize("keep", [0, 1, 4, 30, -1])
def test_a_chunk_that_was_cut_off_is_named(tmp_path, keep):
    whole = [line for lines in in_chunks(range(5), 2, tmp_path, doubled) for line in lines]
    assert whole == [b"0\n", b"2\n", b"4\n", b"6\n", b"8\n"]
    kept = tmp_path / "chunk-000001"
    kept.write_bytes(kept.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"chunk-000001.*delete that file to have its part"):
        list(in_chunks(range(5), 2, tmp_path, doubled))
    kept.unlink()
    assert [line for lines in in_chunks(range(5), 2, tmp_path, doubled) for line in lines] == whole


def test_a_sample_step_names_its_damaged_state(tmp_path):
    with serving() as (url, _):
        run(tmp_path, url)
        kept = tmp_path / "state" / "chunk-000000"
        lines = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
        with pytest.raises(StoreError, match=r"state/chunk-000000.*delete that file"):
            run(tmp_path, url)
        kept.unlink()
        summary, rows = run(tmp_path, url)
    assert len(rows) == 4
    assert summary["cache_hits"] == 4
