"""Reference log-probs, one a token, computed once and kept: a change of beta, learning rate or loss finds
them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full
from posttrain.models.forest import Branch, Tree, plant, tree_of
from posttrain.models.forward import LOGPS, score_trees
from posttrain.training.families import together, tree_of_all

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.methods.base import Example

# fields of a config that say where weights came from, not what they compute
NO_MATTER = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})


def weights_hash(model: Model) -> str:
    """sha256 over the config (rotary scaling and the like change log-probs too) and the names, types, shapes
    and bytes of all parameters, in the dtype they compute in.
    """
    config = model.base.config.to_dict()
    said = {name: value for name, value in config.items() if name not in NO_MATTER}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.hf.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def branch_key(branch: Branch) -> bytes:
    """sha256 of a branch's token ids and of which log-probs are wanted."""
    tokens = np.asarray(branch.tokens, dtype=np.int64)
    return hashlib.sha256(tokens.tobytes() + np.asarray(branch.mask, dtype=bool).tobytes()).digest()


class ReferenceStore:
    """A SQLite file of float32 log-probs of wanted tokens, one row a branch, for one set of weights."""

    def __init__(self, folder: Path, weights: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{weights[:32]}.sqlite"
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS logps (branch BLOB PRIMARY KEY, value BLOB NOT NULL)")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.path, timeout=60)
            try:
                with db:
                    yield db
            finally:
                db.close()
        except sqlite3.DatabaseError as e:
            if "is full" in str(e):
                raise StoreError(disk_full(self.path)) from e
            raise StoreError(
                f"the reference log-probs in {self.path} cannot be used ({e}); "
                "delete the file to compute them again"
            ) from e

    def get(self, branches: Sequence[Branch]) -> list[np.ndarray | None]:
        """[wanted] float32 of each branch, None where it is not known."""
        with self._open() as db:
            rows = [
                db.execute("SELECT value FROM logps WHERE branch = ?", (branch_key(b),)).fetchone()
                for b in branches
            ]
        return [None if row is None else np.frombuffer(row[0], dtype=np.float32) for row in rows]

    def put(self, branches: Sequence[Branch], values: Sequence[np.ndarray]) -> None:
        """Add branches; those already there stay."""
        rows = [
            (branch_key(b), v.astype(np.float32).tobytes()) for b, v in zip(branches, values, strict=True)
        ]
        with self._open() as db:
            db.executemany("INSERT OR IGNORE INTO logps VALUES (?, ?)", rows)


def reference_logps(
    model: Model, examples: Sequence[Example], folder: Path, *, budget: int, label: str
) -> tuple[list[Tensor], int]:
    """Log-probs of each example's wanted tokens ([N_i] float32, in its tree's order) under `model`, and
    how many examples had to be computed. What is missing in the store under `folder` is computed and
    appended.
    """
    store = ReferenceStore(folder, weights_hash(model))
    known = iter(store.get([branch for example in examples for branch in example.branches]))
    found = [[next(known) for _ in example.branches] for example in examples]
    missing = [i for i, values in enumerate(found) if any(value is None for value in values)]
    if missing:
        units = together([examples[i] for i in missing], budget)
        held = [[missing[m] for m in unit] for unit in units]
        trees = [tree_of_all([examples[i] for i in unit]) for unit in held]
        fresh: list[tuple[Branch, np.ndarray]] = []
        for at, forest, out in score_trees(
            model, trees, frozenset({LOGPS}), budget=budget, label=f"{label}: reference"
        ):
            assert out.logps is not None
            counts = torch.bincount(forest.branch_of, minlength=forest.branches).tolist()
            values = [part.numpy() for part in out.logps[forest.token_of].split(counts)]
            fresh += zip((b for i in held[at] for b in examples[i].branches), values, strict=True)
            made = iter(values)
            for i in held[at]:
                found[i] = [next(made) for _ in examples[i].branches]
            if len(fresh) >= 1000:
                store.put(*zip(*fresh, strict=True))
                fresh = []
        if fresh:
            store.put(*zip(*fresh, strict=True))
    return [_onto_tree(example, values) for example, values in zip(examples, found, strict=True)], len(
        missing
    )


def _onto_tree(example: Example, values: Sequence[np.ndarray | None]) -> Tensor:
    """Per-branch values onto the wanted tokens of the example's tree, shared tokens once: [N]."""
    forest = plant([_tree(example)])
    onto = torch.empty(len(forest.targets))
    onto[forest.token_of] = torch.from_numpy(np.concatenate([v for v in values if v is not None]))
    return onto


def _tree(example: Example) -> Tree:
    return tree_of(example.branches)
