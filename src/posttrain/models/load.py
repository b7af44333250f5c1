"""Any Hugging Face causal LM, from a folder, the hub or a config: with tokenizer, template, LoRA, heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.models.attention import install
from posttrain.models.fresh import fresh_model
from posttrain.models.heads import Standard, new_head, with_rows
from posttrain.models.lean import keep_less
from posttrain.models.load_tokenizer import load_tokenizer
from posttrain.models.locate import find_model, has_tokenizer
from posttrain.models.lora import attach, base_of
from posttrain.models.selfcheck import check_forest
from posttrain.models.spec import ModelSpec, as_spec
from posttrain.models.special import settle_special_tokens
from posttrain.models.template import ChatTemplate
from posttrain.models.vocabulary import add_chat_tokens, check_vocabulary
from posttrain.models.weights import Loaded, base_folder, read_weights


@final
@dataclass(eq=False)
class Model:
    """A causal LM with what belongs to it.

    hf: the Hugging Face model, or a PeftModel around it. reward_head: [k, hidden], one row an aspect;
    value_head: [1, hidden]; both without bias and in float32 whatever the model's dtype. standards: what
    the units of reward heads mean, by aspect, as far as it is known. forest: it computes
    the same through a forest as row by row (set by the check that runs when it is loaded). lm_head: its LM
    head is trained; False for a reward model whose folder has none, and whose log-probs mean nothing.
    added_tokens: tokens that had to be added to the vocabulary for the chat template. source: where it came
    from; source_dtype: the dtype of the weights there. critic: the model whose value head answers for this
    one's, where values have a model of their own; it is trained beside this one and not saved with it.
    adapters: the LoRAs that this view of a shared `hf` computes with, () for none; None: as `hf` stands.
    """

    hf: Any
    tokenizer: Any
    template: ChatTemplate
    source: str
    source_dtype: torch.dtype
    critic: Model | None = None
    reward_head: nn.Linear | None = None
    value_head: nn.Linear | None = None
    aspects: tuple[str, ...] = ()
    standards: dict[str, Standard] = field(default_factory=dict)
    forest: bool = False
    lm_head: bool = True
    added_tokens: tuple[str, ...] = ()
    adapters: tuple[str, ...] | None = None

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face causal LM, without a LoRA wrapper."""
        return base_of(self.hf)

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained: (name, parameter), heads as `reward_head.weight` and `value_head.weight`."""
        yield from ((f"hf.{name}", p) for name, p in self.hf.named_parameters() if p.requires_grad)
        for name, head in (("reward_head", self.reward_head), ("value_head", self.value_head)):
            if head is not None:
                yield from ((f"{name}.{part}", p) for part, p in head.named_parameters() if p.requires_grad)
        if self.critic is not None:
            shared = self.critic.hf is self.hf  # then its adapter is among the parameters above
            own = (
                (name, p) for name, p in self.critic.named_parameters() if not (shared and name[:3] == "hf.")
            )
            yield from ((f"critic.{name}", p) for name, p in own)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a standard Hugging Face folder, whole or not at all.

        dtype: of the weights; None is the dtype they had where they came from.
        """
        from posttrain.models.save import save_model

        save_model(self, Path(folder), dtype=dtype or self.source_dtype)


def load_model(
    spec: ModelSpec | str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    seed: int = 0,
    reward_heads: tuple[str, ...] = (),
    value_head: bool = False,
    train: bool = False,
) -> Model:
    """Load a model, or make one from random weights, ready for a forest.

    dtype: of the weights in memory. seed: of everything that starts at random (weights from a config,
    adapters, heads). reward_heads: aspects to have a head for; heads the folder holds under these names go
    on, others start afresh. Without any, the folder's own are kept. train: parameters take gradients, and
    LoRA is attached where asked for. Raises ConfigError for what cannot be found or does not fit together.
    """
    spec = as_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found, tokenizer, source = _find(spec, dtype)
        model = _assemble(spec, found, tokenizer, source, train)
        _put_heads(model, found, reward_heads, value_head, seed)
        lora = spec.lora if train else None
        if lora is not None:
            model.hf = attach(model.hf, lora)
    install(model.base)
    if train:
        keep_less(model.base)
    model.hf.to(device)
    if lora is None:
        model.hf.requires_grad_(train)
    for head in (model.reward_head, model.value_head):
        if head is not None:
            head.to(device).requires_grad_(train)
    model.hf.train(train)
    check_forest(model)
    return model


def _find(spec: ModelSpec, dtype: torch.dtype) -> tuple[Loaded, Any, str]:
    code = spec.trust_remote_code
    if spec.path is None:
        assert spec.config is not None  # ModelSpec sees to it, and to the tokenizer
        assert spec.tokenizer is not None
        tokenizer = load_tokenizer(spec.tokenizer, trust_remote_code=code)
        return fresh_model(spec, tokenizer, dtype), tokenizer, f"random weights ({spec.config['model_type']})"
    folder = find_model(spec.path, spec.revision, code)
    own = folder if has_tokenizer(folder) else base_folder(folder)
    tokenizer = load_tokenizer(spec.tokenizer or str(own), trust_remote_code=code)
    return read_weights(folder, dtype, code), tokenizer, spec.path


def _assemble(spec: ModelSpec, found: Loaded, tokenizer: Any, source: str, train: bool) -> Model:
    hf = found.hf
    added = add_chat_tokens(spec, hf, tokenizer, train)
    check_vocabulary(hf, tokenizer, source)
    template = ChatTemplate(tokenizer, spec.chat_template, _end_tokens(hf))
    settle_special_tokens(hf, tokenizer, template)
    return Model(
        hf,
        tokenizer,
        template,
        source,
        found.dtype,
        lm_head=found.lm_head,
        added_tokens=added,
    )


def _end_tokens(hf: PreTrainedModel) -> tuple[int, ...]:
    """The stop tokens that the model's generation config names."""
    config = hf.generation_config
    named = config.eos_token_id if config is not None else None
    return () if named is None else tuple(named) if isinstance(named, list | tuple) else (named,)


def _put_heads(
    model: Model, found: Loaded, reward_heads: tuple[str, ...], value_head: bool, seed: int
) -> None:
    width = model.base.config.get_text_config().hidden_size
    model.aspects = reward_heads or tuple(found.rewards)
    if model.aspects:
        fresh = new_head(len(model.aspects), width, seed)
        model.reward_head = with_rows(fresh, model.aspects, found.rewards)
        model.standards = {name: found.standards[name] for name in model.aspects if name in found.standards}
    if value_head or found.value is not None:
        known = {} if found.value is None else {"value": found.value[0]}
        model.value_head = with_rows(new_head(1, width, seed + 1), ("value",), known)
