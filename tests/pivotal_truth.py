"""How good a finished search for pivotal tokens was: p(success) after every token of its answers by very many
rollouts, and precision and recall against that.

    python tests/pivotal_truth.py store/pivots-… --rollouts 1000

The folder is a finished `pivotal` step; its manifest names model, judge and sampling. One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.common.config import parse
from posttrain.common.manifest import read_manifest
from posttrain.common.step import StepContext
from posttrain.feedback.pivotal.opening import open_world
from posttrain.feedback.pivotal.rollouts import Along, Ask
from posttrain.feedback.pivotal.step import PivotalConfig
from posttrain.feedback.pivotal.subdivide import subdivide

Token = tuple[str, tuple[int, ...], int]  # question, prefix, token


def exact(p: list[float], logps: list[float], gap: float) -> set[int]:
    """What the report's algorithm finds where p is known."""
    going = subdivide(logps)
    open_ = next(going)
    while True:
        try:
            open_ = going.send([abs(p[s.stop] - p[s.start]) >= gap for s in open_])
        except StopIteration as e:
            return set(e.value)


def measured(folder: Path, rollouts: int, answers: int | None) -> dict[str, Any]:
    """Counts of candidates, confirmed pivots and pairs, and how many of them are real."""
    manifest = read_manifest(folder)
    cfg = parse(
        PivotalConfig, at_home(manifest["config"], folder, manifest["inputs"]) | {"seed": 10**6}, "truth"
    )
    lines = [json.loads(line) for line in (folder / "trajectories.jsonl").read_text("utf-8").splitlines()][
        :answers
    ]
    with tempfile.TemporaryDirectory() as scratch:
        world = open_world(cfg, StepContext(Path(scratch) / "out", Path(scratch) / "state", "truth"))
        number = {q.prompt.provenance.id: i for i, q in enumerate(world.questions)}
        wanted: dict[tuple[int, tuple[int, ...]], float] = {}
        for line in lines:
            q, ids = number[line["id"]], tuple(line["token_ids"])
            wanted |= {(q, ids[:i]): 0.0 for i in range(len(ids))}
            for p in line["pivots"]:
                if "other" in p and not line_ends(p, "other"):
                    wanted[q, (*ids[: p["at"]], p["other"])] = 0.0
        asks = [Ask(q, prefix, rollouts, "confirm") for q, prefix in wanted]
        came = list(zip(asks, world.roller(asks), strict=True))
    least = rollouts
    for q, prefix in wanted:
        # a rollout from a shorter prefix counts where it went the same way (`Along`)
        along = Along(prefix)
        for ask, some in came:
            if ask.question == q and ask.prefix == prefix[: len(ask.prefix)]:
                for rollout in some:
                    along.add(ask.prefix, rollout)
        known = along.places[-1].outcomes
        wanted[q, prefix] = sum(known) / len(known)
        least = min(least, len(known))
    return {"least_rollouts": least} | counted(lines, number, wanted, cfg.p_gap)


def at_home(value: Any, folder: Path, inputs: dict[str, Any]) -> Any:
    """A manifest's config with paths in place of `@step`."""
    if isinstance(value, dict):
        return {k: at_home(v, folder, inputs) for k, v in value.items()}
    if isinstance(value, str) and value in inputs:
        return str((folder / inputs[value]["path"]).resolve())
    return value


def line_ends(pivot: dict[str, Any], name: str) -> bool:
    """Whether the token ends the answer: nothing can be rolled out after it."""
    return pivot[f"{name}_text"] == "" if f"{name}_text" in pivot else False


def counted(
    lines: list[dict[str, Any]],
    number: dict[str, int],
    p: dict[tuple[int, tuple[int, ...]], float],
    gap: float,
) -> dict[str, Any]:
    real: set[Token] = set()
    findable: set[Token] = set()
    seen: dict[str, set[Token]] = {"candidates": set(), "confirmed": set()}
    changes: dict[Token, float] = {}
    pairs: dict[Token, bool] = {}  # whether both tokens do what is claimed
    for line in lines:
        q, ids = number[line["id"]], tuple(line["token_ids"])
        along = [p[q, ids[:i]] for i in range(len(ids))] + [float(line["success"])]
        tokens = [(line["id"], ids[:i], ids[i]) for i in range(len(ids))]
        changes |= {t: along[i + 1] - along[i] for i, t in enumerate(tokens)}
        real |= {t for t in tokens if abs(changes[t]) >= gap}
        findable |= {tokens[i] for i in exact(along, line["logps"], gap)}
        for pivot in line["pivots"]:
            token = tokens[pivot["at"]]
            seen["candidates"].add(token)
            if pivot["state"] == "confirmed":
                seen["confirmed"].add(token)
            if pivot["pair"] == "confirmed":
                other = p.get((q, (*token[1], pivot["other"])), 0.0)
                opposed = (other - along[pivot["at"]]) * changes[token] < 0
                pairs[token] = opposed and abs(changes[token]) >= gap
    found: dict[str, Any] = {
        "answers": len(lines),
        "tokens": len(changes),
        "real": len(real),
        "findable": len(findable),
    }
    for name, tokens in seen.items():
        found[name] = len(tokens)
        found[f"{name}_real"] = len(tokens & real)
    found |= as_published(lines, number, p, gap)
    found["recall_of_findable"] = _share(len(seen["confirmed"] & findable), len(findable))
    found["recall_of_all"] = _share(len(seen["confirmed"] & real), len(real))
    found["precision"] = _share(found["confirmed_real"], found["confirmed"])
    found["precision_of_candidates"] = _share(found["candidates_real"], found["candidates"])
    missed = sorted((round(abs(changes[t]), 2) for t in findable - seen["confirmed"]), reverse=True)
    false = sorted((round(abs(changes[t]), 2) for t in seen["confirmed"] - real), reverse=True)
    told = {"pairs": len(pairs), "pairs_right": sum(pairs.values())}
    return found | told | {"missed_changes": missed, "false_changes": false}


def as_published(
    lines: list[dict[str, Any]],
    number: dict[str, int],
    p: dict[tuple[int, tuple[int, ...]], float],
    gap: float,
    rollouts: int = 10,
    times: int = 200,
) -> dict[str, Any]:
    """What the same search gives with a fixed number of rollouts a prefix and none to confirm: drawn from the
    measured p, many times.
    """
    rng = np.random.default_rng(0)
    reported = right = findable = found = 0
    for line in lines:
        q, ids = number[line["id"]], line["token_ids"]
        true = [p[q, tuple(ids[:i])] for i in range(len(ids))] + [float(line["success"])]
        real = {i for i in range(len(ids)) if abs(true[i + 1] - true[i]) >= gap}
        wanted = exact(true, line["logps"], gap)
        for _ in range(times):
            said = exact((rng.binomial(rollouts, true) / rollouts).tolist(), line["logps"], gap - 1e-9)
            reported, right = reported + len(said), right + len(said & real)
            findable, found = findable + len(wanted), found + len(said & wanted)
    return {
        "as_published_precision": _share(right, reported),
        "as_published_recall_of_findable": _share(found, findable),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--answers", type=int)
    args = parser.parse_args()
    print(json.dumps(measured(args.folder, args.rollouts, args.answers)))
