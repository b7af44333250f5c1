"""Finished steps made up for the report's tests: a whole run's folders with manifests, no model behind them.

`python tests/report_artifacts.py FOLDER` writes them and the page about them, to look at.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from posttrain.common.files import write_json
from posttrain.evaluation.summary import summarise
from posttrain.evaluation.task import EvalContext, ModelKind, Outcome, TaskConfig
from posttrain.evaluation.tasks import TaskUse

NASTY = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\n\x00\x1b[31mred\x07 \u202eevil\u202c \ud83d "
    "{{ 7*7 }} ${x} </div></td></table>"
)
MODELS = {"base": "policy", "sft": "policy", "reward": "reward", "dpo": "policy"}


class Atlas(TaskConfig):
    """Facts of an invented atlas."""

    title: ClassVar[str] = "Atlas facts"
    headline: ClassVar[str] = "correct"
    units: ClassVar[dict[str, str]] = {"tokens": "tokens"}

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        raise NotImplementedError


class Pairs(Atlas):
    title: ClassVar[str] = "Pairs ranked rightly"
    headline: ClassVar[str] = "accuracy"
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"policy", "reward"})


class Loss(Atlas):
    title: ClassVar[str] = "Held-out loss"
    headline: ClassVar[str] = "loss"
    units: ClassVar[dict[str, str]] = {"loss": "nats/token"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})


class Oracle(Atlas):
    title: ClassVar[str] = "Oracle's score"
    headline: ClassVar[str] = "score"
    wins: ClassVar[str | None] = "score"


USES = tuple(
    TaskUse(name=name, label=name, settings=settings)
    for name, settings in (("atlas", Atlas()), ("oracle", Oracle()), ("pairs", Pairs()), ("loss", Loss()))
)
ATLAS_RATE = {"base": 0.02, "sft": 0.55, "dpo": 0.58}
SCORE = {"base": -1.2, "sft": 0.3, "dpo": 0.9}
PAIR_RATE = {"base": 0.5, "sft": 0.52, "reward": 0.81, "dpo": 0.7}
LOSS = {"base": 3.1, "sft": 1.42, "dpo": 1.49}
ANSWERS = {
    "base": "the river Ond runs past the hills of Marre and the river Ond runs past the hills of",
    "sft": "The capital of Ondaria is Vell.",
    "dpo": "The capital of Ondaria is Vell, on the river Ond.\n\nWould you like to know more about it?",
}


def outcomes(seed: int = 0) -> dict[tuple[str, str], list[Outcome] | None]:
    """Results of four models on four tasks; the reward model can only rank pairs."""
    lot = random.Random(seed)
    luck = [lot.random() for _ in range(120)]
    return {
        (model, use.label): _outcomes(use.label, model, luck, random.Random(f"{seed}{model}{use.label}"))
        if use.settings.applicable(kind)
        else None
        for model, kind in MODELS.items()
        for use in USES
    }


def _outcomes(task: str, model: str, luck: list[float], lot: random.Random) -> list[Outcome]:
    made = []
    for i, chance in enumerate(luck):
        group, cluster = ("known", "rare", "never seen")[i % 3], f"c{i}"
        if task == "atlas":
            rate = ATLAS_RATE[model] * (1.4, 0.9, 0.1)[i % 3]
            value: float | None = float(0.7 * chance + 0.3 * lot.random() < rate)
            metrics: dict[str, float | None] = {"correct": value, "tokens": float(lot.randint(4, 40))}
            if model == "base" and i % 4 == 0:
                metrics["correct"] = None
        elif task == "oracle":
            metrics = {
                "score": SCORE[model] + chance + lot.gauss(0, 0.4),
                "polite": float(lot.random() < 0.4),
            }
        elif task == "pairs":
            metrics = {"accuracy": float(lot.random() < PAIR_RATE[model]), "margin": lot.gauss(0.2, 1)}
        else:
            metrics = {"loss": LOSS[model] + chance + lot.gauss(0, 0.1)}
        prompt, response = "What is the capital of Ondaria?", ANSWERS.get(model, "")
        if i == 0:
            prompt, response = f"What about {NASTY}?", NASTY
        if i == 1:
            prompt, response = "ما هي عاصمة أونداريا؟", "عاصمة أونداريا هي فيل، على نهر أوند. " * 3
        if i == 2:
            response = "ThisIsOneVeryLongWord" * 400
        asks = task in ("atlas", "oracle")
        made.append(
            Outcome(
                f"{task}-{i}",
                cluster,
                metrics,
                group if task == "atlas" else "",
                prompt if asks else "",
                response if asks else "",
                "cut off" if metrics.get("correct", 0) is None else "",
            )
        )
    return made


def write_artifact(
    folder: Path,
    kind: str,
    inputs: dict[str, str],
    seconds: float,
    config: dict[str, Any],
    summary: dict[str, Any],
) -> Path:
    """A folder with a manifest; inputs: {reference: folder name beside this one}."""
    folder.mkdir(parents=True, exist_ok=True)
    step, _, key = folder.name.rpartition("-")
    manifest = {
        "kind": kind,
        "step": step,
        "key": key,
        "inputs": {
            ref: {"key": other.rpartition("-")[2], "path": f"../{other}"} for ref, other in inputs.items()
        },
        "config": config,
        "summary": summary,
        "seconds": seconds,
        "posttrain": "0.1.0",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_rows(folder: Path, kind: str, count: int, rejected: int = 0) -> None:
    row = {"kind": kind, "provenance": {"id": "1", "licence": "Apache-2.0"}}
    write_lines(folder / "rows.jsonl", [row] * count)
    if rejected:
        bad = {"file": "demos.jsonl", "line": 3, "field": "response", "reason": "an empty response"}
        write_lines(folder / "rejected.jsonl", [bad] * rejected)


def write_metrics(folder: Path, steps: int, start: float, end: float, extra: dict[str, float]) -> None:
    lot = random.Random(steps)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-4 * step / steps)
        loss = start + (end - start) * done
        line = {
            "step": step,
            "split": "train",
            "loss": loss + lot.gauss(0, 0.08),
            "lr": 3e-4 * (1 - step / steps),
        }
        line |= {"gradient_norm": 1 + lot.random(), "tokens": 4096 * step, "seconds": 0.05 * step}
        line |= {name: value * done + lot.gauss(0, 0.05) for name, value in extra.items()}
        lines.append(line)
        if step % (steps // 8) == 0:
            lines.append({"step": step, "split": "heldout", "loss": loss + 0.05})
    write_lines(folder / "metrics.jsonl", lines)


def write_evaluation(folder: Path, seed: int = 0) -> None:
    results = outcomes(seed)
    write_lines(
        folder / "results.jsonl",
        [
            {"model": model, "task": task, **vars(outcome)}
            for (model, task), some in results.items()
            for outcome in some or ()
        ],
    )
    paths = {name: f"../{name}" for name in MODELS}
    summary = summarise(USES, paths, MODELS, results) | {"seed": 0, "limit": None}  # type: ignore[arg-type]
    write_json(folder / "summary.json", summary)


def write_run(store: Path) -> Path:
    """A whole run; returns the folder of its evaluation."""
    corpus = write_artifact(
        store / "corpus-11aa22bb33cc", "curate", {}, 0.8, {"source": "playground/corpus"}, {}
    )
    write_rows(corpus, "document", 4000)
    demos = write_artifact(store / "demos-22bb33cc44dd", "curate", {}, 0.4, {"source": "demos.jsonl"}, {})
    write_rows(demos, "demonstration", 1200, rejected=7)
    pairs = write_artifact(
        store / "pairs-33cc44dd55ee", "curate", {}, 0.5, {"source": "playground/pairs"}, {}
    )
    write_rows(pairs, "comparison", 900)
    tokens = write_artifact(store / "tok-44dd55ee66ff", "tokenizer", {"@corpus": corpus.name}, 2.1, {}, {})
    chain = [
        (
            "base-55ee66ff7700",
            "pretrain",
            {"@corpus": corpus.name, "@tok": tokens.name},
            96.0,
            1200,
            (6.1, 2.3),
        ),
        (
            "sft-66ff77008811",
            "sft",
            {"@base": "base-55ee66ff7700", "@demos": demos.name},
            61.0,
            240,
            (3.1, 1.4),
        ),
        (
            "reward-770088119922",
            "reward",
            {"@sft": "sft-66ff77008811", "@pairs": pairs.name},
            22.4,
            80,
            (0.69, 0.41),
        ),
        (
            "dpo-8811992233aa",
            "dpo",
            {"@sft": "sft-66ff77008811", "@pairs": pairs.name},
            48.2,
            80,
            (0.69, 0.52),
        ),
    ]
    for name, method, inputs, seconds, steps, (start, end) in chain:
        config = {"method": {"name": method}, "model": next(iter(inputs)), "lr": 3e-4, "epochs": 1}
        told = {
            "tokens": 4096 * steps,
            "tokens_per_second": 4096 * steps / seconds,
            "peak_memory_mb": 812.4,
        }
        folder = write_artifact(store / name, "train", inputs, seconds, config, told)
        extra = {"accuracy": 0.8, "reward_margin": 1.3, "kl": 0.4} if method in ("dpo", "reward") else {}
        write_metrics(folder, steps, start, end, extra)
    inputs = {f"@{name.split('-')[0]}": name for name, *_ in chain}
    score = write_artifact(store / "score-99223344bbcc", "evaluate", inputs, 31.0, {"tasks": ["atlas"]}, {})
    write_evaluation(score)
    return score


def write_rollouts(folder: Path, rollouts: int, hacked: bool) -> None:
    """Metrics, samples and checks of a run on sampled answers: the reward rises, gold turns."""
    lot = random.Random(rollouts)
    lines: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for r in range(1, rollouts + 1):
        done = r / rollouts
        kl = max(14 * done**1.5 + lot.gauss(0, 0.2), -0.05)
        reward = -0.4 + 2.2 * done**0.7 + lot.gauss(0, 0.06)
        gold = 0.42 + 0.9 * done - (1.15 if hacked else 0.6) * done**2 + lot.gauss(0, 0.015)
        alarm = float(hacked and done > 0.8)
        check = {"kl": kl, "proxy": reward, "gold": gold, "gold_low": gold - 0.05, "gold_high": gold + 0.05}
        check |= {"gold_no_answer": 0.02, "alarm": alarm}
        if r % 2 == 1:
            checks.append({"rollout": r, **check})
        length = 22 + 30 * done + lot.gauss(0, 1)
        for update in range(2):
            line = {"step": 2 * r - 1 + update, "split": "train", "rollout": r, "loss": lot.gauss(0, 0.02)}
            line |= {"reward": reward, "kl": kl, "entropy": 2.1 - 1.1 * done, "response_tokens": length}
            line |= {"truncated": 0.02 + 0.1 * done, "explained_variance": 0.8 * done, "clipped": 0.1 * done}
            line |= {"sampling_seconds": 2.0, "reward_std": 0.5, "length_correlation": 0.6 * done}
            line |= {name: check[name] for name in ("gold", "alarm") if r % 2 == 1}
            lines.append(line)
        for i in range(4):
            said = (
                NASTY
                if i == 0 and r == 1
                else "The capital of Ondaria is Vell. " * (1 + int(5 * done * (i + 1) / 4))
            )
            tokens = max(4, int(length + lot.gauss(0, 8)))
            earned = reward + 0.03 * done * (tokens - length) + lot.gauss(0, 0.25)
            samples.append(
                {
                    "rollout": r, "prompt": "What is the capital of Ondaria?", "response": said,
                    "tokens": tokens, "reward": earned, "parts": {},
                    "finish": "length" if lot.random() < 0.1 else "stop",
                    **({"gold": None if i == 0 and r == 3 else gold} if r % 2 == 1 else {}),
                }
            )  # fmt: skip
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "monitor.jsonl", checks)


class Judged(Oracle):
    """Judged by the playground's oracle."""

    judge: dict[str, str] = Field({"name": "playground/oracle"})


