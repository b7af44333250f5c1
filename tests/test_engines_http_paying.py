"""The http engine pays for nothing twice: kept answers, budgets, kills."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from chat_server import Answer, completion, echo, in_turn, serving
from http_engine import PROMPTS, ask, client, config, impatient, out_of, question, run  # noqa: F401

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, StoreError
from posttrain.engines.budget import Budget, Meter
from posttrain.engines.chat_replies import NoReply, Reply, from_json, to_json
from posttrain.engines.openai_client import ChatClient
from posttrain.engines.reply_cache import Spent
from posttrain.engines.sample import STEP
from posttrain.engines.server import OutOfBudget, ServerError
from posttrain.flow.oneoff import run_into


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
