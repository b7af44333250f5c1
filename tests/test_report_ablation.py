"""The ablation table and the figure of shares: what they say, what they mark, and what fails the step."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from report_artifacts import Atlas, write_artifact, write_lines

from posttrain.common.errors import ConfigError, TrainingError
from posttrain.common.files import write_json
from posttrain.common.step import StepContext
from posttrain.evaluation.summary import summarise
from posttrain.evaluation.task import ModelKind, Outcome
from posttrain.evaluation.tasks import TaskUse
from posttrain.flow.recipe import check_recipe
from posttrain.flow.source import parse_yaml
from posttrain.report.evolution import evolution
from posttrain.report.page import STEP, ReportConfig

MODELS: dict[str, ModelKind] = {"sft": "policy", "dpo": "policy", "both": "policy"}
N = 60


class Facts(Atlas):
    title: ClassVar[str] = "Short facts"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"incorrect"})
    undirected: ClassVar[frozenset[str]] = frozenset({"not_attempted"})


class Sums(Atlas):
    title: ClassVar[str] = "Sums"


class Style(Atlas):
    title: ClassVar[str] = "Style"
    headline: ClassVar[str] = "obeyed"


USES = tuple(
    TaskUse(name=name, label=name, settings=settings)
    for name, settings in (("facts", Facts()), ("sums", Sums()), ("style", Style()))
)
# of 60 items: (correct, left open) of the facts; right sums; obeyed styles
MADE = {"sft": (24, 6, 15, 45), "dpo": (18, 12, 45, 15), "both": (24, 30, 30, 45)}


def outcome(task: str, i: int, metrics: dict[str, float | None], group: str = "") -> Outcome:
    return Outcome(f"{task}-{i}", f"{task}-{i}", metrics, group, "Q", "A")


def outcomes(model: str) -> dict[str, list[Outcome]]:
    correct, left, sums, style = MADE[model]
    facts = []
    for i in range(N):
        said = "correct" if i < correct else "not_attempted" if i < correct + left else "incorrect"
        shares = {name: float(name == said) for name in ("correct", "not_attempted", "incorrect")}
        facts.append(outcome("facts", i, {**shares}, "known" if i < 30 else "unknown"))
    facts.append(outcome("facts", N, dict.fromkeys(("correct", "not_attempted", "incorrect")), "known"))
    return {
        "facts": facts,
        "sums": [outcome("sums", i, {"correct": float(i < sums)}) for i in range(N)],
        "style": [outcome("style", i, {"obeyed": float(i < style)}) for i in range(N)],
    }


@pytest.fixture(name="score", scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_artifact(
        tmp_path_factory.mktemp("store") / "score-99223344bbcc", "evaluate", {}, 3.0, {}, {}
    )
    results = {(model, task): some for model in MODELS for task, some in outcomes(model).items()}
    lines = [{"model": m, "task": t, **vars(o)} for (m, t), some in results.items() for o in some]
    write_lines(folder / "results.jsonl", lines)
    paths = {name: f"../{name}" for name in MODELS}
    write_json(folder / "summary.json", summarise(USES, paths, MODELS, results) | {"seed": 0, "limit": None})
    return folder


def report(score: Path, out: Path, ablation: Any) -> str:
    out.mkdir(exist_ok=True)
    STEP.run(ReportConfig(inputs=(str(score),), ablation=ablation), StepContext(out, out / "state", "page"))
    return (out / "report.html").read_text("utf-8")


def table(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "ablation.json").read_text("utf-8"))["tables"][0]
    return found


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html.split("</style>")[1]))


def test_a_trade_stands_in_words_above_everything_else(score: Path, tmp_path: Path) -> None:
    html = report(score, tmp_path, True)
    said = {entry["column"]: entry for entry in table(tmp_path)["said"]}
    assert said["dpo"]["kind"] == "trade"
    assert [c["on"] for c in said["dpo"]["better"]] == ["Sums"]
    assert [c["on"] for c in said["dpo"]["worse"]] == ["Short facts", "Style"]
    header = words(html[: html.index("<nav")])
    assert re.search(
        r"dpo against sft A trade\. Better on Sums \+50\.0 points \[.*?\]\. "
        r"Worse on Short facts −10\.0 points \[.*?\], Style −50\.0 points \[.*?\]\.",
        header,
    )
    assert html.index("A trade.") < html.index("<nav")


def test_rows_are_tasks_and_facets_columns_variants_and_only_the_sure_best_is_bold(
    score: Path, tmp_path: Path
) -> None:
    html = report(score, tmp_path, {"metrics": {"facts": ["incorrect", "not_attempted"]}})
    found = table(tmp_path)
    assert found["columns"] == ["sft", "dpo", "both"]
    assert [(row["task"], row["metric"], row["group"]) for row in found["rows"]] == [
        ("facts", "correct", ""),
        ("facts", "correct", "known"),
        ("facts", "correct", "unknown"),
        ("facts", "incorrect", ""),
        ("facts", "not_attempted", ""),
        ("sums", "correct", ""),
        ("style", "obeyed", ""),
    ]
    best = {
        (row["task"], row["metric"], row["group"]): cell["column"]
        for row in found["rows"]
        for cell in row["cells"]
        if cell["best"]
    }
    # of two columns with the same style none is best; left open is neither good nor bad
    assert best == {("sums", "correct", ""): "dpo", ("facts", "incorrect", ""): "both"}
    assert html.count("mean best") == 2
    sums = found["rows"][5]["cells"]
    assert [cell["value"]["mean"] for cell in sums] == [0.25, 0.75, 0.5]
    assert [cell["against"] and cell["against"]["mean"] for cell in sums] == [None, 0.5, 0.25]
    assert found["rows"][0]["cells"][0]["text"]["missing"] == "1 of 61 not scored"


def test_the_same_numbers_for_machines(score: Path, tmp_path: Path) -> None:
    report(score, tmp_path, {"baseline": "dpo"})
    with open(tmp_path / "ablation.csv", encoding="utf-8") as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 5 * 3
    cell = next(line for line in lines if (line["task"], line["column"]) == ("sums", "sft"))
    assert (float(cell["mean"]), float(cell["difference"]), cell["verdict"]) == (0.25, -0.5, "worse")
    assert next(line for line in lines if line["column"] == "dpo")["difference"] == ""


def test_a_regression_fails_the_step_with_its_numbers_and_the_page_stays(score: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as e:
        report(score, tmp_path, {"fail_on_regression": True})
    assert re.search(
        r"dpo is worse than sft on Style \(style, obeyed\): −50\.0 points \[−\d\d\.\d, −\d\d\.\d\], paired",
        str(e.value),
    )
    assert "both is worse" not in str(e.value)
    assert str(tmp_path / "report.html") in str(e.value)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "Failed. dpo is worse than sft on Style" in words(html)


@pytest.mark.parametrize(
    ("asked", "fails"),
    [
        ({"fail_on_regression": ["sums"]}, False),
        ({"fail_on_regression": ["style"]}, True),
        ({"fail_on_regression": True, "watch": ["both"]}, False),
        ({"fail_on_regression": ["facts/known"]}, True),
        ({"fail_on_regression": ["style"], "baseline": "dpo"}, False),
        ({"fail_on_regression": False}, False),
    ],
)
def test_what_can_fail_it_is_asked_for(score: Path, tmp_path: Path, asked: Any, fails: bool) -> None:
    if fails:
        with pytest.raises(TrainingError, match="is worse than"):
            report(score, tmp_path, asked)
    else:
        report(score, tmp_path, asked)


def _scored(folder: Path, values: dict[str, list[float | None]]) -> Path:
    """An evaluation of models on one task, `style`, by the values of its items."""
    made = write_artifact(folder / "score-99223344bbcc", "evaluate", {}, 3.0, {}, {})
    results = {
        (model, "style"): [outcome("style", i, {"obeyed": value}) for i, value in enumerate(some)]
        for model, some in values.items()
    }
    lines = [{"model": m, "task": t, **vars(o)} for (m, t), some in results.items() for o in some]
    write_lines(made / "results.jsonl", lines)
    paths = {name: f"../{name}" for name in values}
    summary = summarise(USES[2:], paths, dict.fromkeys(values, "policy"), results)
    write_json(made / "summary.json", summary | {"seed": 0, "limit": None})
    return made


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            [None] * 20,
            "dpo cannot be compared with sft on Style (style, obeyed): 20 of 20 items have no value",
        ),
        (
            [1.0] * 17 + [None] * 3,
            "3 of 20 items have no value in one of the two, more than max_missing (0.1)",
        ),
        ([0.0] * 20, "dpo is worse than sft on Style (style, obeyed): −100"),
        ([1.0] * 18 + [None] * 2, None),
    ],
)
def test_a_column_does_not_pass_by_what_nobody_knows_of_it(
    tmp_path: Path, after: list[float | None], said: str | None
) -> None:
    made = _scored(tmp_path, {"sft": [1.0] * 20, "dpo": after})
    if said is None:
        report(made, tmp_path / "out", {"fail_on_regression": True})
        return
    with pytest.raises(TrainingError) as e:
        report(made, tmp_path / "out", {"fail_on_regression": True})
    assert said in str(e.value)
    assert said in words((tmp_path / "out/report.html").read_text("utf-8"))


def test_the_same_fall_of_a_score_on_every_item_fails_it(tmp_path: Path) -> None:
    made = _scored(tmp_path, {"sft": [80.0] * 20, "dpo": [30.0] * 20})
    with pytest.raises(TrainingError, match=r"dpo is worse than sft on Style .*: −50.*every cluster gave"):
        report(made, tmp_path / "out", {"fail_on_regression": True})
    report(made, tmp_path / "out2", True)
    assert table(tmp_path / "out2")["said"][0]["kind"] == "loss"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"baseline": "stf"}, "no column 'stf' in score (did you mean 'sft'?)"),
        ({"watch": ["bth"]}, "no column 'bth' in score (did you mean 'both'?)"),
        ({"metrics": {"fcts": ["incorrect"]}}, "no task 'fcts' in score (did you mean 'facts'?)"),
        ({"metrics": {"facts": ["incorect"]}}, "no metric 'incorect' in facts (did you mean 'incorrect'?)"),
        ({"fail_on_regression": ["stile"]}, "no task 'stile' in score (did you mean 'style'?)"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(
    score: Path, tmp_path: Path, asked: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        report(score, tmp_path, asked)


PLANNED = """
sft: {do: train, method: {name: sft}, model: some/model, data: data/a.jsonl}
dpo: {do: train, method: {name: dpo}, model: "@sft", data: data/b.jsonl}
table: {ablate: "@dpo", decontaminate: false, columns: {before: {without: dpo}, after: }}
score:
  do: evaluate
  model: MODELS
  tasks: [{name: short_facts, label: facts, data: data/f.jsonl}, {name: playground/atlas, label: world}]
