"""One run of posttrain's pivotal search, as JSON on the last line of stdout; what it asked the model for goes
to a file. A process of its own, in posttrain's environment, started by `pivotal.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pivotal_case
import side
import torch
from matrix_rate import DTYPES
from measure import by_kind, process_peak_rss_mib
from pivotal_case import Job, Request
from rl_workload import read_workload
from workload import text

from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import Completion, SamplingParams
from posttrain.feedback.judge import Verdict
from posttrain.feedback.pivotal.drive import drive
from posttrain.feedback.pivotal.roller import EngineRoller, Grading, Question
from posttrain.feedback.pivotal.search import Rules, search
from posttrain.models.load import load_model
from posttrain.records import Message, Prompt, Provenance, Response

# Tokens in the cache at once. Its bound counts every answer at its longest; few get there.
BATCH_TOKENS = 131_072


class Oracle:
    """`pivotal_case.right` as a judge."""

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [
            Verdict(float(pivotal_case.right(int(prompt.provenance.id), response.token_ids or ())))
            for prompt, response in items
        ]


@dataclass
class Recorder:
    """An engine that notes what it is asked for, level by level."""

    engine: LocalEngine
    prompts: list[list[int]]
    levels: list[list[Request]] = field(default_factory=list)
    tokens: int = 0
    prefilled: int = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str,
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        wanted: dict[tuple[int, ...], int] = {}
        for prompt in prompts:
            wanted[tuple(prompt)] = wanted.get(tuple(prompt), 0) + params.n
        self.levels.append([self._request(prompt, n) for prompt, n in wanted.items()])
        found = self.engine.generate(prompts, params, label, limits)
        self.tokens += sum(len(answer.token_ids) for answers in found for answer in answers)
        return found

    def _request(self, ids: tuple[int, ...], n: int) -> Request:
        (question,) = (i for i, own in enumerate(self.prompts) if list(ids[: len(own)]) == own)
        return Request(question, list(ids[len(self.prompts[question]) :]), n)


def opened(work: Path, dtype: torch.dtype, job: Job, state: Path) -> tuple[EngineRoller, Recorder]:
    """The roller of the search, and what its engine was asked for."""
    w = read_workload(work)
    model = load_model(work / "policy", dtype=dtype)
    model.hf.generation_config.eos_token_id = pivotal_case.stops(w, job)
    ids = pivotal_case.prompts(w, job)
    questions = [Question(_prompt(i, text(own[1:-1], w)), tuple(own)) for i, own in enumerate(ids)]
    engine = Recorder(LocalEngine(model, BATCH_TOKENS), ids)
    grading = Grading(Oracle(), "votes", 1.0, "exclude", "failure")
    sampling = SamplingParams(max_new_tokens=job.tokens)
    return EngineRoller(questions, engine, model.template, grading, sampling, state, "pivotal"), engine


def _prompt(question: int, content: str) -> Prompt:
    return Prompt(provenance=Provenance(id=str(question)), messages=(Message(role="user", content=content),))


def rules(job: Job) -> Rules:
    """As published: a fixed number of rollouts from a prefix."""
    return Rules(0.2, 0.2, 0.8, 1, job.rollouts, job.rollouts, 0.2)


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """A warm-up of a few tokens, then the measured search."""
    torch.set_num_threads(args.threads)
    job = pivotal_case.job_of(args)
    roller, engine = opened(args.work, DTYPES[args.dtype], job, scratch)
    engine.engine.generate([[5, 6, 7], [5, 6]], SamplingParams(n=2, max_new_tokens=4))
    profile: Any = torch.profiler.profile(record_shapes=True) if args.profile else contextlib.nullcontext()
    started, cpu = time.perf_counter(), time.process_time()
    with profile:
        found = drive([search(i, rules(job)) for i in range(job.questions)], roller)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    pivotal_case.write(args.requests, engine.levels)
    counts = roller.ledger.counts
    result = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "rollouts": counts["rollouts"],
        "tokens": engine.tokens,
        "tokens_prefilled": counts["tokens_prefilled"],
        "oracle_calls": counts["oracle_calls"],
        "levels": [[len(level), sum(request.n for request in level)] for level in engine.levels],
        "kept": sum(each.state == "kept" for each in found),
        "candidates": sum(len(each.candidates) for each in found),
        "peak_memory_mib": round(process_peak_rss_mib(), 1),
    }
    return result | ({"profile": by_kind(profile, read_workload(args.work).vocab)} if args.profile else {})


if __name__ == "__main__":
    parsed = pivotal_case.parser_of(__doc__).parse_args()
    side.show(lambda scratch: run(parsed, scratch))
