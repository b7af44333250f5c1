"""posttrain's losses on given tensors, through the product's own loop, as JSON on the last line of stdout.
A process of its own, in posttrain's environment, started by `rl.py`: first to make the tensors, then to use
them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import rl_workload
import side
import torch
from ours_train import PRECISION
from rl_cases import CASES
from rl_workload import Given, answers
from torch import Tensor

from posttrain.models.forest import Branch, tree_of
from posttrain.models.forward import LOGPS, score_trees
from posttrain.models.load import Model, load_model
from posttrain.models.precision import pick_dtype
from posttrain.training.advantages import Rollout
from posttrain.training.fit import Loop, fit
from posttrain.training.methods import method_config, method_named
from posttrain.training.methods.base import OLD, REFERENCE, SAMPLER, Example, Method
from posttrain.training.optim import Optimizer
from posttrain.training.schedule import OptimizerConfig
from posttrain.training.source import Data, Work

APART = 0.2  # standard deviation of what the old log-probs differ by from the policy's: ratios that clip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=side.DTYPES, default=list(side.DTYPES))
    parser.add_argument("--prepare", action="store_true", help="write given.jsonl and nothing else")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    return parser.parse_args()


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    if args.prepare:
        return prepare(args)
    return {f"{case} {dtype}": run(args.work, case, dtype) for case in args.cases for dtype in args.dtypes}


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Give each answer old log-probs near the policy's and the reference's own, both in float32."""
    w = rl_workload.read_workload(args.work)
    rows = rl_workload.given(w, args.prompts, args.samples)
    branches = [[_branch(prompt, response)] for prompt, response, _ in rows]
    old = _logps(load_model(args.work / "policy", dtype=torch.float32), branches)
    reference = _logps(load_model(args.work / "reference", dtype=torch.float32), branches)
    noise = torch.Generator().manual_seed(w.seed)
    found = [
        Given(*row, (a + APART * torch.randn(len(a), generator=noise)).tolist(), b.tolist())
        for row, a, b in zip(rows, old, reference, strict=True)
    ]
    rl_workload.write_given(args.work / "given.jsonl", found)
    return {"answers": len(found), "tokens": sum(len(row.response) for row in found)}


def run(work: Path, name: str, precision: str) -> dict[str, float]:
    case = CASES[name]
    cfg = method_config(case.posttrain)
    method = method_named(cfg.name)
    dtype = pick_dtype(PRECISION[precision], "cpu")
    model = load_model(work / "policy", dtype=torch.float32, train=True)
    reference = load_model(work / "reference", dtype=dtype) if case.computes_reference else None
    optimizer = Optimizer([p for _, p in model.named_parameters()], OptimizerConfig(), 1e-6, dtype)
    model.hf.to(dtype).eval()
    rows = rl_workload.read_given(work / "given.jsonl")
    if case.answer is None:
        data = groups(method, cfg, rows, reference)
    else:
        data = unpaired(cfg, answers(rows, case.answer), reference)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        # a microbatch that holds all, for KTO's reference point is that of a microbatch
        loop = Loop(1, 2048 if case.answer is None else 1_000_000, 0, 1, 1e9, None, 0.0, "cpu")
        fit(model, method, cfg, optimizer, Once(data), None, loop, out=out, state_folder=out / "state")
        said = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    found = {"loss": said["loss"], "gradient_norm": said["gradient_norm"]}
    return found | ({"reference_point": said["kl"]} if case.estimates_reference_point else {})


class Once:
    """A `Source` of one batch of all there is."""

    view = None

    def __init__(self, data: Data) -> None:
        self.data = data

    def batches(self, start: int, stop: int) -> Iterator[Work]:
        yield Work(self.data, range(len(self.data.examples)))

    def note(self, values: Mapping[str, float]) -> str:
        return ""

    def steps(self, epochs: float) -> int:
        return 1

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


def groups(method: Method, cfg: Any, rows: Sequence[Given], reference: Model | None) -> Data:
    """Answers to a prompt are an example; advantages are made of the rewards."""
    by_prompt = [list(group) for _, group in groupby(rows, key=lambda row: row.prompt)]
    columns = {"policy": 1.0, "kl": cfg.kl}
    examples = [
        Example(str(i), tuple(_branch(row.prompt, row.response) for row in group), columns)
        for i, group in enumerate(by_prompt)
    ]
    if reference is None:
        told = torch.tensor([logp for row in rows for logp in row.reference])
    else:
        told = torch.cat(_logps(reference, [[branch] for e in examples for branch in e.branches]))
    rollout = Rollout(
        rewards=torch.tensor([row.reward for row in rows]),
        groups=torch.tensor([i for i, group in enumerate(by_prompt) for _ in group]),
        lengths=torch.tensor([len(row.response) for row in rows]),
        logps=torch.tensor([logp for row in rows for logp in row.old]),
        reference=told,
        kl=cfg.kl,
    )
    assert method.advantages is not None
    along = {**method.advantages(cfg, rollout), REFERENCE: told}
    along |= {OLD: rollout.logps, SAMPLER: rollout.logps}
    counts = [sum(len(row.response) for row in group) for group in by_prompt]
    return Data(examples, along={name: values.split(counts) for name, values in along.items()})


def unpaired(cfg: Any, rows: Sequence[Given], reference: Model | None) -> Data:
    """rows: one of each prompt, good where its reward is positive; its mismatched pair, where the reference
    point wants one, is the answer before it, which is TRL's choice.
    """
    assert reference is not None
    borrowed = int(cfg.reference_point == "mismatched")
    examples = [
        Example(
            str(i),
            tuple(_branch(row.prompt, rows[i - k].response) for k in range(1 + borrowed)),
            {"label": float(row.reward > 0)},
            borrowed,
        )
        for i, row in enumerate(rows)
    ]
    return Data(examples, {REFERENCE: _logps(reference, [example.branches for example in examples])})


def _branch(prompt: list[int], response: list[int]) -> Branch:
    return Branch(prompt + response, [False] * len(prompt) + [True] * len(response))


def _logps(model: Model, branches: Sequence[Sequence[Branch]]) -> list[Tensor]:
    """Of each tree's responses: [N_i] float32. branches: of one prompt each."""
    trees = [tree_of(one) for one in branches]
    found = {i: out.logps for i, _, out in score_trees(model, trees, frozenset({LOGPS}))}
    return [found[i] for i in range(len(trees))]  # type: ignore[misc]


if __name__ == "__main__":
    parsed = arguments()
    side.show(lambda _: run_all(parsed))