page: {do: report, inputs: ["@score"], ablation: ASKED}
"""


@pytest.mark.parametrize(
    ("models", "asked", "said"),
    [
        (
            '"@table"',
            "{baseline: befor}",
            "page.ablation.baseline: no column 'befor' in score (did you mean 'be",
        ),
        (
            '"@table"',
            "{watch: [aftr]}",
            "page.ablation.watch: no column 'aftr' in score (did you mean 'after'?)",
        ),
        (
            '"@table"',
            "{metrics: {fact: [x]}}",
            "metrics.fact: no task 'fact' in score (did you mean 'facts'?)",
        ),
        (
            '"@table"',
            "{metrics: {facts: [incorect]}}",
            "no metric 'incorect' in facts (did you mean 'incorrect'?)",
        ),
        (
            '"@table"',
            "{fail_on_regression: [wrld/known]}",
            "fail_on_regression: no task 'wrld/known' in score",
        ),
        (
            '["@sft", "@dpo", "@sft"]',
            "{baseline: sft 3}",
            "no column 'sft 3' in score (did you mean 'sft 2'?)",
        ),
        ('"@dpo"', "true", "page.ablation: no evaluation among the inputs holds two models"),
    ],
)
def test_what_the_table_will_not_hold_is_told_before_anything_runs(
    models: str, asked: str, said: str
) -> None:
    text = PLANNED.replace("MODELS", models).replace("ASKED", asked)
    with pytest.raises(ConfigError) as e:
        check_recipe(parse_yaml(text, "r.yaml"), "r.yaml")
    assert "r.yaml:9: page.ablation" in str(e.value)
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        (
            '"@table"',
            "{baseline: after, watch: [before], metrics: {facts: [f_score, finished], world: [declined]}}",
        ),
        ('"@table"', "{fail_on_regression: [facts, world/known]}"),
        ('["@sft", "@dpo", "@sft"]', "{baseline: sft 2}"),
    ],
)
def test_what_it_will_hold_or_only_the_run_can_tell_is_taken(models: str, asked: str) -> None:
    check_recipe(parse_yaml(PLANNED.replace("MODELS", models).replace("ASKED", asked), "r.yaml"), "r.yaml")


def test_without_being_asked_there_is_no_table(score: Path, tmp_path: Path) -> None:
    html = report(score, tmp_path, None)
    assert "What each part brought" not in html
    assert not (tmp_path / "ablation.json").exists()


def test_a_table_that_is_asked_for_and_has_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    alone = write_artifact(tmp_path / "sft-99223344bbcc", "train", {}, 3.0, {}, {})
    with pytest.raises(ConfigError, match="ablation: no evaluation among the inputs holds two models"):
        report(alone, tmp_path / "out", {})


def test_the_figure_s_shares_are_those_measured_and_make_up_one(score: Path, tmp_path: Path) -> None:
    summary = json.loads((score / "summary.json").read_text("utf-8"))
    (found,) = evolution(summary, "v")
    assert [figure["group"] for figure in found["figures"]] == ["", "known", "unknown"]
    whole = {
        stage["model"]: [share["mean"] for share in stage["shares"]]
        for stage in found["figures"][0]["stages"]
    }
    assert whole == {
        "sft": pytest.approx([0.4, 0.1, 0.5]),
        "dpo": pytest.approx([0.3, 0.2, 0.5]),
        "both": pytest.approx([0.4, 0.5, 0.1]),
    }
    assert found["figures"][0]["stages"][0]["about"] == "60 answers, 1 not graded"
    html = report(score, tmp_path, None)
    assert html.count("<svg") >= 3
    assert "not attempted" in html


def test_a_model_without_a_graded_answer_stands_in_the_figure_and_says_so() -> None:
    shares = ("correct", "not_attempted", "incorrect")
    results = {
        ("sft", "facts"): [
            outcome("facts", i, {name: float(name == "correct") for name in shares}) for i in range(9)
        ],
        ("dpo", "facts"): [outcome("facts", i, dict.fromkeys(shares)) for i in range(9)],
    }
    models: dict[str, ModelKind] = {"sft": "policy", "dpo": "policy"}
    summary = summarise(USES[:1], {"sft": "../sft", "dpo": "../dpo"}, models, results)
    (found,) = evolution(summary, "v")
    (figure,) = found["figures"]
    assert [stage["model"] for stage in figure["stages"]] == ["sft", "dpo"]
    assert figure["stages"][1]["about"] == "0 answers, 9 not graded"
    assert figure["stages"][1]["text"][0] == {"mean": "–", "interval": ""}
    assert figure["svg"].count("nothing graded") == 1
    results["sft", "facts"] = results["dpo", "facts"]
    assert not evolution(summarise(USES[:1], {"sft": "a", "dpo": "b"}, models, results), "v"), (
        "no share at all"
    )


def test_two_uses_of_one_task_are_told_apart_by_their_labels(tmp_path: Path) -> None:
    uses = [
        TaskUse(name="facts", label=label, settings=Facts()) for label in ("what was told", "what it knew")
    ]
    results = {
        (model, use.label): [outcome(use.label, i, {"correct": float(i < n)}) for i in range(20)]
        for model, told, knew in (("sft", 0, 20), ("dpo", 20, 0))
        for use, n in zip(uses, (told, knew), strict=True)
    }
    made = write_artifact(tmp_path / "score-99223344bbcc", "evaluate", {}, 3.0, {}, {})
    lines = [{"model": m, "task": t, **vars(o)} for (m, t), some in results.items() for o in some]
    write_lines(made / "results.jsonl", lines)
    models: dict[str, ModelKind] = {"sft": "policy", "dpo": "policy"}
    summary = summarise(uses, {"sft": "../sft", "dpo": "../dpo"}, models, results)
    write_json(made / "summary.json", summary | {"seed": 0, "limit": None})
    html = words(report(made, tmp_path / "out", True))
    assert "Better on what was told +100" in html
    assert "Worse on what it knew −100" in html
