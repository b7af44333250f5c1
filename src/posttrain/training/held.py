"""Which models a run holds in memory, and how many parameters each has of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.source import Source


def held_models(model: Model, source: Source) -> dict[str, int]:
    """Parameters of policy, critic, reference and of a judge that is a model; what two share is counted with
    the first, so a LoRA's reference, which is its base, counts 0.
    """
    parts: dict[str, Any] = {"policy": model}
    for name in ("critic", "reference", "judge"):
        found = model.critic if name == "critic" else getattr(source, name, None)
        found = getattr(found, "model", found)
        if hasattr(found, "hf"):
            parts[name] = found
    seen: set[int] = set()
    counts = {}
    for name, part in parts.items():
        heads = [head.weight for head in (part.reward_head, part.value_head) if head is not None]
        own = [p for p in [*part.hf.parameters(), *heads] if id(p) not in seen]
        seen |= {id(p) for p in own}
        counts[name] = sum(p.numel() for p in own)
    return counts
