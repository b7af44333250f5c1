"""The workload both sides train on: a model folder and preference pairs, made from a seed.

Every character of the text is one token, so a row fixes its token ids exactly, and what a library trained
on can be compared with what it was given. Imports nothing but numpy, torch and transformers, because it
runs in the environment of either side: imported by the process of `run.py` and by those of the sides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>")
PAD, EOS, USER, ASSISTANT = range(len(SPECIAL))
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% else %}<assistant>{% generation %}{{ m['content'] }}<eos>{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Letters of three UTF-8 bytes that no normaliser touches: unified ideographs, then Hangul syllables.
LETTERS = [chr(c) for c in (*range(0x4E00, 0x9FA6), *range(0xAC00, 0xD7A4))]

# Token ids of prompt, chosen and rejected; the ids of a sequence, and how many of its last are supervised.
Pair = tuple[list[int], list[int], list[int]]
Tokens = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Workload:
    """What is trained on. Lengths are in tokens, role and stop tokens included.

    seed: of 200 seeds one whose first 40 pairs are near the wanted means and need about the average padding
    (a padded batch holds 1.90 times the real tokens). sigma: standard deviation of the logarithm of a
    length. 0.6 is below what real pairs show (1.1 for the prompts and 0.9 for the responses of HH-
    harmless), which favours the side that pads.
    """

    seed: int = 158
    pairs: int = 96
    batch: int = 8
    prompt_mean: float = 180.0
    response_mean: float = 80.0
    sigma: float = 0.6
    prompt_max: int = 640
    response_max: int = 320
    vocab: int = 32_000
    hidden: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 1472


def make(folder: Path, w: Workload) -> None:
    """Write `policy/`, `reference/` (other weights), `scorer/` (the policy with a scalar head),
    `pairs.jsonl`, `sft.jsonl`.

    A folder that already holds the same workload is left as it is.
    """
    stamp = folder / "workload.json"
    if stamp.exists() and json.loads(stamp.read_text()) == asdict(w):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _models(folder, w)
    rows = pairs(w)
    _write(folder / "pairs.jsonl", (conversation(w, p, chosen=c, rejected=r) for p, c, r in rows))
    _write(folder / "sft.jsonl", (conversation(w, p, completion=c) for p, c, _ in rows))
    stamp.write_text(json.dumps(asdict(w)))


def pairs(w: Workload) -> list[Pair]:
    """The token ids of every pair: uniform tokens, log-normal lengths."""
    rng, first = np.random.default_rng(w.seed), first_letter(w)

    def length(mean: float, top: int) -> int:
        drawn = rng.lognormal(math.log(mean) - w.sigma**2 / 2, w.sigma)
        return int(np.clip(round(drawn), 4, top))

    def words(n: int) -> list[int]:
        return rng.integers(first, w.vocab, size=n).tolist()

    rows: list[Pair] = []
    for _ in range(w.pairs):
        prompt = [USER, *words(length(w.prompt_mean, w.prompt_max) - 2), ASSISTANT]
        chosen, rejected = ([*words(length(w.response_mean, w.response_max) - 1), EOS] for _ in range(2))
        rows.append((prompt, chosen, rejected))
    return rows


def expected(w: Workload, method: str) -> list[list[Tokens]]:
    """Per batch, in order, the sequences `method` must train on, with their supervised last tokens.

    Supervised are the response and its stop token; a reward model supervises no token.
    """
    rows = pairs(w)
    batches = [rows[i : i + w.batch] for i in range(0, len(rows), w.batch)]
    sides = (1,) if method == "sft" else (1, 2)
    return [
        [((*row[0], *row[s]), 0 if method == "reward" else len(row[s])) for row in batch for s in sides]
        for batch in batches
    ]


def digest(sequences: Iterable[tuple[Sequence[int], int]]) -> str:
    """A hash of a batch that does not depend on the order or the padding of its sequences."""
    canonical = sorted((list(map(int, ids)), int(supervised)) for ids, supervised in sequences)
    return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:16]


def token_counts(w: Workload, batches: int) -> dict[str, float]:
    """Real, shared and padded tokens of the first `batches` batches of pairs, and how long the pieces are."""
    rows = pairs(w)[: batches * w.batch]
    lengths = np.array([[len(part) for part in row] for row in rows])
    wholes = lengths[:, :1] + lengths[:, 1:]
    padded = sum(wholes[i : i + w.batch].max() * 2 * w.batch for i in range(0, len(rows), w.batch))
    return {
        "prompt_mean": round(float(lengths[:, 0].mean()), 1),
        "response_mean": round(float(lengths[:, 1:].mean()), 1),
        "sequence_tokens": int(wholes.sum()),
        "tokens_with_shared_prompts": int(lengths.sum()),
        "tokens_with_padding": int(padded),
        "response_tokens": int(lengths[:, 1:].sum()),
    }


def conversation(w: Workload, prompt: list[int], **responses: list[int]) -> dict[str, Any]:
    """A row in the conversational format, which both libraries read; role and stop tokens come from the
    template.
    """
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": text(prompt[1:-1], w)}]}
    for name, ids in responses.items():
        row[name] = [{"role": "assistant", "content": text(ids[:-1], w)}]
    return row


def text(ids: Sequence[int], w: Workload) -> str:
    """What the tokenizer turns into these ids: a letter each."""
    first = first_letter(w)
    return "".join(LETTERS[i - first] for i in ids)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _models(folder: Path, w: Workload) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    sizes = {
        "vocab_size": w.vocab,
        "hidden_size": w.hidden,
        "intermediate_size": w.intermediate,
        "num_hidden_layers": w.layers,
        "num_attention_heads": w.heads,
        "num_key_value_heads": w.kv_heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": EOS,
    }
    tokenizer = _tokenizer(w)
    for name, seed in (("policy", w.seed), ("reference", w.seed + 1)):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(w.seed + 2)
    scorer = Qwen2ForSequenceClassification(Qwen2Config(**sizes, num_labels=1))
    policy = Qwen2ForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    scorer.model.load_state_dict(policy.model.state_dict())
    scorer.save_pretrained(folder / "scorer")
    tokenizer.save_pretrained(folder / "scorer")


def _merges(w: Workload) -> tuple[list[str], list[tuple[str, str]]]:
    """The byte-level BPE in which every letter is one token: its two-byte beginnings, and the merges that
    build it.

    The tokenizer is of the model's own family because transformers gives a folder of a Qwen2 model that
    family's tokenizer, whatever the folder's own tokenizer was.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    shown = bytes_to_unicode()
    spelled = [[shown[b] for b in letter.encode()] for letter in LETTERS[: w.vocab]]
    starts = list(dict.fromkeys(a + b for a, b, _ in spelled))
    return starts, [(s[0], s[1]) for s in starts] + [(a + b, c) for a, b, c in spelled]


def first_letter(w: Workload) -> int:
    """The first id that is a letter."""
    return len(SPECIAL) + 256 + len(_merges(w)[0])


def _tokenizer(w: Workload) -> Any:
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    starts, merges = _merges(w)
    letters = ["".join(merge) for merge in merges[len(starts) :]]
    tokens = [*SPECIAL, *bytes_to_unicode().values(), *starts, *letters][: w.vocab]
    vocab = {token: i for i, token in enumerate(tokens)}
    kept = [merge for merge in merges if "".join(merge) in vocab]
    names = {"unk_token": None, "pad_token": SPECIAL[PAD], "eos_token": SPECIAL[EOS]}
    roles = {"extra_special_tokens": [SPECIAL[USER], SPECIAL[ASSISTANT]]}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=kept, **names, **roles)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