class Distance(Atlas):
    title: ClassVar[str] = "KL to the reference"
    headline: ClassVar[str] = "kl"
    units: ClassVar[dict[str, str]] = {"kl": "nats"}
    undirected: ClassVar[frozenset[str]] = frozenset({"kl"})
    reference: str = "../sft"


class Best(Atlas):
    title: ClassVar[str] = "Best of n"
    headline: ClassVar[str] = "best"
    gold: dict[str, str] = Field({"name": "playground/oracle"})


POLICIES = {
    "sft": (0.0, 0.42), "rejection": (0.6, 0.5), "dpo.s0": (4.1, 0.66), "dpo.s1": (3.7, 0.64),
    "ppo.s0": (7.5, 0.74), "ppo.s1": (8.4, 0.73), "grpo.s0": (6.4, 0.73), "grpo.s1": (6.1, 0.71),
    "rloo": (6.2, 0.75), "kto": (2.1, 0.55), "hacked": (24.0, 0.48),
}  # fmt: skip


def write_frontier(folder: Path, seed: int = 0) -> None:
    """An evaluation of policies that went different ways: KL, a judge's scores, best of n of the first."""
    lot = random.Random(seed)
    uses = [
        TaskUse(name=name, label=label, settings=settings)
        for name, label, settings in (
            ("judged", "judged", Judged()),
            ("kl", "kl", Distance()),
            ("best_of_n", "best_of_n", Best()),
        )
    ]
    results: dict[tuple[str, str], list[Outcome] | None] = {}
    for name, (kl, score) in POLICIES.items():
        spent = [
            Outcome(f"i{i}", f"c{i}", {"kl": kl and kl + lot.gauss(0, 1.5 * kl**0.5)}) for i in range(60)
        ]
        found = [Outcome(f"i{i}", f"c{i}", {"score": score + lot.gauss(0, 0.12)}) for i in range(60)]
        results |= {(name, "kl"): spent, (name, "judged"): found, (name, "best_of_n"): None}
    results["sft", "best_of_n"] = [
        Outcome(
            f"i{i}",
            f"c{i}",
            {"best": 0.6}
            | {f"gold@{n}": 0.42 + 0.09 * math.log(n) + lot.gauss(0, 0.1) for n in (1, 2, 4, 8, 16)}
            | {f"kl@{n}": math.log(n) - (n - 1) / n for n in (1, 2, 4, 8, 16)},
        )
        for i in range(60)
    ]
    paths = {name: f"../{name}" for name in POLICIES}
    kinds: dict[str, ModelKind] = dict.fromkeys(POLICIES, "policy")
    write_json(folder / "summary.json", summarise(uses, paths, kinds, results) | {"seed": 0, "limit": None})
    write_lines(folder / "results.jsonl", [])


def write_rl_run(store: Path) -> Path:
    """Two runs on sampled answers, and an evaluation with a frontier; returns the evaluation's folder."""
    for name, rollouts, hacked in (("ppo-aa11aa11aa11", 60, True), ("grpo-bb22bb22bb22", 16, False)):
        config = {"method": {"name": name.split("-")[0]}}
        folder = write_artifact(store / name, "train", {}, 61.0, config, {"tokens": 90_000})
        write_rollouts(folder, rollouts, hacked)
    inputs = {"@ppo": "ppo-aa11aa11aa11", "@grpo": "grpo-bb22bb22bb22"}
    score = write_artifact(store / "frontier-cc33cc33cc33", "evaluate", inputs, 31.0, {}, {})
    write_frontier(score)
    return score


if __name__ == "__main__":
    from posttrain.report.page import build

    target = Path(sys.argv[1])
    print(build([write_run(target / "store")], target, "Quickstart: an atlas that never was"))
    print(build([write_rl_run(target / "rl")], target / "rl", "Policies that went different ways"))
