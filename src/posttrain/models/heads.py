"""Scalar heads on the last hidden state: k rewards, one value. How they are made, stored, and found again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE, NAMES = "heads.safetensors", "heads.json"
SOLE_ASPECT = "overall"
_MEND = "copy the folder again from where it was made, or train the heads anew"


def heads_for(aspects: Sequence[str], aspect: str | None) -> list[int]:
    """The heads that speak for a row's aspect; where it names none, for "overall"; where all heads of a model
    are those of one aspect, they speak for any. Empty where none does. For an aspect that somebody asks for
    by name, see `members_of`.
    """
    found = members_of(aspects, aspect or SOLE_ASPECT)
    stems = {re.sub(r"\.\d+$", "", name) for name in aspects}
    return found or (list(range(len(aspects))) if len(stems) == 1 else [])


@dataclass(frozen=True)
class Standard:
    """How a head's rewards lie over `n` responses it was trained on: what its units mean."""

    mean: float
    std: float
    n: int

    def of(self, reward: float) -> float:
        """A reward in standard deviations from the mean."""
        return (reward - self.mean) / self.std


def new_head(outputs: int, width: int, seed: int) -> nn.Linear:
    """A bias-free float32 head [outputs, width] of standard deviation 1/√(width+1) (Stiennon et al. 2020)."""
    import torch

    head = torch.nn.Linear(width, outputs, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)
    return head


def member_names(aspect: str, members: int) -> tuple[str, ...]:
    """The names of an aspect's heads: its own, or numbered where it has several."""
    return (aspect,) if members == 1 else tuple(f"{aspect}.{member}" for member in range(members))


def members_of(aspects: Sequence[str], aspect: str) -> list[int]:
    """Which of a model's heads speak for an aspect: the one of its name, else those numbered after it."""
    if aspect in aspects:
        return [aspects.index(aspect)]
    return [i for i, name in enumerate(aspects) if re.fullmatch(re.escape(aspect) + r"\.\d+", name)]


def with_rows(head: nn.Linear, aspects: tuple[str, ...], known: dict[str, Tensor]) -> nn.Linear:
    """Put the weights [width] of the aspects that are known into their rows."""
    import torch

    with torch.no_grad():
        for row, aspect in enumerate(aspects):
            if aspect in known:
                head.weight[row] = known[aspect]
    return head


def read_heads(folder: Path, config: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """The reward heads (aspect → float32 [width]) and the value head (float32 [1, width]) of a folder.

    They stand in `score.weight` of a sequence classification folder, else in `heads.safetensors`.
    Raises ConfigError where they are announced and missing, damaged, or no plain linear heads of the model's
    width.
    """
    rewards: dict[str, Tensor] = {}
    value = None
    width = config.get_text_config().hidden_size
    if is_classifier(config):
        rewards = _rows(_score_weight(folder), _labels(config), width, folder)
    if (folder / FILE).is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(folder / FILE)
        except (OSError, SafetensorError) as e:
            raise ConfigError(f"{folder / FILE}: its heads cannot be read ({e}); {_MEND}") from e
        value = tensors.get("value.weight")
        if value is not None and tuple(value.shape) != (1, width):
            raise ConfigError(
                f"{folder / FILE}: a value head of shape {list(value.shape)}, and the model takes "
                f"[1, {width}]; {_MEND}"
            )
        if "reward.weight" in tensors:
            rewards = _rows(tensors["reward.weight"], _names(folder), width, folder)
    return {aspect: row.float() for aspect, row in rewards.items()}, None if value is None else value.float()


def read_standards(folder: Path) -> dict[str, Standard]:
    """What is known of each head's units, by aspect; empty for a folder that says nothing.

    Raises ConfigError where what is said cannot be.
    """
    if not (folder / NAMES).is_file():
        return {}
    said = _said(folder).get("standards", {})
    if not isinstance(said, Mapping):
        raise ConfigError(f"{folder / NAMES}: 'standards' is no mapping of heads; {_MEND}")
    return {
        aspect: _standard(numbers, f"{folder / NAMES}: standards.{aspect}")
        for aspect, numbers in said.items()
    }


def _standard(numbers: Any, where: str) -> Standard:
    if not isinstance(numbers, Mapping) or set(numbers) != {"mean", "std", "n"}:
        raise ConfigError(f"{where} must have mean, std and n, got {str(numbers)[:80]}; {_MEND}")
    for name, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{where}.{name} must be a finite number, got {str(value)[:40]!r}; {_MEND}")
    if numbers["std"] <= 0:
        raise ConfigError(f"{where}.std must be above 0, got {numbers['std']}; {_MEND}")
    return Standard(**numbers)


def _said(folder: Path) -> dict[str, Any]:
    """What heads.json holds."""
    try:
        said = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{folder / NAMES}: the names of the heads cannot be read ({e}); {_MEND}") from e
    if not isinstance(said, dict):
        raise ConfigError(f"{folder / NAMES}: expected an object, got {type(said).__name__}; {_MEND}")
    return said


def _names(folder: Path) -> list[str]:
    names = _said(folder).get("reward")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{folder / NAMES}: 'reward' must list the names of the heads; {_MEND}")
    return names


def write_heads(
    folder: Path,
    aspects: tuple[str, ...],
    reward: nn.Linear | None,
    value: nn.Linear | None,
    standards: Mapping[str, Standard] | None = None,
) -> None:
    """Write heads that no transformers architecture has a place for, and what is known of rewards' units."""
    from safetensors.torch import save_file

    tensors = {
        name: head.weight.detach().float().cpu().contiguous()
        for name, head in (("reward.weight", reward), ("value.weight", value))
        if head is not None
    }
    if tensors:
        save_file(tensors, folder / FILE)
    if tensors or standards:
        names = {"reward": list(aspects) if reward is not None else [], "value": value is not None}
        said = {aspect: asdict(standard) for aspect, standard in (standards or {}).items()}
        whole = names | ({"standards": said} if said else {})
        (folder / NAMES).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _labels(config: Any) -> list[str]:
    labels = [config.id2label[i] for i in range(config.num_labels)]
    return [SOLE_ASPECT] if labels == ["LABEL_0"] else labels


def _rows(weight: Tensor, names: list[str], width: int, folder: Path) -> dict[str, Tensor]:
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ConfigError(
            f"{folder}: reward heads of shape {list(weight.shape)}, and the model takes [heads, {width}]: "
            f"they are another model's; {_MEND}"
        )
    if weight.shape[0] != len(names):
        raise ConfigError(
            f"{folder}: {weight.shape[0]} reward heads, but names for {len(names)}: {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"{folder}: two reward heads of one name: {', '.join(names)}; name them apart")
    return dict(zip(names, weight, strict=True))


def _score_weight(folder: Path) -> Tensor:
    from safetensors import safe_open

    for file in sorted(path for path in folder.glob("*.safetensors") if path.name != FILE):
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            if "score.bias" in names:
                raise ConfigError(
                    f"{folder}: its reward head has a bias, which moves every score alike; remove it"
                )
            if "score.weight" in names:
                return tensors.get_tensor("score.weight")
    raise ConfigError(
        f"{folder} says it is a sequence classifier, but holds no 'score.weight': only classifiers with one "
        "linear head on a causal LM can be loaded as reward models"
    )
