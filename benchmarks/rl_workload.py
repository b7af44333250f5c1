"""What the online methods are compared on: a model that never stops, prompts, and given answers with given
log-probs.

Imports nothing but numpy, torch and transformers, because it runs in the environment of either side: imported
by the process of `run.py` and by those of the sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import workload
from workload import EOS, Workload

# How many of PPO's models are held: `separate` four, `shared` three (the critic is a head on the policy),
# `lora` two (policy, critic and reference are one base with two adapters; the reward model stands apart).
LAYOUTS = {"ppo-separate": 4, "ppo-shared": 3, "ppo-lora": 2}
# Lengths of what losses are compared on, means and longest: TRL pads all to the longest and computes logits
# at every position, so that those of the other parts would take it half an hour.
SHORT = {"prompt_mean": 32, "prompt_max": 64, "response_mean": 24, "response_max": 64}
# What the channel that keeps the stop token away holds of every token, and of the stop token itself.
STEADY, AWAY = 1.0, -30.0


@dataclass(frozen=True)
class Rollouts:
    """One step: so many prompts, samples of each, new tokens of each."""

    prompts: int = 8
    samples: int = 8
    tokens: int = 96


@dataclass(frozen=True)
class Given:
    """One answer with all that a loss is made of. logps, one a token of the answer: old, reference."""

    prompt: list[int]
    response: list[int]
    reward: float
    old: list[float]
    reference: list[float]


def make(folder: Path, w: Workload, job: Rollouts, steps: int) -> None:
    """Write what `workload.make` does, `talker/`, and `prompts.jsonl` of so many steps in order.

    A folder that already holds the same is left as it is.
    """
    workload.make(folder, w)
    stamp = folder / "rl_workload.json"
    wanted = asdict(w) | asdict(job) | {"steps": steps}
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return
    _talker(folder)
    lines = (
        {"prompt": [{"role": "user", "content": workload.text(ids[1:-1], w)}]}
        for ids in prompts(w, job, steps)
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stamp.write_text(json.dumps(wanted))


def read_workload(folder: Path) -> Workload:
    """What `workload.make` filled a folder with."""
    return Workload(**json.loads((folder / "workload.json").read_text()))


def prompts(w: Workload, job: Rollouts, steps: int) -> list[list[int]]:
    """The prompts of the workload's pairs, as many as so many steps need."""
    return [prompt for prompt, _, _ in workload.pairs(replace(w, pairs=job.prompts * steps))]


def evens(tokens: Sequence[int]) -> float:
    """The reward of both sides: the share of even tokens. It costs nothing and varies within a group."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def digest(asked: Iterable[Sequence[int]]) -> str:
    """A hash of a step's prompts, in any order, each counted once."""
    return workload.digest((ids, 0) for ids in {tuple(map(int, ids)) for ids in asked})


def given(w: Workload, prompts: int, samples: int) -> list[tuple[list[int], list[int], float]]:
    """Prompt, answer and reward of each sample, prompt after prompt: answers of log-normal length, each with
    its stop token. Rewards are normal, so that no group is without spread.
    """
    w = replace(w, **SHORT)
    rng = np.random.default_rng(w.seed + 3)
    first = workload.first_letter(w)
    rows = []
    for prompt, _, _ in workload.pairs(replace(w, pairs=prompts)):
        for _ in range(samples):
            drawn = rng.lognormal(math.log(w.response_mean) - w.sigma**2 / 2, w.sigma)
            length = int(np.clip(round(drawn), 4, w.response_max))
            words = rng.integers(first, w.vocab, size=length - 1).tolist()
            rows.append((prompt, [*words, EOS], float(rng.normal())))
    return rows


def write_given(path: Path, rows: Iterable[Given]) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_given(path: Path) -> list[Given]:
    return [Given(**json.loads(line)) for line in path.read_text().splitlines()]


def answers(rows: Iterable[Given], number: int) -> list[Given]:
    """One of each prompt's, from 0."""
    return [list(group)[number] for _, group in groupby(rows, key=lambda row: row.prompt)]


def _talker(folder: Path) -> None:
    """The policy with one channel that no layer writes to: after the last norm it is STEADY over the states'
    size, at every position, and the stop token's embedding has AWAY there. So the stop token's logit is far
    below all others', which are shifted alike, and an answer always has all the tokens it may have.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    model: Any = Qwen2ForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, 0] = STEADY
        weight[EOS, 0] = AWAY
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
    model.save_pretrained(folder / "talker")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "talker")
