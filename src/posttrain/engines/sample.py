"""The `sample` step: a model answers prompts, and every answer keeps its tokens, log-probs and origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from posttrain.common.chunks import in_chunks
from posttrain.common.config import DataRef, Runtime
from posttrain.common.errors import DataError
from posttrain.common.manifest import NAME, read_manifest
from posttrain.common.step import Step, StepContext
from posttrain.engines.protocol import BATCH_TOKENS, Completion, Engine, SamplingParams
from posttrain.engines.stopping import cut
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.write import line_of, write_records
from posttrain.models.precision import Precision, pick_device, pick_dtype
from posttrain.models.spec import ModelSpec, SpecField
from posttrain.records import Prompt, Provenance, Response, Samples, row_id

if TYPE_CHECKING:
    from posttrain.engines.local import LocalEngine
    from posttrain.models.template import ChatTemplate

# Responses between two saved states: what a killed run loses at most. Seeds depend on it, so a change of it
# is a new version of the step.
_CHUNK = 1024


class SampleConfig(SamplingParams):
    """Who answers what, and the fields of SamplingParams.

    model: a folder, hub id or `@step`, or a mapping (ModelSpec).
    prompts: rows with prompts, of any kind; a prompt that several rows share is asked once.
    limit: at most so many prompts, the first ones.
    max_rejected: share of rows that may be unusable (longer than the model takes) before the step fails.
    batch_tokens: bound on the tokens held in the model's cache at once (memory, not result).
    """

    model: SpecField
    prompts: DataRef
    limit: int | None = Field(None, ge=1)
    max_rejected: float = Field(0.01, ge=0, le=1)
    precision: Precision = "auto"
    batch_tokens: Annotated[int, Runtime(), Field(ge=1)] = BATCH_TOKENS
    device: Annotated[str, Runtime()] = "auto"

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(**{name: getattr(self, name) for name in SamplingParams.model_fields})


def respond(
    engine: Engine,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    label: str = "sample",
) -> list[tuple[Response, ...]]:
    """`params.n` responses to each prompt, in order, token-exact: ids, log-probs and how they ended."""
    ids = template.prompts([prompt.messages for prompt in prompts])
    answers = engine.generate(ids, params, label)
    return [tuple(as_response(c, template, params.stop) for c in completions) for completions in answers]


def as_response(completion: Completion, template: ChatTemplate, stop: Sequence[str] = ()) -> Response:
    """The record of a completion; its text ends before the first of the stop strings."""
    return Response(
        text=cut(template.decode(completion.token_ids), stop),
        token_ids=completion.token_ids,
        logps=completion.logps,
        finish=completion.finish,
    )


def model_name(spec: ModelSpec) -> str:
    """How rows name a model: its step and key where it is an artifact, else the folder or hub id."""
    if spec.path is None:
        return "random weights"
    folder = Path(spec.path)
    if (folder / NAME).is_file():
        manifest = read_manifest(folder)
        return f"{manifest['step']}-{manifest['key'][:12]}"
    if folder.is_dir():
        return folder.resolve().name
    return f"{spec.path}@{spec.revision}" if spec.revision else spec.path


def run(cfg: SampleConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` of Samples and `rejected.jsonl`. What a killed run finished is kept."""
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        rows = read_records(cfg.prompts, Prompt, rejects=rejects)
        distinct = list({row.model_dump_json(): row for row in rows}.values())
        engine = _open(cfg)
        asked = _with_room(distinct[: cfg.limit], engine, cfg.prompts, rejects)
    rejects.check(cfg.max_rejected)
    name, params = model_name(cfg.model), cfg.params
    size = max(_CHUNK // params.n, 1)

    def work(number: int, chunk: Sequence[Prompt]) -> list[bytes]:
        # Each chunk is a call of its own, so it needs a seed of its own.
        seeded = params.model_copy(update={"seed": int(row_id(params.seed, number), 16)})
        label = f"{ctx.label} {number + 1}/{-(-len(asked) // size)}" if len(asked) > size else ctx.label
        answers = respond(engine, engine.model.template, chunk, seeded, label)
        return [line_of(_row(p, r, name, params)) for p, r in zip(chunk, answers, strict=True)]

    chunks = in_chunks(asked, size, ctx.state, work)
    samples = [Samples.model_validate_json(line) for lines in chunks for line in lines]
    write_records(ctx.out / "rows.jsonl", samples)
    counts = {"repeated_prompts": len(rows) - len(distinct), "rejected": rejects.rejected}
    return _summary(samples, name) | counts


STEP = Step("sample", SampleConfig, run, version=1)


def _open(cfg: SampleConfig) -> LocalEngine:
    from posttrain.engines.local import LocalEngine
    from posttrain.models.load import load_model

    device = pick_device(cfg.device)
    model = load_model(cfg.model, dtype=pick_dtype(cfg.precision, device), device=device)
    return LocalEngine(model, cfg.batch_tokens)


def _with_room(prompts: Sequence[Prompt], engine: LocalEngine, source: str, rejects: Rejects) -> list[Prompt]:
    """The prompts that leave the model room to answer; the others are rejected.

    Raises DataError where there is none.
    """
    lengths = [len(ids) for ids in engine.model.template.prompts([prompt.messages for prompt in prompts])]
    kept = []
    for line, (prompt, length) in enumerate(zip(prompts, lengths, strict=True), 1):
        if engine.max_length is not None and length >= engine.max_length:
            reason = f"no room for an answer: {length} tokens, and the model takes {engine.max_length}"
            rejects.add(source, line, RowError("messages", reason), prompt.model_dump(mode="json"))
        else:
            kept.append(prompt)
    if not kept:
        raise DataError(f"{source}: no prompt to answer among {len(prompts)}; see rejected.jsonl")
    rejects.kept = len(kept)
    return kept


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
    """What the answers are like. cut_off: how many never came to their end."""
    responses = [response for row in rows for response in row.responses]
    tokens = sum(len(response.token_ids or ()) for response in responses)
    ended = Counter(response.finish for response in responses)
    return {
        "model": model,
        "prompts": len(rows),
        "responses": len(responses),
        "tokens": tokens,
        "mean_tokens": tokens / len(responses) if responses else None,
        "stopped": ended["stop"],
        "cut_off": ended["length"],
        "distinct_responses": sum(len({response.text for response in row.responses}) for row in rows),
    }
