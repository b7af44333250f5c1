"""n-grams that many texts have, and that are therefore no evidence."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from posttrain.common.errors import DataError
from posttrain.formats import Rejects
from posttrain.prompts.common_list import Common
from posttrain.prompts.eval_items import Table
from posttrain.prompts.ngrams import Ints, Words, grams_of, words_of
from posttrain.prompts.overlap import Marks
from posttrain.prompts.row_lines import read_lines, texts_of

_ROWS = 1024  # counted together


def common_of(cfg: Common, table: Table, rejects: Rejects) -> Marks:
    """Which n-grams of the evaluation items are common, [grams of the table].

    rejects: takes the corpus's rows that cannot be read. Raises DataError for phrases of fewer than n words.
    """
    common = np.zeros(len(table.hashes), bool)
    if cfg.items is not None:
        common |= table.per_gram > cfg.items
    if cfg.phrases is not None:
        found = table.find(grams_of(_phrases(Path(cfg.phrases), table.n), table.n).hashes)
        common[found[found >= 0]] = True
    if cfg.corpus is not None:
        paths = [cfg.corpus] if isinstance(cfg.corpus, str) else cfg.corpus
        common |= _documents_with(paths, table, rejects) > cfg.documents
    return common


def _phrases(path: Path, n: int) -> list[Words]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: the list of common phrases cannot be read: {e}") from None
    phrases = [words_of(line) for line in lines]
    for number, words in enumerate(phrases, 1):
        if 0 < len(words) < n:
            raise DataError(
                f"{path}:{number}: a common phrase of {len(words)} words; it needs {n} or more to be told "
                "from others"
            )
    return phrases


def _documents_with(paths: Iterable[str], table: Table, rejects: Rejects) -> Ints:
    """How many rows have each n-gram, [grams of the table]."""
    counts = np.zeros(len(table.hashes), np.int64)
    for path in paths:
        lines = read_lines(path, rejects)
        while batch := list(islice(lines, _ROWS)):
            texts = [(i, words_of(text)) for i, line in enumerate(batch) for _, text in texts_of(line.row)]
            owner = np.array([i for i, _ in texts], np.int64)
            grams = grams_of([words for _, words in texts], table.n)
            found = table.find(grams.hashes)
            there = found >= 0
            pairs = np.unique(np.stack([found[there], owner[grams.text[there]]]), axis=1)
            counts += np.bincount(pairs[0], minlength=len(counts))
    return counts
