"""A writer over a token-exact engine: the chat template on the way in, ids and log-probs on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from posttrain.common.config import Config
from posttrain.common.manifest import NAME, read_manifest
from posttrain.engines.protocol import Completion, Engine, SamplingParams
from posttrain.engines.stopping import cut
from posttrain.engines.writer import Job, Writer, Written
from posttrain.models.precision import pick_device, pick_dtype
from posttrain.models.spec import ModelSpec
from posttrain.records import ImagePart, Prompt, Response

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate


class Local(Config):
    """The engine in this process: any Hugging Face causal language model."""

    takes: ClassVar[frozenset[str]] = frozenset({"model", "precision", "device", "batch_tokens"})

    def check(self, params: SamplingParams) -> None:
        """It honours every field."""

    def open(self, job: Job) -> Writer:
        from posttrain.engines.local import LocalEngine
        from posttrain.models.load import load_model

        assert job.model is not None  # `SampleConfig` sees to it
        device = pick_device(job.device)
        model = load_model(job.model, dtype=pick_dtype(job.precision, device), device=device)
        engine = LocalEngine(model, job.batch_tokens)
        return TokenWriter(engine, model.template, model_name(job.model), engine.max_length)


@final
class TokenWriter:
    """A token engine with a chat template. max_length: tokens it takes, answer included; None for no end."""

    keeps = False

    def __init__(self, engine: Engine, template: ChatTemplate, name: str, max_length: int | None) -> None:
        self.engine, self.template, self.name, self.max_length = engine, template, name, max_length

    def turned_away(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Writer`: a prompt that holds an image, or leaves no room for an answer."""
        whys = ["an image, and this model reads text alone" if _has_image(p) else "" for p in prompts]
        texts = [i for i, why in enumerate(whys) if not why]
        limit = self.max_length
        for i, ids in zip(texts, self.template.prompts([prompts[i].messages for i in texts]), strict=True):
            if limit is not None and len(ids) >= limit:
                whys[i] = f"no room for an answer: {len(ids)} tokens, and the model takes {limit}"
        return whys

    def write(
        self, prompts: Sequence[Prompt], params: SamplingParams, label: str = "sample"
    ) -> list[Written]:
        """See `Writer`."""
        return [Written(answers) for answers in respond(self.engine, self.template, prompts, params, label)]

    def spent(self) -> dict[str, Any]:
        """See `Writer`."""
        return {}


def _has_image(prompt: Prompt) -> bool:
    parts = [part for m in prompt.messages if not isinstance(m.content, str) for part in m.content]
    return any(isinstance(part, ImagePart) for part in parts)


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
        model_logps=None if completion.model_logps == completion.logps else completion.model_logps,
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
