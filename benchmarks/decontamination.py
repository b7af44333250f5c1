"""What decontamination costs and finds: rows a second from scratch and with rows and sets that are known, and
which share of edited copies of evaluation questions it recognises. Prints JSON.

    python benchmarks/decontamination.py ../shared/data --rows 100000
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.common.step import StepContext
from posttrain.prompts.curate import STEP as CURATE
from posttrain.prompts.curate import CurateConfig
from posttrain.prompts.decontaminate import STEP, DecontaminateConfig

Question = dict[str, str]
NAMES = ["Zorba", "Quilla", "Imre", "Odette", "Ravi", "Xenia"]
OPENING = (
    "How|If|The|What|A|In|She|He|They|It|On|At|For|There|After|Each|One|When|Every|His|Her|This|Some|"
    "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with gsm8k_train.jsonl.gz and the evaluation sets")
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    with gzip.open(given.data / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as f:
        questions = [json.loads(line) for line in f]
    random.Random(0).shuffle(questions)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = {"speed": speed(home, given.data, questions, given.rows)}
        found["finds"] = finds(home, questions[:700], questions[700:])
        found["between sets"] = between(home, given.data)
    json.dump(found, sys.stdout, indent=2)


def screen(home: Path, data: Any, against: Any, cache: Path | None = None, **spec: Any) -> dict[str, Any]:
    """The summary of one run, with the seconds of one core it took."""
    out = home / "out"
    shutil.rmtree(out, ignore_errors=True)
    cfg = DecontaminateConfig.model_validate({"data": data, "against": against, **spec})
    start = time.process_time()
    summary = STEP.run(cfg, StepContext(out, home / "state", "decontaminate", cache))
    return summary | {"seconds": time.process_time() - start}


def speed(home: Path, data: Path, questions: list[Question], rows: int) -> dict[str, Any]:
    """Seconds and rows a second: rows with other numbers, so that no two are the same."""
    rng = random.Random(1)

    def varied(n: int) -> list[Question]:
        return [{key: numbers(text, rng) for key, text in rng.choice(questions).items()} for _ in range(n)]

    some = records(home / "some", varied(rows))
    more = records(home / "more", varied(rows // 100))
    sets = [str(data / name) for name in ("mt_bench_questions.jsonl", "human_eval.jsonl.gz")]
    new = [*sets, str(data / "xstest_prompts.csv")]
    cache = home / "cache"
    runs = {
        "from scratch": screen(home, some, sets),
        "and kept": screen(home, some, sets, cache),
        "all known": screen(home, some, sets, cache),
        "1% new rows": screen(home, [some, more], sets, cache),
        "a new evaluation set": screen(home, [some, more], new, cache),
    }
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    return {
        "rows": rows,
        "text_bytes": (Path(some) / "rows.jsonl").stat().st_size,
        "kept_bytes": size,
        "runs": {
            name: {
                "seconds": round(run["seconds"], 2),
                "rows_per_second": round(run["read"] / run["seconds"]),
            }
            for name, run in runs.items()
        },
    }


def records(out: Path, rows: list[Question]) -> str:
    """The rows as an artifact of `curate`."""
    plain = out.with_suffix(".jsonl")
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    cfg = CurateConfig.model_validate({"source": str(plain), "dedupe": False})
    CURATE.run(cfg, StepContext(out, out.parent / "state", "curate"))
    return str(out)


def finds(home: Path, items: list[Question], others: list[Question]) -> dict[str, Any]:
    """The share of edited copies of 700 questions that share 13 words, or have a ratio of at least …; and of
    the other 6,773 questions, which are none of these.
    """
    rng = random.Random(2)
    edits: dict[str, Callable[[str], str]] = {
        "none": lambda text: text,
        "case and punctuation": lambda text: text.upper().replace(",", " ,").replace(".", "!"),
        "every number": lambda text: numbers(text, rng),
        "every number and name": lambda text: names(numbers(text, rng), rng),
        "5% of the words": lambda text: words(text, 0.05, rng),
        "10% of the words": lambda text: words(text, 0.1, rng),
        "20% of the words": lambda text: words(text, 0.2, rng),
        "30% of the words": lambda text: words(text, 0.3, rng),
        "second half cut off": lambda text: " ".join(text.split()[: len(text.split()) // 2]),
    }
    against = write(home / "items.jsonl", items)
    told: dict[str, Any] = {"edited copies": {}}
    for name, edit in edits.items():
        copies = [{**item, "question": edit(item["question"])} for item in items]
        told["edited copies"][name] = shares(home, write(home / "copies.jsonl", copies), against)
    told["other questions of GSM8K"] = shares(home, write(home / "others.jsonl", others), against)
    return told


def between(home: Path, data: Path) -> dict[str, Any]:
    """Data sets that have nothing to do with one another, with the defaults, and every span that is found."""
    sets = ["mt_bench_questions.jsonl", "human_eval.jsonl.gz", "nq_open_dev.jsonl", "xstest_prompts.csv"]
    told: dict[str, Any] = {}
    for name in ("gsm8k_train.jsonl.gz", "hh_rlhf_harmless.jsonl.gz", "oasst_en_100_trees.jsonl"):
        run = screen(home, str(data / name), [str(data / each) for each in sets])
        lines = (home / "out" / "overlaps.jsonl").read_text("utf-8").splitlines()
        spans = [
            [each["verdict"], each["set"], each["by"], each["ratio"], each["span"]]
            for line in lines
            for each in json.loads(line)["overlaps"]
        ]
        told[name] = {key: run[key] for key in ("read", "contaminated", "partial")} | {"spans": spans}
    return told


def shares(home: Path, data: str, against: str) -> dict[str, float]:
    spec = {"contaminated": 1.0, "partial": 0.0, "action": "mark", "compare": "prompt"}
    rows = screen(home, data, against, **spec)["read"]
    runs, ratios = 0, []
    for line in (home / "out" / "overlaps.jsonl").read_text("utf-8").splitlines():
        for overlap in json.loads(line)["overlaps"]:
            runs += overlap["ratio"] is None
            ratios.append(overlap["ratio"] or 0.0)
    at = {f"or ratio >= {t}": round((runs + sum(r >= t for r in ratios)) / rows, 4) for t in (0.5, 0.3, 0.15)}
    return {"13-gram": round(runs / rows, 4), **at, "largest ratio": max(ratios, default=0.0)}


def write(path: Path, rows: list[Question]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def numbers(text: str, rng: random.Random) -> str:
    return re.sub(r"\d+", lambda found: str(int(found.group()) + rng.randint(1, 9)), text)


def names(text: str, rng: random.Random) -> str:
    return re.sub(rf"\b(?!(?:{OPENING})\b)[A-Z][a-z]+", lambda found: rng.choice(NAMES), text)


def words(text: str, share: float, rng: random.Random) -> str:
    return " ".join(f"other{rng.randint(0, 99)}" if rng.random() < share else w for w in text.split())


if __name__ == "__main__":
    main()
