"""Does this architecture compute the same through a forest as row by row? Asked once, when a model is
loaded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from posttrain.common.errors import ConfigError
from posttrain.models.forest import Branch, Forest, plant, tree_of
from posttrain.models.forward import LOGPS, by_forest, by_rows, causal_lm

if TYPE_CHECKING:
    from posttrain.models.load import Model

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


def check_forest(model: Model) -> bool:
    """Set and return `model.forest`: True where a tiny nested forest agrees with the dense rows.

    Where it does not (state-space, ALiBi, position-free masks, …) one warning says so and every branch
    becomes a row
    of its own: same results, no sharing.
    """
    parameter = next(model.hf.parameters())
    forest = _probe(causal_lm(model.hf).config.get_text_config().vocab_size, window=_window(model)).to(
        parameter.device
    )
    with torch.no_grad(), _evaluating(model.hf):
        expected = by_rows(model, forest, frozenset({LOGPS})).logps
        try:
            _refuse_other_layers(model)
            found = by_forest(model, forest, frozenset({LOGPS})).logps
        except Exception as e:  # any way of not understanding a forest means the same: run rows
            return _fall_back(model, f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
    assert expected is not None
    assert found is not None
    if not expected.isfinite().all():
        raise ConfigError(
            f"{model.source}: its weights give log-probs that are not finite; the folder is no sound model"
        )
    gap = (expected - found).abs().max().item()
    if not gap <= TOLERANCE.get(parameter.dtype, 0.15):
        return _fall_back(model, f"log-probs differ by {gap:.2g}")
    model.forest = True
    return True


def _refuse_other_layers(model: Model) -> None:
    """Layers that see by a rule of their own (chunks, states, …) may agree on a short probe all the same."""
    kinds = set(getattr(causal_lm(model.hf).config.get_text_config(), "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention"}
    if other:
        raise NotImplementedError(f"its layers are of kind {', '.join(sorted(other))}")


def _fall_back(model: Model, reason: str) -> bool:
    model.forest = False
    kind = type(causal_lm(model.hf)).__name__
    logger.warning(
        f"{kind} does not run as a forest ({reason}); each branch becomes a row of its own: "
        "the same results, but shared prompts are computed once per branch"
    )
    return False


def _probe(vocabulary: int, window: int | None) -> Forest:
    """Two trees, branch points at several depths, long enough to leave a small sliding window."""
    generator = torch.Generator().manual_seed(0)
    stem = min(40, 3 * window) if window else 12

    def run(n: int) -> list[int]:
        return torch.randint(0, vocabulary, (n,), generator=generator).tolist()

    a, b = run(stem), run(5)
    rows = [a + b + run(3), a + b + run(4), a + run(6), a + run(1)]
    trees = [
        tree_of([_wanted(row, len(a)) for row in rows]),
        tree_of([_wanted(run(7), 2), _wanted(run(9), 3)]),
    ]
    return plant(trees)


def _wanted(tokens: list[int], prompt: int) -> Branch:
    return Branch(tokens, [i >= prompt for i in range(len(tokens))])


def _window(model: Model) -> int | None:
    return getattr(causal_lm(model.hf).config.get_text_config(), "sliding_window", None)


@contextlib.contextmanager
def _evaluating(hf: torch.nn.Module) -> Iterator[None]:
    was = hf.training
    hf.eval()
    try:
        yield
    finally:
        hf.train(was)
