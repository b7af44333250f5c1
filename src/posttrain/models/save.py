"""A model to a standard Hugging Face folder that plain transformers loads."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.folder import whole_folder
from posttrain.models.heads import write_heads
from posttrain.models.load_tokenizer import splits_as_written
from posttrain.models.lora import merged_weights
from posttrain.models.weights import quiet_transformers

if TYPE_CHECKING:
    from posttrain.models.load import Model

logger = logging.getLogger(__name__)


def save_model(model: Model, folder: Path, *, dtype: torch.dtype) -> None:
    """Write weights, config, generation config, tokenizer and chat template; whole or not at all.

    A LoRA is merged into the weights, and stands beside them in `adapter/` as peft writes it. A model with
    reward heads becomes the architecture's `ForSequenceClassification` with a label per aspect; its LM head
    is then not part of the folder unless it is tied to the embeddings. Heads that transformers has no place
    for (a value head; rewards where the architecture has no sequence classification) stand in
    `heads.safetensors`, always float32; `heads.json` names them and says what
    rewards' units mean. dtype: of the weights in the folder. An existing folder is replaced.
    Raises StoreError where the disk is full.
    """
    with whole_folder(folder) as draft, quiet_transformers():
        shell = _classifier(model, dtype)
        in_place = shell is not None
        if shell is None:
            shell = _filled(type(model.base), copy.deepcopy(model.base.config), _cast(model, dtype))
        shell.generation_config = _valid(copy.deepcopy(model.base.generation_config))
        shell.save_pretrained(draft)
        model.tokenizer.save_pretrained(draft)
        apart = None if in_place else model.reward_head
        write_heads(draft, model.aspects, apart, model.value_head, model.standards)
        if hasattr(model.hf, "peft_config"):
            model.hf.save_pretrained(
                str(draft / "adapter"), save_embedding_layers=False, selected_adapters=["default"]
            )
            (draft / "adapter" / "README.md").unlink(missing_ok=True)
        _warn_of_other_splits(draft, folder)


def _cast(model: Model, dtype: torch.dtype) -> dict[str, Tensor]:
    """The merged weights in `dtype` on the CPU; what shared memory goes on sharing it."""
    done: dict[tuple[int, torch.Size], Tensor] = {}
    cast = {}
    for name, tensor in merged_weights(model.hf).items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            done[key] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        cast[name] = done[key]
    return cast


def _filled(cls: type[PreTrainedModel], config: Any, weights: dict[str, Tensor]) -> PreTrainedModel:
    """A model of `cls` that holds `weights` themselves, for writing alone."""
    config._attn_implementation = "eager"
    with torch.device("meta"):
        shell = cls(config)
    shell.load_state_dict(weights, strict=True, assign=True)
    return shell


def _classifier(model: Model, dtype: torch.dtype) -> PreTrainedModel | None:
    """The model as its architecture's sequence classifier; None without reward heads or such a class."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    config = copy.deepcopy(model.base.config)
    if model.reward_head is None or type(config) not in CLASSES:
        return None
    config.num_labels = len(model.aspects)
    config.id2label = dict(enumerate(model.aspects))
    config.label2id = {aspect: i for i, aspect in enumerate(model.aspects)}
    cls: Any = CLASSES[type(config)]
    with torch.device("meta"):
        names = set(cls(config).state_dict())
    weights = {name: tensor for name, tensor in _cast(model, dtype).items() if name in names}
    weights["score.weight"] = model.reward_head.weight.detach().float().cpu()
    return _filled(cls, config, weights) if set(weights) == names else None


def _valid(config: Any) -> Any:
    """Some published folders name a temperature without saying that they sample; that cannot be saved."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


def _warn_of_other_splits(draft: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    if "auto_map" in json.loads((draft / "tokenizer_config.json").read_text(encoding="utf-8")):
        return  # a tokenizer that is code of its own is not run here
    tokenizer = AutoTokenizer.from_pretrained(draft)
    if not splits_as_written(tokenizer, draft):
        logger.warning(
            "%s: AutoTokenizer of this transformers loads it as %s, which splits text otherwise than the "
            "tokenizer of training; load it with PreTrainedTokenizerFast.from_pretrained, as posttrain does",
            folder,
            type(tokenizer).__name__,
        )
