"""The shipped quickstart, run small."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart.yaml"


def test_the_quickstart_shrunk_runs_to_its_page(tmp_path):
    """The shipped file with smaller numbers: all verbs, one store, a page with every stage; then all hits."""
    from posttrain.cli import main

    recipe = yaml.safe_load(QUICKSTART.read_text())
    small = ["corpus.source.n=500", "corpus_heldout.source.n=20", "demos.source.n=60", "prompts.source.n=30",
             "prompts_heldout.source.n=30", "tokenizer.vocab_size=400", "base.steps=20", "sft.steps=10",
             "pairs_heldout.judge={name: playground/annotators, temperature: 0.05}",
             "base.model.config.hidden_size=32", "base.model.config.num_hidden_layers=2"]  # fmt: skip
    tasks = [{**task, "n": 12} if "n" in task else task for task in recipe["score"]["tasks"]]
    sets = [part for item in [*small, f"score.tasks={json.dumps(tasks)}"] for part in ("--set", item)]
    path = str(QUICKSTART)
    assert run(main, ["run", path, "--store", str(tmp_path / "store"), *sets]) == 0
    (page,) = (tmp_path / "store").glob("page-*/report.html")
    text = page.read_text()
    for stage in ("base", "sft", "dpo", "reward"):
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
