"""What a recipe says about a model: which one, its tokenizer and template, trained whole or through LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from posttrain.common.config import Config, Input, ModelRef


class LoRA(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) · B·A, B zero at the start.

    targets: "all-linear" (every linear layer but the LM head) or the last parts of module names.
    rank_stabilized: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732).
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rank_stabilized: bool = False


class ModelSpec(Config):
    """A model to load, or to make from nothing.

    path: a local folder (a step's artifact, or a Hugging Face folder) or a hub id; revision: its branch, tag
    or commit. config: fields of a transformers config with its `model_type`, to start from random weights;
    then `tokenizer` is needed, and `vocab_size` is filled in from it, rounded up to a multiple of
    `vocab_multiple`. tokenizer: where it is not the model's own. chat_template: "chatml", "plain", a file, or
    the template's text, in place of the tokenizer's. trust_remote_code: run Python code that comes with the
    model.
    """

    path: ModelRef | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: ModelRef | None = None
    chat_template: Annotated[str, Input("text")] | None = None
    lora: LoRA | None = None
    vocab_multiple: int = Field(64, ge=1)
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.path is None) == (self.config is None):
            raise ValueError("give either 'path' (a model) or 'config' (to start from random weights)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("'config' needs a 'model_type' (qwen2, llama, …)")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a model from 'config' needs a 'tokenizer'")
        if self.config is not None and self.lora is not None:
            raise ValueError("LoRA on random weights learns nothing: leave out 'lora'")
        return self


def as_spec(value: ModelSpec | str | Path) -> ModelSpec:
    """A plain name or path where a ModelSpec is expected means ModelSpec(path=…)."""
    return value if isinstance(value, ModelSpec) else ModelSpec(path=str(value))


def _named(value: Any) -> Any:
    return {"path": str(value)} if isinstance(value, str | Path) else value


# The type of a config's field that holds a model: a plain name or path will do.
SpecField = Annotated[ModelSpec, BeforeValidator(_named)]
