"""What the pivotal search is compared on: questions, answers that end, and an oracle that costs nothing.

Imports nothing but numpy, torch and transformers: imported by the process of `run.py` and by those of the
sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from side import DTYPES
from workload import Workload, first_letter, pairs

# How many samples the plain method draws at once.
BATCH = 5
# Where in an answer the three tokens stand that decide: from the first on, each within its own stretch.
_VOTES = ((4, 12), (16, 28), (32, 48))


@dataclass(frozen=True)
class Job:
    """Questions, the tokens an answer may have, one token in how many ends it, and rollouts from a prefix."""

    questions: int = 32
    tokens: int = 128
    stop_every: int = 64
    rollouts: int = 16


@dataclass(frozen=True)
class Request:
    """n rollouts that continue `prefix`, tokens of an answer to question number `question`."""

    question: int
    prefix: list[int]
    n: int


def prompts(w: Workload, job: Job) -> list[list[int]]:
    """The first prompts of the workload."""
    return [prompt for prompt, _, _ in pairs(replace(w, pairs=job.questions))]


def stops(w: Workload, job: Job) -> list[int]:
    """Tokens that end an answer. The weights are random and no token is likelier than another, so an answer
    ends after `stop_every` tokens in the mean.
    """
    return list(range(first_letter(w), w.vocab, job.stop_every))


def right(question: int, answer: Sequence[int]) -> bool:
    """Whether a finished answer is right: most of its three votes are.

    A vote is whether one token's id is even; the votes stand in different places in each question, and one
    that the answer does not reach is right in every other question. So the three tokens are pivotal as far as
    the others leave the matter open, and no other is, but for the one that ends the answer.
    """
    votes = []
    for i, (first, end) in enumerate(_VOTES):
        at = first + (question * 7 + i * 5) % (end - first)
        votes.append((answer[at] if at < len(answer) else question + i) % 2 == 0)
    return sum(votes) >= 2


def write(path: Path, levels: Sequence[Sequence[Request]]) -> None:
    """Requests, level by level."""
    path.write_text(json.dumps([[asdict(request) for request in level] for level in levels]))


def read(path: Path) -> list[list[Request]]:
    return [[Request(**request) for request in level] for level in json.loads(path.read_text())]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Flags of a run of either side."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--work", type=Path, required=True, help="folder that workload.make filled")
    parser.add_argument("--requests", type=Path, required=True, help="file of what the search asked for")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    for name, value in asdict(Job()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    return parser


def job_of(args: argparse.Namespace) -> Job:
    """What the flags say."""
    return Job(**{name: getattr(args, name) for name in Job.__dataclass_fields__})
