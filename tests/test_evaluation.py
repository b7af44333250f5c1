"""The suite and its tasks, against plain transformers where there is something to compute."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.suite import STEP, EvaluateConfig, named_models, run
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.evaluation.tasks import TASKS
from posttrain.evaluation.tasks.heldout_loss import HeldoutLoss
from posttrain.evaluation.tasks.judged import Judged
from posttrain.evaluation.tasks.pair_accuracy import PairAccuracy
from posttrain.feedback.judge import Verdict
from posttrain.flow.inputs import inputs_of
from posttrain.formats import write_records
from posttrain.models.load import load_model
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Provenance,
    Response,
)

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ["What is 12 + 30?", "Name a city beside the river.", "Write a polite email.", "Add the tens."]
GOOD = ["It is 42.", "The capital.", "Dear Anna, thank you.", "First the tens, then the ones."]
BAD = ["It is 7.", "No.", "I cannot come.", "def add(a, b)"]


def prompt(i: int, text: str = "") -> Prompt:
    return Prompt(
        provenance=Provenance(id=f"p{i}"),
        messages=(Message(role="user", content=text or QUESTIONS[i % 4]),),
        tags={"level": "easy" if i % 2 else "hard"},
    )


def demonstrations() -> list[Demonstration]:
    return [
        Demonstration(provenance=Provenance(id=f"d{i}"), prompt=prompt(i), response=Response(text=GOOD[i]))
        for i in range(4)
    ]


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            provenance=Provenance(id=f"c{i}"),
            prompt=prompt(i),
            chosen=Response(text=GOOD[i % 4]),
            rejected=Response(text=BAD[(i + i // 4) % 4]),
        )
        for i in range(8)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies and a reward model, and rows to measure them on."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("base", "sft")):
        tiny_folder("llama", folder / name, seed=seed, tokenizer=tiny_tokenizer(chat_template=CHAT))
    reward = load_model(folder / "sft", dtype=torch.float32, reward_heads=("overall",), seed=3)
    reward.save(folder / "reward")
    write_records(folder / "demos.jsonl", demonstrations())
    write_records(folder / "pairs.jsonl", comparisons())
    write_records(folder / "prompts.jsonl", [prompt(i) for i in range(4)])
    return folder


def context(path: Path, **fields: Any) -> EvalContext:
    return EvalContext(str(path), precision="float32", device="cpu", **fields)


def dense_logps(folder: Path, question: str, answer: str) -> torch.Tensor:
    """Log-probs of the answer's tokens and the stop token, by plain transformers."""
    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(folder)
    head = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
    tail = tokenizer(f"{answer}<|im_end|>").input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    at = torch.arange(len(head) - 1, len(head) + len(tail) - 1)
    return logits[at, torch.tensor(tail)]


def test_heldout_loss_is_that_of_plain_transformers(world: Path):
    task = HeldoutLoss(data=str(world / "demos.jsonl"), group_by="level")
    outcomes = task.evaluate(context(world / "base"))
    assert [o.item for o in outcomes] == ["d0", "d1", "d2", "d3"]
    assert [o.group for o in outcomes] == ["hard", "easy", "hard", "easy"]
    for i, outcome in enumerate(outcomes):
        logps = dense_logps(world / "base", QUESTIONS[i], GOOD[i])
        assert outcome.metrics["loss"] == pytest.approx(-logps.mean().item(), abs=1e-4)
        assert outcome.metrics["loss_per_byte"] == pytest.approx(
            -logps.sum().item() / len(GOOD[i].encode()), abs=1e-4
        )
        assert outcome.weights == {"loss": len(logps), "loss_per_byte": len(GOOD[i].encode())}


def test_heldout_loss_of_documents_and_of_what_does_not_fit(world: Path, tmp_path: Path):
    texts = ["The capital of the country.", "river " * 600]
    documents = [Document(provenance=Provenance(id=f"t{i}"), text=text) for i, text in enumerate(texts)]
    write_records(tmp_path / "docs.jsonl", documents)
    short, long = HeldoutLoss(data=str(tmp_path / "docs.jsonl")).evaluate(context(world / "base"))
    assert short.metrics["loss"] is not None
    assert math.isclose(
        short.metrics["loss"] * short.weights["loss"],
        short.metrics["loss_per_byte"] * len(texts[0]),  # type: ignore[operator]
        rel_tol=1e-9,
    )
    assert long.metrics == {"loss": None, "loss_per_byte": None}
    assert long.note == "longer than the 512 tokens the model takes"


