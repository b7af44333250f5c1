"""LoRA on a causal LM: attach, and read the merged weights without touching the model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from posttrain.common.errors import ConfigError
from posttrain.models.spec import LoRA

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# State-space layers read these weights directly, past any adapter on them (some only in their fused kernels).
_MAMBA1, _MAMBA2 = ("x_proj", "dt_proj", "out_proj"), ("out_proj",)
_PAST_ADAPTERS = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), _MAMBA1),
    **dict.fromkeys(("mamba2", "falcon_h1", "nemotron_h", "zamba2", "bamba", "granitemoehybrid"), _MAMBA2),
}


def attach(hf: PreTrainedModel, lora: LoRA) -> Any:
    """Freeze the weights and put adapters beside them; returns a PeftModel that shares `hf`'s modules.

    Raises ConfigError where `targets` name no module, or one whose adapter would have no effect.
    """
    from peft import LoraConfig, get_peft_model

    past = _PAST_ADAPTERS.get(hf.config.model_type, ())
    useless = set(past) & set(lora.targets) if not isinstance(lora.targets, str) else set()
    if useless:
        raise ConfigError(
            f"lora.targets: {hf.config.model_type} reads the weights of {', '.join(sorted(useless))} "
            "directly, so an adapter there has no effect; leave them out"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=list(past) or None,
        use_rslora=lora.rank_stabilized,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # GPT-2's linear layers are stored transposed; peft notices and corrects for it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")
        try:
            return get_peft_model(hf, config)
        except ValueError as e:
            raise ConfigError(f"LoRA cannot be put on this {hf.config.model_type} model: {e}") from e


def is_lora(hf: nn.Module) -> bool:
    """Whether adapters stand on the model."""
    return hasattr(hf, "peft_config")


def add_adapter(hf: Any, name: str, seed: int) -> None:
    """Put a second LoRA of the first one's shape on a PeftModel; it is trained, and used only where `using`
    says so.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf.add_adapter(name, hf.peft_config["default"])
    for part, parameter in hf.named_parameters():
        if ".lora_" in part:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def using(hf: nn.Module, adapters: tuple[str, ...] | None) -> Iterator[None]:
    """Within, the model computes with these of its LoRAs, with none for (); None changes nothing.

    What is trained stays as it was: gradients of all of them may be taken afterwards.
    """
    if adapters is None:
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in hf.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer, list(layer.active_adapters)) for layer in layers]
    trained = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    try:
        for layer in layers:
            layer.set_adapter(list(adapters))
        _train(trained)
        yield
    finally:
        for layer, active in before:
            layer.set_adapter(active)
        _train(trained)


def _train(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)


def base_of(hf: nn.Module) -> PreTrainedModel:
    """The Hugging Face causal LM inside a PeftModel, or the model itself."""
    inner: Any = hf
    return inner.get_base_model() if hasattr(hf, "get_base_model") else inner


def merged_weights(hf: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain model; adapters are added in float32, into copies."""
    from peft.tuners.lora import LoraLayer

    base = base_of(hf)
    state = base.state_dict()
    if base is hf:
        return state
    layers: dict[str, Any] = {name: m for name, m in base.named_modules() if isinstance(m, LoraLayer)}
    merged = {}
    for key, tensor in state.items():
        name, _, rest = key.partition(".base_layer.")
        if rest == "weight":
            tensor = tensor.float() + layers[name].get_delta_weight("default").float()
        if ".lora_" not in key:
            merged[f"{name}.{rest}" if rest else key] = tensor.detach()
    return merged
