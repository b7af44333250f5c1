"""Prompts that stand for all the others: greedy k-centre over a model's hidden states.

Sener and Savarese 2018 (arXiv 1708.00489), algorithm 1: each next one is the farthest from all that are
chosen or labelled already, which is within a factor of two of the smallest radius that k centres can have
(Gonzalez 1985).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.common.progress import progress
from posttrain.feedback.choose_criteria import Found
from posttrain.formats.read import read_records
from posttrain.records import Prompt, prompt_key

if TYPE_CHECKING:
    from posttrain.feedback.choose import ChooseConfig
    from posttrain.models.load import Model


def embedded(cfg: ChooseConfig, prompts: Sequence[tuple[str, Prompt]], label: str) -> list[Found]:
    """Each prompt's place, and how far it is from what is labelled: `value`, infinite where nothing is.

    Raises ConfigError where the model cannot be found.
    """
    from posttrain.models.load import load_model
    from posttrain.models.precision import pick_device, pick_dtype

    assert cfg.model is not None
    device = pick_device(cfg.device)
    model = load_model(cfg.model, dtype=pick_dtype(cfg.precision, device), device=device)
    labelled = {prompt_key(prompt): prompt for prompt in _labelled(cfg)}
    everyone = dict(prompts) | labelled
    states = mean_states(model, everyone, label)
    keys = sorted(states)  # sums in an order that the rows' order has no part in
    places = dict(zip(keys, spread(np.array([states[key] for key in keys])), strict=True)) if keys else {}
    centres = [places[key] for key in labelled if key in places]
    found = []
    for key, _ in prompts:
        if key not in places:
            found.append(Found(key, None, "longer than the model takes"))
            continue
        near = min((float(np.linalg.norm(places[key] - centre)) for centre in centres), default=None)
        found.append(Found(key, near, "", places[key]))
    return found


def _labelled(cfg: ChooseConfig) -> list[Prompt]:
    given = cfg.labelled or []
    paths = [given] if isinstance(given, str) else given
    return [prompt for path in paths for prompt in read_records(path, Prompt)]


def mean_states(model: Model, prompts: dict[str, Prompt], label: str) -> dict[str, np.ndarray]:
    """The mean over each prompt's tokens of the last layer's states [H]; without those that are too long.

    One prompt a forward, so that none's numbers depend on the company it is in.
    """
    import torch

    from posttrain.models.forward import trunk

    limit: Any = getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
    ids = model.template.prompts([prompt.messages for prompt in prompts.values()])
    states = {}
    with torch.no_grad(), progress(label, len(prompts), "prompt") as bar:
        for key, tokens in zip(prompts, ids, strict=True):
            if not limit or len(tokens) <= limit:
                row = torch.tensor([list(tokens)], device=model.hf.device)
                hidden = trunk(model.hf)(input_ids=row, use_cache=False).last_hidden_state[0]
                states[key] = hidden.double().mean(0).cpu().numpy()
            bar.advance(1)
    return states


def spread(states: np.ndarray) -> np.ndarray:
    """[n, H]: each less their mean, at length 1. What all prompts have in common says nothing of any."""
    centred = states - states.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 1e-9)


def farthest_first(found: Sequence[Found], n: int) -> list[Found]:
    """All of them: the `n` that farthest-first picks, then the others. value: the distance from the nearest
    centre when its turn came. Where nothing is labelled the first in `found` opens; of equals the first wins.
    """
    if not found:
        return []
    places = np.array([one.place for one in found])
    near = np.array([np.inf if one.value is None else one.value for one in found])
    left = np.ones(len(found), bool)
    picked: list[Found] = []
    while left.any() and len(picked) < n:
        i = int(np.where(left, near, -1.0).argmax())
        picked.append(replace(found[i], value=float(near[i]) if np.isfinite(near[i]) else None))
        left[i] = False
        near = np.minimum(near, np.linalg.norm(places - places[i], axis=1))
    return picked + [replace(found[i], value=float(near[i])) for i in map(int, np.flatnonzero(left))]
