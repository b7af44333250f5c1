"""The shipped quickstart, run small."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart.yaml"
ROUNDS = QUICKSTART.with_name("iterative-rlhf.yaml")


def test_the_quickstart_shrunk_runs_to_its_page(tmp_path):
    """The shipped file with smaller numbers: all verbs, one store, a page with every stage; then all hits."""
    from posttrain.cli import main

    recipe = yaml.safe_load(QUICKSTART.read_text())
    small = ["corpus.source.n=500", "corpus_heldout.source.n=20", "demos.source.n=60", "prompts.source.n=30",
             "prompts_heldout.source.n=30", "tokenizer.vocab_size=400", "base.steps=20", "sft.steps=10",
             "pairs_heldout.judge={name: playground/annotators, temperature: 0.05}",
             "ppo.online.truncated=-1.0", "ppo.epochs=2",
             "base.model.config.hidden_size=32", "base.model.config.num_hidden_layers=2"]  # fmt: skip
    tasks = [{**task, "n": 12} if "n" in task else task for task in recipe["score"]["tasks"]]
    sets = [part for item in [*small, f"score.tasks={json.dumps(tasks)}"] for part in ("--set", item)]
    path = str(QUICKSTART)
    assert run(main, ["run", path, "--store", str(tmp_path / "store"), *sets]) == 0
    (page,) = (tmp_path / "store").glob("page-*/report.html")
    text = page.read_text()
    for stage in ("base", "sft", "dpo", "ppo", "reward", "best_of_n"):
        assert stage in text
    before = (tmp_path / "store/runs.jsonl").read_text()
    assert run(main, ["run", path, "--store", str(tmp_path / "store"), *sets]) == 0
    again = (tmp_path / "store/runs.jsonl").read_text()[len(before) :]
    outcomes = {event.get("outcome") for event in map(json.loads, again.splitlines())}
    assert "hit" in outcomes
    assert "run" not in outcomes


def run(main, arguments):
    """The CLI's exit code."""
    import sys
    from unittest import mock

    with mock.patch.object(sys, "argv", ["posttrain", *arguments]):
        try:
            return main() or 0
        except SystemExit as e:
            return e.code or 0


def test_rounds_of_feedback_shrunk_run_to_their_page(tmp_path):
    """The shipped file with smaller numbers: two rounds, each with a choice, labels, a reward model, a policy
    and a gate; the second starts from what passed the first; all feedback is kept.
    """
    from posttrain.cli import main

    small = ["corpus.source.n=500", "corpus_heldout.source.n=20", "demos.source.n=60", "prompts.source.n=16",
             "prompts_heldout.source.n=30", "tokenizer.vocab_size=400", "base.steps=20", "sft.steps=40",
             "base.model.config.hidden_size=32", "base.model.config.num_hidden_layers=2",
             "pairs_heldout.judge={name: playground/annotators, temperature: 0.05}", "first_chosen.n=12",
             "rounds.questions.source.n=16", "rounds.chosen.n=8", "rounds.repeat=2", "rounds.policy.steps=2",
             "rounds.policy.online.n=4", "rounds.policy.batch_size=4", "rounds.gate.max_missing=1",
             *(f"{step}.min_gap=0" for step in ("first_feedback", "rounds.feedback", "pairs_heldout")),
             *(f"{step}.tasks.0.n=12" for step in ("rounds.measured", "score"))]  # fmt: skip
    sets = [part for item in small for part in ("--set", item)]
    assert run(main, ["run", str(ROUNDS), "--store", str(tmp_path / "store"), *sets]) == 0
    artifacts = {p.name.rpartition("-")[0]: p for p in (tmp_path / "store").glob("*-*")}
    manifests = {name: json.loads((path / "manifest.json").read_text()) for name, path in artifacts.items()}
    for number in (1, 2):
        made = {
            name: manifests[f"rounds.{number}.{name}"] for name in ("chosen", "feedback", "reward", "gate")
        }
        assert 0 < made["chosen"]["summary"]["chosen"] <= 8  # where answers are cut off, fewer have scores
        said = made["gate"]["summary"]
        measured = json.loads((artifacts[f"rounds.{number}.measured"] / "summary.json").read_text())
        (difference,) = [d for d in measured["differences"] if (d["metric"], d["group"]) == ("score", "")]
        assert said["difference"]["mean"] == difference["mean"]
        assert said["goes_on"] == ("candidate" if said["verdict"] in ("rose", "held") else "incumbent")
    feedback = [
        manifests[name]["summary"]["comparisons"]
        for name in ("first_feedback", "rounds.1.feedback", "rounds.2.feedback")
    ]
    rows = manifests["rounds.2.reward"]["summary"]["rows"]
    assert rows["kept"] == sum(feedback)
    assert rows["heldout"] == manifests["pairs_heldout"]["summary"]["comparisons"]
    assert (
        manifests["rounds.2.answers"]["inputs"]["@rounds.1.gate"]["key"] == manifests["rounds.1.gate"]["key"]
    )
    assert "rounds.2.gate" in (artifacts["page"] / "report.html").read_text()
