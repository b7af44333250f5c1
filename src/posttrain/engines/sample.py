"""The `sample` step: a model answers prompts, and every answer keeps its tokens, log-probs and origin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain.common.chunks import in_chunks
from posttrain.common.config import DataRef, Runtime
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.engines.engines import EngineField, EngineUse, read_engine
from posttrain.engines.protocol import BATCH_TOKENS, SamplingParams
from posttrain.engines.writer import Job, Writer, Written
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.write import line_of, write_records
from posttrain.models.precision import Precision
from posttrain.models.spec import ModelSpec, SpecField
from posttrain.records import Prompt, Provenance, Response, Samples, row_id

# Responses between two saved states: what a killed run loses at most. Seeds depend on it, so a change of it
# is a new version of the step.
_CHUNK = 1024


class SampleConfig(SamplingParams):
    """Who answers what, and the fields of SamplingParams.

    engine: "local" (in this process), "http" (an OpenAI-compatible server, which names its own model),
    "vllm", or another one that is registered; a name, or `{name: …, settings…}`.
    model: a folder, hub id or `@step`, or a mapping (ModelSpec).
    prompts: rows with prompts, of any kind; a prompt that several rows share is asked once.
    limit: at most so many prompts, the first ones.
    max_rejected: share of prompts that may get no answer at all (longer than the model takes, filtered by a
    server) before the step fails.
    batch_tokens: bound on the tokens held in the model's cache at once (memory, not result).
    """

    engine: EngineField = Field(default_factory=partial(read_engine, "local"))
    model: SpecField | None = None
    prompts: DataRef
    limit: int | None = Field(None, ge=1)
    max_rejected: float = Field(0.01, ge=0, le=1)
    precision: Precision = "auto"
    batch_tokens: Annotated[int, Runtime(), Field(ge=1)] = BATCH_TOKENS
    device: Annotated[str, Runtime()] = "auto"

    @model_validator(mode="after")
    def _together(self) -> SampleConfig:
        check_engine(self, self.engine, self.model)
        return self

    @property
    def params(self) -> SamplingParams:
        return _params(self)


def check_engine(cfg: SamplingParams, choice: EngineUse, model: ModelSpec | None) -> None:
    """Raise ValueError where the engine and the fields of `sample` do not go together."""
    choice.check(cfg.model_fields_set, model, _params(cfg))


def _params(cfg: SamplingParams) -> SamplingParams:
    return SamplingParams(**{name: getattr(cfg, name) for name in SamplingParams.model_fields})


def run(cfg: SampleConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` of Samples and `rejected.jsonl`. What a killed run finished is kept."""
    keep = (ctx.cache or ctx.state) / "replies"
    job = Job(cfg.model, keep, ctx.out.name, cfg.precision, cfg.device, cfg.batch_tokens)
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        rows = read_records(cfg.prompts, Prompt, rejects=rejects)
        same: dict[str, Prompt] = {}
        for row in rows:  # wherever they stand: `source` has the line of a file
            same.setdefault(row.model_dump_json(exclude={"provenance": {"source"}}), row)
        distinct = list(same.values())
        writer = cfg.engine.engine.open(job)
        asked = _askable(distinct[: cfg.limit], writer, cfg.prompts, rejects)
        rejects.check(cfg.max_rejected)
        lines = _answered(cfg, ctx, writer, [prompt for _, prompt in asked])
        samples, missing = _collect(asked, lines, cfg.prompts, rejects)
    rejects.tell(ctx.label)
    rejects.check(cfg.max_rejected)
    if not samples:
        raise DataError(f"{cfg.prompts}: not one answer to {len(asked)} prompts; see rejected.jsonl")
    write_records(ctx.out / "rows.jsonl", samples)
    counts: dict[str, Any] = {"repeated_prompts": len(rows) - len(distinct), "rejected": rejects.rejected}
    counts |= {"no_answer": missing.total(), "no_answer_reasons": dict(missing.most_common(5))}
    return _summary(samples, writer.name) | counts | writer.spent()


STEP = Step("sample", SampleConfig, run, version=3)


