"""Which models a run holds in memory, and how many parameters each has of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.feedback.judge import models_of

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.source import Source


def held_models(model: Model, source: Source) -> dict[str, int]:
    """Parameters of policy, critic, reference and of all that judge and monitor hold; what two share is
    counted with the first, so a LoRA's reference, which is its base, counts 0.
    """
    seen: set[int] = set()
    counts = {}
    for name, part in _parts(model, source).items():
        heads = [head.weight for head in (part.reward_head, part.value_head) if head is not None]
        own = [p for p in [*part.hf.parameters(), *heads] if id(p) not in seen]
        seen |= {id(p) for p in own}
        counts[name] = sum(p.numel() for p in own)
    return counts


def _parts(model: Model, source: Source) -> dict[str, Model]:
    """By name; several of one role are numbered."""
    monitor = getattr(source, "monitor", None)
    roles: dict[str, list[Any]] = {
        "policy": [model],
        "critic": [model.critic],
        "reference": [getattr(source, "reference", None)],
        "judge": _judging(source),
        "monitor": _judging(monitor),
    }
    parts: dict[str, Model] = {}
    for role, found in roles.items():
        held = [one for one in found if hasattr(one, "hf")]
        parts |= {role if len(held) == 1 else f"{role} {i + 1}": one for i, one in enumerate(held)}
    return parts


def _judging(who: Any) -> list[Any]:
    judge = getattr(who, "judge", None)
    return [] if judge is None else models_of(judge)
