"""The search and the confirmation over all questions, and the files that hold what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.common.files import atomic, write_json
from posttrain.feedback.pivotal.candidates import Trajectory
from posttrain.feedback.pivotal.confirm import Claims, Trial, confirm
from posttrain.feedback.pivotal.drive import drive
from posttrain.feedback.pivotal.roller import EngineRoller
from posttrain.feedback.pivotal.rows import Maker, pair_of, question_line, trajectory_line
from posttrain.feedback.pivotal.search import Found, Rules, search
from posttrain.formats.write import write_records

if TYPE_CHECKING:
    from posttrain.feedback.pivotal.opening import World
    from posttrain.feedback.pivotal.step import PivotalConfig


def find(cfg: PivotalConfig, roller: EngineRoller) -> tuple[list[Found], list[Trial]]:
    """What was found in each question, and what became of every candidate."""
    rules = Rules(**{name: getattr(cfg, name) for name in Rules.__dataclass_fields__})
    claims = Claims(**{name: getattr(cfg, name) for name in Claims.__dataclass_fields__})
    found = drive([search(i, rules) for i in range(len(roller.questions))], roller)
    (trials,) = drive([confirm([c for each in found for c in each.candidates], claims)], roller)
    return found, trials


def write(
    cfg: PivotalConfig, out: Path, world: World, found: Sequence[Found], trials: Sequence[Trial]
) -> int:
    """Write the files; returns how many pairs there are."""
    from posttrain.models.load_tokenizer import tokenizer_hash

    template = world.writer.template
    settings = cfg.sampling.model_dump(exclude_defaults=True) | {"temperature": cfg.sampling.temperature}
    maker = Maker(
        template,
        tokenizer_hash(template.tokenizer),
        ", ".join([world.writer.name, *(f"{key} {value}" for key, value in settings.items())]),
        cfg.judge.label,
        cfg.error,
    )
    pairs = [t for t in trials if t.pair == "confirmed"]
    write_records(
        out / "rows.jsonl", [pair_of(t, world.questions[t.candidate.question], maker) for t in pairs]
    )
    asked = list(zip(world.questions, found, strict=True))
    _write_lines(out / "questions.jsonl", (question_line(q, f, cfg.error) for q, f in asked))
    of_question: dict[int, list[Trial]] = {}
    for trial in trials:
        of_question.setdefault(trial.candidate.question, []).append(trial)
    _write_lines(
        out / "trajectories.jsonl",
        (
            trajectory_line(question, trajectory, along(trajectory, of_question.get(q, ())), maker)
            for q, (question, each) in enumerate(asked)
            for trajectory in each.trajectories
        ),
    )
    ledger = world.roller.ledger
    ledger.counts["outcomes_reused"] = reused(found)
    confirmed = sum(trial.state == "confirmed" for trial in trials)
    write_json(out / "ledger.json", ledger.told(confirmed, len(pairs)))
    return len(pairs)


def along(trajectory: Trajectory, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of tokens that stand in an answer, in order: several answers may go the same way there."""
    tokens = trajectory.along.tokens
    found = [
        trial
        for trial in trials
        for path in [(*trial.candidate.prefix, trial.candidate.token)]
        if tokens[: len(path)] == path
    ]
    return sorted(found, key=lambda trial: len(trial.candidate.prefix))


def reused(found: Sequence[Found]) -> int:
    """Outcomes at places whose p was wanted that came from rollouts which had begun before them."""
    return sum(
        along.places[i].drawn - along.places[i].own
        for each in found
        for trajectory in each.trajectories
        for along in [trajectory.along]
        for i in trajectory.probed
    )


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with atomic(path) as f:
        f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
