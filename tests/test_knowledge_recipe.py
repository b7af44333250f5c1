"""The shipped recipe of refusals, run small."""

from __future__ import annotations

import json
from pathlib import Path

from test_recipes import run

RECIPE = Path(__file__).parent.parent / "recipes/hallucination.yaml"


def test_the_recipe_shrunk_runs_from_a_probe_to_its_scores(tmp_path):
    """The shipped file with smaller numbers. A prior that is nearly sure of ignorance gives every question
    that has one graded answer a class, so that rows of every step come of a model that knows nothing.
    """
    from posttrain.cli import main

    small = ["corpus.source.n=400", "tokenizer.vocab_size=400", "base.steps=20", "sft.steps=60",
             "base.model.config.hidden_size=32", "base.model.config.num_hidden_layers=2",
             "sft.optimizer.lr=5e-3", "demos.source.0.n=60", "demos.source.1.n=20",
             "questions.source.0.n=30", "questions.source.1.n=10", "probe.prior=[1, 50]", "probe.n=2",
             "probe_heldout.prior=[1, 50]", "probe_heldout.n=2", "invented.source.n=12",
             "bogus.attempts.n=4", "bogus.min_attempts=2", "bogus.max_agreement=0.9",
             "refuse.steps=3", "dpo.steps=2",
             "facts.source.0.n=8", "facts.source.1.n=4", "facts.source.2.n=4",
             "answerable.source.0.n=8", "answerable.source.1.n=4"]  # fmt: skip
    sets = [part for item in small for part in ("--set", item)]
    assert run(main, ["run", str(RECIPE), "--store", str(tmp_path / "store"), "--only", "score", *sets]) == 0
    artifacts = {p.name.rpartition("-")[0]: p for p in (tmp_path / "store").glob("*-*")}
    said = {name: json.loads((p / "manifest.json").read_text())["summary"] for name, p in artifacts.items()}
    assert said["probe"]["questions"] == 40
    assert said["probe"]["knowledge"]["rarely"] > 0
    taught = said["teach"]
    assert taught["refused"] == said["probe"]["knowledge"]["rarely"]
    assert taught["bogus_refused"] == said["bogus"]["rows"]
    assert taught["rows"] + taught["left_out"]["rows"] == 40 + said["bogus"]["rows"]
    groups = {e["group"] for e in json.loads((artifacts["score"] / "summary.json").read_text())["estimates"]}
    assert {"bogus", "lookalike", "rarely"} <= groups
