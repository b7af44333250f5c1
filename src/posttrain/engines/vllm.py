"""The vLLM engine: ids in, ids and log-probs out, weights exchanged between rounds.

The only file that imports vllm. It needs a GPU that this project has not, so it has been run against a fake
of exactly the calls it makes (tests/test_engines_vllm.py), and never against vLLM itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, final

from pydantic import Field

from posttrain.common.config import Config, Runtime
from posttrain.common.errors import ConfigError, PosttrainError
from posttrain.common.progress import progress
from posttrain.engines.protocol import Completion, SamplingParams, limits_of
from posttrain.engines.token_writer import TokenWriter, model_name
from posttrain.engines.writer import Job, Writer
from posttrain.records import row_id

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate


class Vllm(Config):
    """vLLM in this process (https://docs.vllm.ai).

    max_model_len: tokens of prompt and answer together; the model's own length where None.
    tensor_parallel_size: GPUs that share a model. gpu_memory_utilization: share of a GPU's memory to take.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"model", "precision"})

    max_model_len: int | None = Field(None, ge=2)
    tensor_parallel_size: Annotated[int, Runtime(), Field(ge=1)] = 1
    gpu_memory_utilization: Annotated[float, Runtime(), Field(gt=0, le=1)] = 0.9

    def check(self, params: SamplingParams) -> None:
        """It honours every field."""

    def open(self, job: Job) -> Writer:
        """See `EngineConfig`. Raises ConfigError for a model that is no plain folder or hub model."""
        from posttrain.models.load_tokenizer import load_template
        from posttrain.models.locate import find_model

        spec = job.model
        assert spec is not None  # `SampleConfig` sees to it
        if spec.path is None or spec.lora is not None:
            raise ConfigError("engine vllm takes a trained model, a folder or hub id, without lora")
        folder = find_model(spec.path, spec.revision, spec.trust_remote_code)
        own = spec.tokenizer or str(folder)
        template = load_template(own, spec.chat_template, trust_remote_code=spec.trust_remote_code)
        longest = self.max_model_len or _longest(folder)
        engine = VllmEngine(folder, template, self, job.precision, spec.trust_remote_code)
        return TokenWriter(engine, template, model_name(spec), longest)


@final
class VllmEngine:
    """An `Engine` whose work is done by vLLM. folder: a Hugging Face model folder."""

    def __init__(
        self,
        folder: Path,
        template: ChatTemplate,
        cfg: Vllm,
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        try:
            from vllm import LLM
        except ImportError as e:
            raise ConfigError(
                f"engine vllm needs vLLM, on a machine with a GPU: pip install 'vllm>=0.16' ({e})"
            ) from e
        self.template = template
        # Log-probs of what is sampled from, after temperature and filters; vLLM's default is the model's own.
        self._llm = LLM(
            model=str(folder),
            tokenizer=template.tokenizer.name_or_path,
            dtype=precision,
            max_model_len=cfg.max_model_len,
            tensor_parallel_size=cfg.tensor_parallel_size,
            gpu_memory_utilization=cfg.gpu_memory_utilization,
            trust_remote_code=trust_remote_code,
            logprobs_mode="processed_logprobs",
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str = "sample",
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See `Engine`. Each sample is a request of its own, so that each has a seed of its own."""
        allowed = limits_of(prompts, params, limits)
        asked = [(i, j) for i in range(len(prompts)) for j in range(params.n)]
        with progress(label, len(asked), "response") as bar:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompts[i])} for i, _ in asked],
                [self._sampling(params, i, j, allowed[i]) for i, j in asked],
                use_tqdm=False,
            )
            bar.advance(len(asked))
        said = iter(_completion(output.outputs[0], params) for output in outputs)
        return [[next(said) for _ in range(params.n)] for _ in prompts]

    def update_weights(self, folder: Path) -> None:
        """Go on with the weights in `folder`, a model of the same architecture.

        By the worker's `reload_weights(weights_path=…)` over `LLM.collective_rpc`
        (https://docs.vllm.ai/en/stable/api/vllm/v1/worker/gpu_worker/, since vLLM 0.16; without a path it is
        what https://docs.vllm.ai/en/stable/features/sleep_mode/ describes). What was computed with the old
        weights is forgotten by `reset_prefix_cache`.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()

    def _sampling(self, params: SamplingParams, prompt: int, sample: int, limit: int) -> Any:
        from vllm import SamplingParams as Theirs

        return Theirs(
            n=1,
            temperature=params.temperature,
            top_k=params.top_k or 0,
            top_p=1.0 if params.top_p is None else params.top_p,
            min_p=params.min_p or 0.0,
            max_tokens=limit,
            stop=list(params.stop),
            stop_token_ids=list(self.template.stop_ids),
            skip_special_tokens=False,
            seed=int(row_id(params.seed, prompt, sample), 16) % 2**31,
            logprobs=0,
        )


def _completion(said: Any, params: SamplingParams) -> Completion:
    """What vLLM sampled. Raises PosttrainError for a request that it broke off."""
    if said.finish_reason not in ("stop", "length"):
        raise PosttrainError(f"vLLM broke off a request: finish_reason '{said.finish_reason}'")
    ids = tuple(said.token_ids)
    greedy = params.temperature == 0  # a point mass, whose log-probability is 0
    logps = tuple(0.0 if greedy else said.logprobs[i][token].logprob for i, token in enumerate(ids))
    return Completion(ids, logps, cast(Literal["stop", "length"], said.finish_reason))


def _longest(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    found = config.get("text_config", config).get("max_position_embeddings")
    return int(found) if found else None