def test_heldout_loss_refuses_rows_it_cannot_measure(world: Path):
    with pytest.raises(
        DataError, match=r"row c0 is a comparison; held-out loss is measured on demonstrations"
    ):
        HeldoutLoss(data=str(world / "pairs.jsonl")).evaluate(context(world / "base"))


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_pairs_are_ranked_by_the_log_ratio_to_the_reference(world: Path, over: str):
    task = PairAccuracy(data=str(world / "pairs.jsonl"), reference=str(world / "base"), over=over)
    outcomes = task.evaluate(context(world / "sft"))
    for row, outcome in zip(comparisons(), outcomes, strict=True):
        rewards = []
        for response in (row.chosen, row.rejected):
            new = dense_logps(world / "sft", row.prompt.text, response.text)
            old = dense_logps(world / "base", row.prompt.text, response.text)
            rewards.append(getattr(new - old, over)().item())
        assert outcome.metrics["margin"] == pytest.approx(rewards[0] - rewards[1], abs=1e-4)
        assert outcome.metrics["accuracy"] == float(rewards[0] > rewards[1])


def test_a_reward_model_ranks_by_its_head(world: Path):
    ctx = context(world / "reward")
    assert ctx.kind() == "reward"
    outcomes = PairAccuracy(data=str(world / "pairs.jsonl")).evaluate(ctx)
    model, tokenizer = ctx.model(), tiny_tokenizer()
    assert model.reward_head is not None
    for row, outcome in zip(comparisons(), outcomes, strict=True):
        scores = []
        for response in (row.chosen, row.rejected):
            asked = f"<|im_start|>user\n{row.prompt.text}<|im_end|>\n"
            text = f"{asked}<|im_start|>assistant\n{response.text}<|im_end|>"
            with torch.inference_mode():
                hidden = model.base.base_model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
                scores.append(model.reward_head(hidden[0, -1]).item())
        assert outcome.metrics["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-4)


def test_several_heads_rank_comparisons_of_their_own_aspect(world: Path, tmp_path: Path):
    model = load_model(world / "sft", dtype=torch.float32, reward_heads=("overall", "helpful"), seed=3)
    model.save(tmp_path / "two")
    aspects = ("overall", "helpful", "harmless")
    rows = [r.model_copy(update={"aspect": a}) for r, a in zip(comparisons(), aspects, strict=False)]
    write_records(tmp_path / "pairs.jsonl", rows)
    found = PairAccuracy(data=str(tmp_path / "pairs.jsonl")).evaluate(context(tmp_path / "two"))
    for head in (0, 1):
        row, outcome = rows[head], found[head]
        sole = load_model(tmp_path / "two", dtype=torch.float32)
        asked = f"<|im_start|>user\n{row.prompt.text}<|im_end|>\n<|im_start|>assistant\n"
        scores = []
        for response in (row.chosen, row.rejected):
            ids = torch.tensor([sole.tokenizer(f"{asked}{response.text}<|im_end|>").input_ids])
            with torch.inference_mode():
                scores.append(
                    sole.reward_head(sole.base.base_model(ids).last_hidden_state[0, -1])[head].item()
                )
        assert outcome.metrics["margin"] == pytest.approx(scores[0] - scores[1], abs=1e-4)
    assert found[2].metrics["accuracy"] is None
    assert "'harmless' has no head" in found[2].note


def test_a_reference_equal_to_the_model_is_a_tie(world: Path):
    task = PairAccuracy(data=str(world / "pairs.jsonl"), reference=str(world / "sft"))
    outcomes = task.evaluate(context(world / "sft"))
    assert {o.metrics["accuracy"] for o in outcomes} == {0.5}
    assert {o.note for o in outcomes} == {"equal scores"}


def test_answers_are_drawn_once_and_do_not_depend_on_what_was_asked_before(world: Path):
    params = SamplingParams(n=2, max_new_tokens=6)
    prompts = [prompt(i) for i in range(4)]
    ctx = context(world / "sft", seed=5)
    first = ctx.respond(prompts, params)
    assert ctx.respond(prompts, params) is first
    ctx.respond(prompts[1:2], params)
    other = context(world / "sft", seed=5)
    other.respond(prompts[:2], params)
    assert other.respond(prompts, params) == first
    assert context(world / "sft", seed=6).respond(prompts, params) != first


def test_a_limit_takes_the_same_items_for_every_model():
    items = list(range(100))
    chosen = EvalContext("a", seed=1, limit=10).take(items)
    assert chosen == EvalContext("b", seed=1, limit=10).take(items) == sorted(chosen)
    assert len(chosen) == 10
    assert chosen != EvalContext("a", seed=2, limit=10).take(items)
    assert EvalContext("a", limit=200).take(items) == items


class Shortest(Config):
    """A judge that likes short answers, and has nothing to say of every second one."""

    pairs: bool = False

    def open(self) -> Any:
        return self if self.pairs else ShortestJudge()

    def compare(self, items: Any) -> Any:
        raise AssertionError("nobody asked")


class ShortestJudge:
    def __init__(self) -> None:
        self.seen: list[tuple[Prompt, Response]] = []

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        self.seen += items
        assert all(response.finish == "stop" for _, response in items)
        return [
            Verdict(None, "no opinion") if i % 2 else Verdict(-float(len(r.text)), "", {"length": 1.0})
            for i, (_, r) in enumerate(items)
        ]


def scripted(said: Callable[[int, int], Response]) -> Callable[..., Any]:
    """Stands in for the model's answers: `said(place of the prompt, number of the sample)`."""

    def respond(
        self: EvalContext, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[tuple[Response, ...]]:
        n = (params or self.sampling).n
        return [tuple(said(i, j) for j in range(n)) for i in range(len(prompts))]

    return respond


def test_judged_answers_keep_the_third_state_apart(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def said(i: int, j: int) -> Response:
        cut = (i, j) == (0, 1)
        return Response(text="x" * (i + 1), token_ids=(5,) * (i + 1), finish="length" if cut else "stop")

    monkeypatch.setattr(EvalContext, "respond", scripted(said))
    prompts = [*(prompt(i) for i in range(4)), prompt(7, "river " * 600), prompt(1)]
    write_records(tmp_path / "prompts.jsonl", prompts)
    task = Judged(
        data=str(tmp_path / "prompts.jsonl"),
        judge="test_evaluation:Shortest",  # type: ignore[arg-type]  # read by the field's validator
        sampling=SamplingParams(n=2),
        group_by="level",
    )
    outcomes = task.evaluate(context(world / "sft"))
    # prompt 1 stands twice and counts once; prompt 7 does not fit; answers asked: (0, 0), (1, 0), (1, 1), …
    assert len(outcomes) == 10
    assert len({o.item for o in outcomes}) == 10
    assert [o.cluster for o in outcomes[::2]] == [o.cluster for o in outcomes[1::2]]
    scores = [(o.metrics["score"], o.note) for o in outcomes]
    assert scores == [
        (-1.0, ""),
        (None, "cut off"),
        (None, "no opinion"),
        (-2.0, ""),
        (None, "no opinion"),
        (-3.0, ""),
        (None, "no opinion"),
        (-4.0, ""),
        (None, "no room for an answer"),
        (None, "no room for an answer"),
    ]
    assert [o.metrics["finished"] for o in outcomes] == [1, 0, 1, 1, 1, 1, 1, 1, None, None]
    assert [o.metrics["tokens"] for o in outcomes][:4] == [1, None, 2, 2]
    assert outcomes[0].metrics["score/length"] == 1
    assert outcomes[1].metrics["score/length"] is None


def test_a_judge_that_only_compares_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EvalContext, "respond", scripted(lambda i, j: Response(text="a", finish="stop")))
    judge = {"name": "test_evaluation:Shortest", "pairs": True}
    task = Judged(data=str(world / "prompts.jsonl"), judge=judge)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only compares two answers"):
        task.evaluate(context(world / "sft"))


def test_a_reward_model_judges_what_a_policy_really_says(world: Path):
    judge = {"name": "reward_model", "model": str(world / "reward"), "precision": "float32", "device": "cpu"}
    sampling = SamplingParams(max_new_tokens=40, temperature=2.0)
    task = Judged(data=str(world / "prompts.jsonl"), judge=judge, sampling=sampling)  # type: ignore[arg-type]
    outcomes = task.evaluate(context(world / "sft"))
    assert len(outcomes) == 4
    for outcome in outcomes:
        assert (outcome.metrics["score"] is None) == (outcome.metrics["finished"] == 0)
    again = task.evaluate(context(world / "sft"))
    assert again == outcomes


class Echo(TaskConfig):
    """Asks nothing; counts its calls, fails on demand."""

    headline: ClassVar[str] = "right"
    calls: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()

    value: float | None = 1.0
    repeat: bool = False

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        name = Path(ctx.model_path).name
        if name in self.broken:
            raise RuntimeError("killed")
        self.calls.append(name)
        ids = ["0" if self.repeat else str(i) for i in range(3)]
        values = [None, self.value, self.value]
        return [Outcome(i, i, {"right": v}, response="\u2028") for i, v in zip(ids, values, strict=True)]


@pytest.fixture(autouse=True)
def fresh_echo():
    Echo.calls.clear()
    Echo.broken.clear()


def evaluate(world: Path, out: Path, models: Any, tasks: list[Any], **fields: Any) -> dict[str, Any]:
    given = {"precision": "float32", "device": "cpu", "model": models, "tasks": tasks, **fields}
    summary = run(parse(EvaluateConfig, given, "step 'score'"), StepContext(out, out / "state", "score"))
    return summary


def test_every_model_on_every_task(world: Path, tmp_path: Path):
    models = {name: str(world / name) for name in ("base", "sft", "reward")}
    tasks = [
        {"name": "heldout_loss", "data": str(world / "demos.jsonl"), "group_by": "level"},
        {"name": "pair_accuracy", "data": str(world / "pairs.jsonl"), "label": "pairs"},
    ]
    told = evaluate(world, tmp_path, models, tasks)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 2 * 4 + 3 * 8
    assert [(m["name"], m["kind"]) for m in summary["models"]] == [
        ("base", "policy"),
        ("sft", "policy"),
        ("reward", "reward"),
    ]
    assert summary["not_applicable"] == [{"model": "reward", "task": "heldout_loss"}]
    loss = next(e for e in summary["estimates"] if e["model"] == "sft" and e["metric"] == "loss")
    rows = [line for line in lines if line["model"] == "sft" and line["task"] == "heldout_loss"]
    tokens = sum(row["weights"]["loss"] for row in rows)
    nats = sum(row["weights"]["loss"] * row["metrics"]["loss"] for row in rows)
    assert loss["mean"] == pytest.approx(nats / tokens)  # every token weighs the same
    groups = {e["group"] for e in summary["estimates"] if e["task"] == "heldout_loss"}
    assert groups == {"", "easy", "hard"}
    against = [
        (d["before"], d["after"], d["against"])
        for d in summary["differences"]
        if d["task"] == "pairs" and d["metric"] == "accuracy"
    ]
    assert against == [
        ("base", "sft", ["first", "previous"]),
        ("base", "reward", ["first"]),
        ("sft", "reward", ["previous"]),
    ]
    assert told["items"] == 2 * 4 + 3 * 8
    assert set(told["headline"]["reward"]) == {"pairs"}


def test_the_previous_model_is_the_last_that_could_be_asked(world: Path, tmp_path: Path):
    models = {name: str(world / name) for name in ("base", "reward", "sft")}
    evaluate(world, tmp_path, models, [{"name": "heldout_loss", "data": str(world / "demos.jsonl")}])
    differences = json.loads((tmp_path / "summary.json").read_text("utf-8"))["differences"]
    assert {(d["before"], d["after"]) for d in differences} == {("base", "sft")}
    lower = next(d for d in differences if d["metric"] == "loss")
    if lower["verdict"] in ("better", "worse"):
        assert (lower["verdict"] == "better") == (lower["mean"] < 0)


def test_what_a_killed_evaluation_finished_is_kept(world: Path, tmp_path: Path):
    models = [str(world / "base"), str(world / "sft")]
    tasks = ["test_evaluation:Echo"]
    Echo.broken.add("sft")
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(world, tmp_path, models, tasks)
    assert not (tmp_path / "summary.json").exists()
    Echo.broken.clear()
    evaluate(world, tmp_path, models, tasks)
    assert Echo.calls == ["base", "sft"]
    evaluate(world, tmp_path / "undisturbed", models, tasks)
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_the_third_state_reaches_the_summary(world: Path, tmp_path: Path):
    told = evaluate(world, tmp_path, str(world / "base"), ["test_evaluation:Echo"])
    (found,) = json.loads((tmp_path / "summary.json").read_text("utf-8"))["estimates"]
    assert (found["mean"], found["n"], found["missing"]) == (1.0, 2, 1)
    assert told["missing"] == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"value": math.inf}, "right of item '1' is inf"),
        ({"repeat": True}, "item '0' stands twice"),
    ],
)
def test_outcomes_that_cannot_be_averaged_are_refused(
    world: Path, tmp_path: Path, task: dict[str, Any], message: str
):
    echo = Echo.model_construct(**{"value": 1.0, "repeat": False, **task})
    cfg = EvaluateConfig(model=str(world / "base"), tasks=(echo,))
    with pytest.raises(DataError, match=message):
        run(cfg, StepContext(tmp_path, tmp_path / "state", "score"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["heldout_los"]}, "no task named 'heldout_los': did you mean 'heldout_loss'"),
        ({"tasks": [{"name": "heldout_loss"}]}, "task heldout_loss: 'data' is missing"),
        (
            {"tasks": [{"name": "pair_accuracy", "data": "x", "referense": "y"}]},
            r"unknown key 'referense' \(did you mean 'reference'\?\)",
        ),
        ({"tasks": [{"data": "x"}]}, "a task is a name or a mapping with a 'name'"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["test_evaluation:Echo", "test_evaluation:Echo"]}, "give each use its own `label`"),
        ({"tasks": ["test_evaluation:Echo"], "model": []}, "no model to evaluate"),
        ({"tasks": ["test_evaluation:QUESTIONS"]}, "is no task: a task is a Config class"),
    ],
)
def test_a_config_that_does_not_hold_says_why(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse(EvaluateConfig, {"model": "m", **given}, "step 'score'")


def test_a_config_reads_what_it_writes():
    given = {"model": {"a": "x"}, "tasks": [{"name": "pair_accuracy", "data": "d", "label": "p"}]}
    cfg = parse(EvaluateConfig, given, "")
    dumped = cfg.model_dump(mode="json")
    assert dumped["tasks"][0] == {
        "name": "pair_accuracy",
        "label": "p",
        "data": "d",
        "reference": None,
        "over": "sum",
        "group_by": "",
    }
    assert EvaluateConfig.model_validate(dumped) == cfg


def test_the_flow_sees_every_input_of_a_task():
    judge = {"name": "reward_model", "model": "@reward"}
    tasks = [
        {"name": "pair_accuracy", "data": "@pairs/heldout.jsonl", "reference": "@sft"},
        {"name": "judged", "data": "prompts.jsonl", "judge": judge},
    ]
    cfg = parse(EvaluateConfig, {"model": {"sft": "@sft"}, "tasks": tasks}, "")
    inputs = {(leaf.value, leaf.kind) for leaf in inputs_of(cfg) if leaf.kind}
    assert inputs == {
        ("@sft", "model"),
        ("@pairs/heldout.jsonl", "data"),
        ("prompts.jsonl", "data"),
        ("@reward", "model"),
    }


def test_models_get_readable_names():
    paths = ("store/sft-0123abcd4567", "store/sft-89abcdef0123/model", "org/Model-7B@0a1b2c", "./m/")
    assert list(named_models(paths)) == ["sft", "sft 2", "Model-7B", "m"]
    assert named_models({"a": "x"}) == {"a": "x"}
    assert named_models("deadbeef-model") == {"deadbeef-model": "deadbeef-model"}


def test_every_task_says_how_to_read_it():
    for name, task in TASKS.items():
        assert task.headline, name
        assert task.title, name
        assert task.kinds, name
        assert task.__doc__, name
    assert STEP.name == "evaluate"


def test_the_task_of_the_documentation_runs(world: Path):
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text("utf-8")
    code = page.split("## Writing a task")[1].split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(compile(code, "docs/evaluation.md", "exec", dont_inherit=True), found)
    prompts = [prompt(i).model_copy(update={"reference": "river"}) for i in range(4)]
    write_records(world / "capitals.jsonl", prompts)
    task = found["Capitals"](data=str(world / "capitals.jsonl"))
    outcomes = task.evaluate(context(world / "sft", limit=3, sampling=SamplingParams(max_new_tokens=8)))
    assert len(outcomes) == 3
    assert all(set(o.metrics) == {"named"} for o in outcomes)
