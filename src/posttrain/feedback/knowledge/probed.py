"""What was found out about one question: a line of `probe.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from posttrain.common.config import Config
from posttrain.common.errors import DataError
from posttrain.feedback.fact_grades import Graded
from posttrain.feedback.knowledge.posterior import Knowledge
from posttrain.formats.read import read_records
from posttrain.records import Samples

PROBE = "probe.jsonl"
TAG = "knowledge"  # of a prompt: how well the model that was probed knows the answer
State = Literal["right", "wrong", "refused", "uncertain", "ungradable"]
STATES: tuple[State, ...] = ("right", "wrong", "refused", "uncertain", "ungradable")


class Probed(Config):
    """samples: id of the row with the answers. key: of what is asked (`prompt_key`). counts: samples by
    state. alpha, beta, mean, low, high: the posterior of the accuracy and its interval. above_usually,
    below_rarely: what the class was decided by. states, reasons: of each sample, in their order.
    """

    samples: str
    key: str
    question: str
    knowledge: Knowledge
    counts: dict[State, int]
    alpha: float
    beta: float
    mean: float
    low: float
    high: float
    above_usually: float
    below_rarely: float
    states: tuple[State, ...]
    reasons: tuple[str, ...]


def state_of(graded: Graded) -> State:
    """uncertain: the grader cannot tell. ungradable: cut off, without a reference, or no grade that could be
    read.
    """
    if graded.grade is None:
        return "uncertain" if graded.uncertain else "ungradable"
    states: dict[str, State] = {"correct": "right", "incorrect": "wrong", "not_attempted": "refused"}
    return states[graded.grade]


def read_probe(folder: str) -> Iterator[tuple[Samples, Probed]]:
    """The questions of a probe with what was found out about each.

    Raises DataError where the folder is no probe, or its two files do not belong together.
    """
    path = Path(folder) / PROBE
    if not path.is_file():
        raise DataError(f"{folder}: no {PROBE} there; give the folder that a step `probe` wrote")
    rows = read_records(folder, Samples)
    try:
        found = [Probed.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except ValidationError as e:
        raise DataError(f"{path}: not what `probe` writes: {e.errors()[0]['msg']}; probe again") from None
    if [row.provenance.id for row in rows] != [one.samples for one in found]:
        raise DataError(f"{folder}: rows.jsonl and {PROBE} are not of one run; probe again")
    return iter(list(zip(rows, found, strict=True)))
