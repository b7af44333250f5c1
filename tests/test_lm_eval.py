"""The lm-evaluation-harness itself, on a task of our own: its items become outcomes with our intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.evaluation.suite import EvaluateConfig, run
from posttrain.evaluation.task import EvalContext
from posttrain.evaluation.tasks import read_task
from posttrain.evaluation.tasks.lm_eval import LmEval

SUMS = """
task: tiny_sums
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "never"}, {function: take_first}]}
  - {name: loose, filter: [{function: take_first}]}
"""
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: "{{g}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
MIXED = CHOICE.replace("tiny_choice", "tiny_mixed").replace(
    "metric_list:\n",
    "metric_list:\n  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}\n"
    "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n",
    1,
)
WHOLE = MIXED[: MIXED.index("  - {metric: acc_norm")].replace("tiny_mixed", "tiny_whole")
QUESTIONS = ["What is 12 + 30?", "Name a city.", "Name a city.", "Add the tens."]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(name="world", scope="module")
def tasks_and_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    import datasets
    import huggingface_hub.constants

    patch = pytest.MonkeyPatch()  # nothing here may depend on the hub
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path_factory.mktemp("harness")
    tiny_folder("qwen2", folder / "model")
    (folder / "tasks").mkdir()
    for name, text in (("sums", SUMS), ("choice", CHOICE), ("mixed", MIXED), ("whole", WHOLE)):
        (folder / "tasks" / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)), "utf-8")
    write_jsonl(folder / "sums.jsonl", [{"q": q, "a": "never"} for q in QUESTIONS])
    choices = [
        {"q": q, "c": [" The city", " 42", "<|im_end|>" * 9], "g": i % 3} for i, q in enumerate(QUESTIONS)
    ]
    write_jsonl(folder / "choice.jsonl", choices)
    yield folder
    patch.undo()


@pytest.fixture(autouse=True)
def local_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the 14,000 tasks that come with the harness takes 10 s."""
    try:
        from lm_eval import tasks
    except ImportError:
        return
    real = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda **given: real(include_defaults=False, **given))


def asked(world: Path, task: str, **more: Any) -> LmEval:
    return LmEval(task=task, include_path=str(world / "tasks"), **more)


def test_documents_are_items_and_equal_ones_share_a_cluster(world: Path) -> None:
    found = asked(world, "tiny_sums").evaluate(EvalContext(str(world / "model")))
    assert [o.item for o in found] == [f"tiny_sums/{i}" for i in range(4)]
    assert len({o.cluster for o in found}) == 3
    assert found[1].cluster == found[2].cluster
    assert [o.metrics for o in found] == [
        {"score": 0.0, "exact_match/strict": 0.0, "exact_match/loose": 0.0}
    ] * 4
    assert found[0].prompt == QUESTIONS[0]
    assert all(o.response for o in found)


def test_a_choice_is_the_one_that_plain_transformers_finds_likeliest(world: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    found = asked(world, "tiny_choice", chat=False).evaluate(EvalContext(str(world / "model")))
    choices = json.loads((world / "choice.jsonl").read_text("utf-8").splitlines()[0])["c"]
    for i, (question, outcome) in enumerate(zip(QUESTIONS, found, strict=True)):
        likely = []
        for choice in choices:
            ids = tokenizer(question + choice)["input_ids"]
            start = len(tokenizer(question)["input_ids"])
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likely.append(sum(logps[t - 1, ids[t]].item() for t in range(start, len(ids))))
        best = likely.index(max(likely))
        assert outcome.response == choices[best]
        assert outcome.metrics["acc"] == outcome.metrics["score"] == float(best == i % 3)


def test_a_step_has_intervals_over_documents_and_a_metric_of_choice(world: Path, tmp_path: Path) -> None:
    task = {"name": "lm_eval/tiny_choice", "include_path": str(world / "tasks"), "metric": "acc_norm"}
    models = {"a": str(world / "model"), "b": str(world / "model")}
    run(EvaluateConfig(model=models, tasks=(task,)), StepContext(tmp_path, tmp_path, "score"))
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["tasks"][0]["label"] == "lm_eval/tiny_choice"
    by_metric = {e["metric"]: e for e in summary["estimates"] if e["model"] == "a"}
    assert by_metric["score"]["mean"] == by_metric["acc_norm"]["mean"]
    assert (by_metric["score"]["n"], by_metric["score"]["clusters"]) == (4, 4)
    assert by_metric["score"]["low"] is not None
    same = next(d for d in summary["differences"] if d["metric"] == "score")
    assert same["mean"] == 0.0


def test_the_score_is_the_first_metric_of_the_task_that_each_document_has(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = EvalContext(str(world / "model"), label="score")
    for outcome in asked(world, "tiny_mixed").evaluate(ctx):
        assert list(outcome.metrics) == ["score", "acc_norm", "acc"], "as the task orders them, not as scored"
        assert outcome.metrics["score"] == outcome.metrics["acc_norm"]
    assert (
        "score: lm_eval/tiny_mixed: no number a document of which more is better: mcc"
        in capsys.readouterr().err
    )
    for task, metric in (("tiny_whole", None), ("tiny_mixed", "mcc")):
        with pytest.raises(ConfigError, match=r"no metric.* a number for each document.*others: mcc"):
            asked(world, task, metric=metric).evaluate(ctx)


def test_limit_takes_the_first_documents(world: Path) -> None:
    found = asked(world, "tiny_sums").evaluate(EvalContext(str(world / "model"), limit=2))
    assert [o.item for o in found] == ["tiny_sums/0", "tiny_sums/1"]


def test_an_unknown_task_or_metric_names_what_there_is(world: Path) -> None:
    ctx = EvalContext(str(world / "model"))
    with pytest.raises(ConfigError, match="no task 'tiny_sum' \\(did you mean 'tiny_sums'"):
        asked(world, "tiny_sum").evaluate(ctx)
    with pytest.raises(
        ConfigError, match=r"no metric 'f1' that is .* there are: acc, acc_norm; others: none"
    ):
        asked(world, "tiny_choice", metric="f1").evaluate(ctx)


def test_programs_are_not_run_outside_the_sandbox_and_missing_data_is_named(world: Path) -> None:
    ctx = EvalContext(str(world / "model"))
    for name, old, new in (
        ("unsafe", "task: tiny_sums", "task: unsafe\nunsafe_code: true"),
        ("gone", "FOLDER/sums", "FOLDER/gone"),
    ):
        text = SUMS.replace(old, new).replace("task: tiny_sums", "task: gone")
        (world / "tasks" / f"{name}.yaml").write_text(text.replace("FOLDER", str(world)), "utf-8")
    with pytest.raises(ConfigError, match="pass_at_k"):
        asked(world, "unsafe").evaluate(ctx)
    with pytest.raises(DataError, match="cannot get its data"):
        asked(world, "gone").evaluate(ctx)


def test_the_name_alone_is_a_task() -> None:
    use = read_task("lm_eval/gsm8k")
    assert (use.label, use.name, use.task.task) == ("lm_eval/gsm8k", "lm_eval", "gsm8k")
    again = read_task(use.model_dump(mode="json"))
    assert again == use
    named = read_task({"name": "lm_eval/gsm8k", "label": "maths", "num_fewshot": 3})
    assert (named.label, named.task.num_fewshot) == ("maths", 3)
    with pytest.raises(ValueError, match="num_fewshots"):
        read_task({"name": "lm_eval/gsm8k", "num_fewshots": 3})
    with pytest.raises(ValueError, match="'task'"):
        read_task("lm_eval/")
