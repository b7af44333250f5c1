"""A model's weights from a folder: safetensors alone, and none of them left out without a word."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.common.errors import ConfigError
from posttrain.models.heads import FILE as HEADS
from posttrain.models.heads import Standard, is_classifier, read_heads, read_standards
from posttrain.models.locate import find_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A causal LM as found in a folder, or fresh.

    dtype: of the weights in the folder. lm_head: False where the folder has none (an untied reward model).
    rewards: aspect → [hidden]; value: [1, hidden]; both float32. standards: aspect → its head's units.
    """

    hf: PreTrainedModel
    dtype: torch.dtype
    lm_head: bool = True
    rewards: dict[str, Tensor] = field(default_factory=dict)
    value: Tensor | None = None
    standards: dict[str, Standard] = field(default_factory=dict)


def read_weights(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Loaded:
    """Load the causal LM in `folder`, in `dtype`, with SDPA attention where the architecture has it.

    A sequence classification folder gives its trunk and its heads; a bare LoRA folder, its base with the LoRA
    merged. Raises ConfigError for a folder without safetensors, an unknown architecture, or weights that do
    not fit it.
    """
    if not (folder / "config.json").is_file():
        return _merged_adapter(folder, dtype, trust_remote_code)
    _need_safetensors(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        classifier = is_classifier(config)
        rewards, value = read_heads(folder, config)
        hf, report = _from_pretrained(folder, dtype, trust_remote_code)
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        KeyError,
        ImportError,
        SafetensorError,
        StrictDataclassError,
    ) as e:
        raise ConfigError(f"the model in {folder} cannot be loaded: {e}") from e
    lm_head = _check_complete(folder, hf, report, classifier)
    hf.config.architectures = [type(hf).__name__]
    return Loaded(
        trainable_padding(hf), _stored_dtype(folder), lm_head, rewards, value, read_standards(folder)
    )


def _from_pretrained(folder: Path, dtype: torch.dtype, code: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    load: Any = AutoModelForCausalLM.from_pretrained
    arguments = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": code,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported, and refused below with the names
    }
    with quiet_transformers():
        try:
            hf, report = load(folder, attn_implementation="sdpa", **arguments)
        except ValueError as e:
            if "scaled_dot_product_attention" not in str(e):
                raise
            hf, report = load(folder, attn_implementation="eager", **arguments)
    return hf, report


def _check_complete(folder: Path, hf: PreTrainedModel, report: dict[str, Any], classifier: bool) -> bool:
    """Transformers fills missing weights at random; here only a reward model's LM head may be missing."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    head = hf.get_output_embeddings()
    head_names = {name for name, p in hf.named_parameters() if any(p is q for q in head.parameters())}
    lost = missing - head_names if classifier else missing
    lost |= {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    if lost:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json: {len(lost)} tensors are missing or of "
            f"another shape ({', '.join(sorted(lost)[:5])}); the folder is incomplete or the config is "
            "another's"
        )
    unused = {name for name in unexpected if not name.startswith("score.")}
    if unused:
        logger.warning("%s: %d tensors are not part of a causal LM (%s)", folder, len(unused), min(unused))
    return not (missing & head_names)


def _need_safetensors(folder: Path) -> None:
    if _weight_files(folder):
        return
    unsafe = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    )
    if not unsafe:
        raise ConfigError(f"{folder} has a config.json but no weights (*.safetensors)")
    raise ConfigError(
        f"{folder} holds {unsafe[0]}, a pickle, which can run code when it is opened; only safetensors are "
        "loaded. If you trust it, convert it once, and copy the tokenizer's files: "
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most weights in a folder's first file."""
    from safetensors import safe_open

    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    counts: Counter[str] = Counter()
    with safe_open(min(_weight_files(folder)), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            stored = tensors.get_slice(name)
            counts[stored.get_dtype()] += math.prod(stored.get_shape())
    return dtypes.get(counts.most_common(1)[0][0], torch.bfloat16)


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if file.name != HEADS]


def _merged_adapter(folder: Path, dtype: torch.dtype, code: bool) -> Loaded:
    from peft import PeftModel

    found = read_weights(base_folder(folder), dtype, code)
    with quiet_transformers():
        merged = PeftModel.from_pretrained(found.hf, str(folder)).merge_and_unload()
    return Loaded(merged, found.dtype, found.lm_head)


def base_folder(folder: Path) -> Path:
    """The folder of the model that a bare LoRA folder belongs to; any other folder is its own."""
    if (folder / "config.json").is_file():
        return folder
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if not base:
        raise ConfigError(
            f"{folder} holds a LoRA that does not say what it belongs to (base_model_name_or_path)"
        )
    return find_model(base)


def trainable_padding(hf: PreTrainedModel) -> PreTrainedModel:
    """Where pad is eos, torch would hold back the gradient of the eos embedding; nothing is padded here."""
    embeddings: Any = hf.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = None
    return hf


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and load reports; what they say is checked and raised here."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
