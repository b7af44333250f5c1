"""The `tokenizer` step: a byte-level BPE vocabulary from rows, ready for chat."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import DataError
from posttrain.common.progress import progress
from posttrain.common.step import Step, StepContext
from posttrain.formats import Rejects, read_rows
from posttrain.models.default_templates import CHATML, CHATML_TOKENS
from posttrain.models.folder import whole_folder
from posttrain.records import Comparison, Demonstration, Document, Message, Prompt, Rating, Row, Samples

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

END, PAD = "<|endoftext|>", "<|pad|>"
_BYTES = 256
_MEASURED_ROWS = 1000

# Qwen2's rule letter by letter: transformers splits by it whatever the file of a Qwen2 model says, so a
# vocabulary trained under it means the same in every architecture. Digits stand alone, so that numbers are
# spelled one way.
_SINGLE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT_RUNS = _SINGLE_DIGITS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


class TokenizerConfig(Config):
    """A vocabulary of `vocab_size` tokens: the 256 bytes, special tokens, and the most frequent merges.

    data: rows of any kind; every word in them counts.
    digits: "single" (one token each) or "runs" (up to three together, as GPT-4 has it; a Qwen2 model would
    then be split otherwise by plain transformers).
    normalize: the form of Unicode texts are brought into, None leaves them as they are.
    min_frequency: how often a pair must occur to become a token. special_tokens: further control tokens.
    max_rejected: share of rows that may be unusable before the step fails.
    """

    data: DataRef | list[DataRef]
    vocab_size: int = Field(8192, ge=300, le=4_194_304)
    digits: Literal["single", "runs"] = "single"
    normalize: Literal["NFC"] | None = "NFC"
    min_frequency: int = Field(2, ge=1)
    special_tokens: tuple[str, ...] = ()
    max_rejected: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _room(self) -> TokenizerConfig:
        taken = _BYTES + len(self.specials())
        if self.vocab_size < taken:
            raise ValueError(
                f"vocab_size {self.vocab_size} leaves no room: bytes and special tokens are {taken}"
            )
        return self

    def specials(self) -> list[str]:
        """Every special token in the order of their ids, which begin at 0."""
        return list(dict.fromkeys([END, *CHATML_TOKENS, PAD, *self.special_tokens]))


def run(cfg: TokenizerConfig, ctx: StepContext) -> dict[str, Any]:
    """Train and save; the same rows give the same bytes."""
    from transformers import PreTrainedTokenizerFast

    paths = cfg.data if isinstance(cfg.data, list) else [cfg.data]
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        backend = train_bpe(_texts(paths, rejects, ctx.label), cfg)
        rejects.check(cfg.max_rejected)
    if not rejects.kept:
        raise DataError(f"{', '.join(paths)}: no rows to make a vocabulary from")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHATML,
        extra_special_tokens=[*CHATML_TOKENS, *cfg.special_tokens],
        clean_up_tokenization_spaces=False,
    )
    if len(tokenizer) < cfg.vocab_size:
        logger.warning(
            "the rows give %d tokens, not %d: more text, or min_frequency 1, would give more",
            len(tokenizer),
            cfg.vocab_size,
        )
    with whole_folder(ctx.out / "tokenizer") as draft:
        tokenizer.save_pretrained(draft)
    return {
        "vocab_size": len(tokenizer),
        "rows": rejects.kept,
        "rejected": rejects.rejected,
        "bytes_per_token": _compression(backend, paths),
    }


def train_bpe(texts: Iterator[str], cfg: TokenizerConfig) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) over an iterator of texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if cfg.normalize == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    rule = Regex(_SINGLE_DIGITS if cfg.digits == "single" else _DIGIT_RUNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(rule, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size,
        min_frequency=cfg.min_frequency,
        special_tokens=cfg.specials(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(row: Row) -> list[str]:
    """Everything that is said in a row."""
    if isinstance(row, Document):
        return [row.text]
    if isinstance(row, Prompt):
        return _said(row.messages)
    if isinstance(row, Demonstration | Rating):
        return [*_said(row.prompt.messages), row.response.text]
    if isinstance(row, Comparison):
        return [*_said(row.prompt.messages), row.chosen.text, row.rejected.text]
    if isinstance(row, Samples):
        return [*_said(row.prompt.messages), *(response.text for response in row.responses)]
    raise TypeError(f"no texts in a {type(row).__name__}")


def _said(messages: tuple[Message, ...]) -> list[str]:
    return [message.text for message in messages]


def _texts(paths: list[str], rejects: Rejects, label: str) -> Iterator[str]:
    with progress(f"{label}: read", None, "rows") as bar:
        for path in paths:
            for row in read_rows(Path(path), rejects=rejects):
                yield from texts_of(row)
                bar.advance()


def _compression(backend: Tokenizer, paths: list[str]) -> float:
    """UTF-8 bytes a token over the first rows."""
    first = read_rows(Path(paths[0]), rejects=Rejects(), limit=_MEASURED_ROWS)
    texts = [text for row in first for text in texts_of(row)]
    tokens = sum(len(found.ids) for found in backend.encode_batch_fast(texts))
    return round(sum(len(text.encode()) for text in texts) / max(tokens, 1), 3)


STEP = Step("tokenizer", TokenizerConfig, run, version=1)