def _askable(
    prompts: Sequence[Prompt], writer: Writer, source: str, rejects: Rejects
) -> list[tuple[int, Prompt]]:
    """The prompts that the writer takes, numbered from 1; the others are rejected.

    Raises DataError where there is none.
    """
    kept = []
    for number, (prompt, why) in enumerate(zip(prompts, writer.turned_away(prompts), strict=True), 1):
        if why:
            rejects.add(source, number, RowError("messages", why), prompt.model_dump(mode="json"))
        else:
            kept.append((number, prompt))
    if not kept:
        why = rejects.most() or "it has no rows"
        raise DataError(f"{source}: no prompt to answer: {why}; all of them: {rejects.path}")
    rejects.kept = len(kept)
    return kept


def _collect(
    asked: Sequence[tuple[int, Prompt]], lines: Iterable[bytes], source: str, rejects: Rejects
) -> tuple[list[Samples], Counter[str]]:
    """The rows, and why answers are missing. A prompt without any answer is rejected, one with some is not;
    both stand in rejected.jsonl.
    """
    samples: list[Samples] = []
    missing: Counter[str] = Counter()
    for (number, prompt), line in zip(asked, lines, strict=True):
        why, _, row = line.partition(b"\t")
        reasons = json.loads(why)
        missing.update(reasons)
        if row.strip():
            samples.append(Samples.model_validate_json(row))
        else:
            rejects.kept -= 1
        for reason in reasons if row.strip() else reasons[:1]:
            error = RowError("responses", f"no answer: {reason}", by_choice=bool(row.strip()))
            rejects.add(source, number, error, prompt.model_dump(mode="json"))
    return samples, missing


def _answered(
    cfg: SampleConfig, ctx: StepContext, writer: Writer, prompts: Sequence[Prompt]
) -> Iterator[bytes]:
    """A line a prompt (`_line`), chunk by chunk, those that a killed run finished first."""
    params = cfg.params
    size = len(prompts) if writer.keeps else max(_CHUNK // params.n, 1)

    def work(number: int, chunk: Sequence[Prompt]) -> list[bytes]:
        # Each chunk is a call of its own: where samples go by their place in it, it needs its own seed.
        seed = params.seed if writer.keeps else int(row_id(params.seed, number), 16)
        label = f"{ctx.label} {number + 1}/{-(-len(prompts) // size)}" if len(prompts) > size else ctx.label
        written = writer.write(chunk, params.model_copy(update={"seed": seed}), label)
        return [_line(p, w, writer.name, params) for p, w in zip(chunk, written, strict=True)]

    for lines in in_chunks(prompts, size, ctx.state, work):
        yield from lines


def _line(prompt: Prompt, written: Written, model: str, params: SamplingParams) -> bytes:
    """Why answers are missing, and after a tab the row of those that are there, if there are any."""
    row = line_of(_row(prompt, written.responses, model, params)) if written.responses else b"\n"
    return json.dumps(written.missing).encode() + b"\t" + row


def _row(prompt: Prompt, responses: tuple[Response, ...], model: str, params: SamplingParams) -> Samples:
    parent = prompt.provenance
    settings = params.model_dump(exclude_defaults=True, exclude={"n"}) | {"temperature": params.temperature}
    maker = ", ".join([model, *(f"{key} {value}" for key, value in settings.items())])
    provenance = Provenance(
        id=row_id(parent.id, model, params.model_dump()),
        source=parent.source,
        licence=parent.licence,
        makers=parent.makers | {"response": maker},
        parents=(parent.id,),
    )
    return Samples(provenance=provenance, prompt=prompt, responses=responses, model=model)


def _summary(rows: Sequence[Samples], model: str) -> dict[str, Any]:
    """What the answers are like. cut_off: how many never came to their end. tokens: None where an engine
    gives texts alone.
    """
    responses = [response for row in rows for response in row.responses]
    lengths = [len(response.token_ids) for response in responses if response.token_ids is not None]
    tokens = sum(lengths) if len(lengths) == len(responses) else None
    ended = Counter(response.finish for response in responses)
    return {
        "model": model,
        "prompts": len(rows),
        "responses": len(responses),
        "tokens": tokens,
        "mean_tokens": None if tokens is None else tokens / len(responses),
        "stopped": ended["stop"],
        "cut_off": ended["length"],
        "distinct_responses": sum(len({response.text for response in row.responses}) for row in rows),
    }
