"""The only training loop. It knows batches, forwards and losses; it does not know the objective."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from posttrain.common.errors import TrainingError
from posttrain.common.files import write_json
from posttrain.common.memory import peak_memory_mb
from posttrain.common.progress import progress
from posttrain.models.forest import pack
from posttrain.models.forward import LOGPS, SCORES, VALUES, forward
from posttrain.training.checkpoint import load_checkpoint, save_checkpoint
from posttrain.training.families import together, tree_of_all
from posttrain.training.methods.base import Batch, Method, MethodConfig
from posttrain.training.metrics import Metrics
from posttrain.training.optim import Optimizer
from posttrain.training.schedule import lr_factor
from posttrain.training.source import Data, Part, Resumable, Source, Work

if TYPE_CHECKING:
    from posttrain.models.load import Model

FORWARD = frozenset({LOGPS, SCORES, VALUES})
WINDOW = 20  # optimizer steps over which a diverging loss is told from a noisy one


@dataclass(frozen=True)
class Loop:
    """How long, how often. micro_tokens: tokens of one forward and backward. checkpoint_seconds: between
    states saved.

    patience: evaluations without a better held-out loss before training stops, None never.
    diverge: a mean loss over WINDOW steps of this many times the first window's stops the run, 0 never.
    """

    steps: int
    micro_tokens: int
    evaluate_every: int
    log_every: int
    checkpoint_seconds: float
    patience: int | None
    diverge: float
    device: str


@dataclass
class State:
    """All that changes from step to step, but for weights and optimizer."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    first_loss: float | None = None
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    heldout: list[dict[str, float]] = field(default_factory=list)
    best_weights: list[Tensor] | None = None


class Totals:
    """Weighted sums of a loss and its metrics over micro-batches; a metric's over the items that have it."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.weight = 0.0
        self.beside: float | None = None

    def add(self, items: Tensor, weights: Tensor, metrics: Any) -> Tensor:
        """Returns the summed loss, to go backward from."""
        total = (items * weights).sum()
        self.weight += weights.sum().item()
        self._add("loss", total.item(), weights.sum().item())
        for name, values in metrics.items():
            said = weights.where(~values.isnan(), 0.0)
            self._add(name, (values.nan_to_num(nan=0.0) * said).sum().item(), said.sum().item())
        return total

    def _add(self, name: str, value: float, weight: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        beside = {} if self.beside is None else {"mix_loss": self.beside}
        found = {n: value / self.weights[n] for n, value in self.sums.items() if self.weights[n]}
        return found | beside


def fit(
    model: Model,
    method: Method,
    cfg: MethodConfig,
    optimizer: Optimizer,
    source: Source,
    heldout: Data | None,
    loop: Loop,
    *,
    out: Path,
    state_folder: Path,
    trackers: Sequence[Any] = (),
    label: str = "train",
) -> State:
    """Train until `loop.steps`, early stopping, or trouble; goes on from `state_folder` where a run was
    killed.

    Leaves float32 weights in the model: the best on held-out data with early stopping, else the moving
    average where one is kept, else the last. Raises TrainingError for a loss that is not finite or
    diverges, with the batch saved.
    """
    state = State()
    lines = _resume(state, optimizer, source, loop, model, state_folder)
    saved = time.monotonic()
    with (
        Metrics(out, trackers, label, lines, state.step) as metrics,
        progress(label, loop.steps, "steps", state.step, source.view) as bar,
    ):
        if state.step == 0 and heldout is not None:
            _evaluate(model, method, cfg, optimizer, heldout, loop, state, metrics)
            _should_stop(state, loop, optimizer)
        started = time.monotonic()
        for work in source.batches(state.step, loop.steps):
            totals = _gradient(model, method, cfg, work, loop, state, out)
            norm = optimizer.step(totals.weight, lr_factor(optimizer.cfg, state.step, loop.steps))
            _check_finite(norm, "gradient norm", state, work.data, work.chosen, out)
            state.step += 1
            state.seconds += time.monotonic() - started
            values = {**totals.means(), **work.metrics}  # what the source measured goes before
            _check_divergence(values["loss"], loop, state, work.data, work.chosen, out)
            last = state.step == loop.steps
            if state.step % loop.log_every == 0 or last:
                lr = optimizer.lr * lr_factor(optimizer.cfg, state.step - 1, loop.steps)
                metrics.write(
                    state.step, "train", {**values, "gradient_norm": norm, "lr": lr, **_pace(state)}
                )
            bar.advance(1, source.note(values))
            if heldout is not None and loop.evaluate_every and state.step % loop.evaluate_every == 0:
                _evaluate(model, method, cfg, optimizer, heldout, loop, state, metrics)
                if _should_stop(state, loop, optimizer):
                    break
            if time.monotonic() - saved >= loop.checkpoint_seconds and not last:
                _save(state, optimizer, source, loop, model, state_folder, metrics.sync())
                saved = time.monotonic()
            started = time.monotonic()
        if heldout is not None and state.heldout[-1]["step"] != state.step:
            _evaluate(model, method, cfg, optimizer, heldout, loop, state, metrics)
            _should_stop(state, loop, optimizer)
    if not optimizer.finite():
        raise TrainingError(f"weights are not finite after step {state.step}. Try a lower optimizer.lr")
    optimizer.finish(state.best_weights)
    return state


def _gradient(
    model: Model, method: Method, cfg: MethodConfig, work: Work, loop: Loop, state: State, out: Path
) -> Totals:
    """Gradient of one optimizer step's summed loss, and what there is to say of it.

    Raises TrainingError for a loss that is not finite.
    """
    totals = Totals()
    _adapter_dropout(model, True)
    for batch in _micro_batches(work.data, work.chosen, loop, state):
        made = forward(model, batch.forest, method.needs & FORWARD, batch.temperature)
        result = method.loss(cfg, made, batch)
        total = totals.add(result.items, result.weights, result.metrics)
        _check_finite(total.item(), "loss", state, work.data, work.chosen, out)
        total.backward()
    if work.beside is not None:
        totals.beside = _learn_beside(model, work.beside, totals.weight, loop, state)
    _adapter_dropout(model, False)
    return totals


def _learn_beside(model: Model, part: Part, weight: float, loop: Loop, state: State) -> float:
    """Gradient of another objective's mean loss a token, scaled to stand beside a sum of weight `weight`.

    Returns that mean.
    """
    needs = part.method.needs & FORWARD
    tokens = sum(sum(branch.mask) for i in part.chosen for branch in part.data.examples[i].branches)
    total = 0.0
    for batch in _micro_batches(part.data, part.chosen, loop, state):
        result = part.method.loss(part.cfg, forward(model, batch.forest, needs), batch)
        loss = (result.items * result.weights).sum()
        (loss * (part.weight * weight / tokens)).backward()
        total += loss.item()
    return total / tokens


def _micro_batches(data: Data, chosen: Sequence[int], loop: Loop, state: State | None) -> Iterator[Batch]:
    """A global batch in forests of at most `micro_tokens` tokens; examples that begin alike share a tree."""
    examples = [data.examples[i] for i in chosen]
    units = together(examples, loop.micro_tokens)
    trees = [tree_of_all([examples[i] for i in unit]) for unit in units]
    for group in pack([tree.size for tree in trees], loop.micro_tokens):
        held = [chosen[i] for g in group for i in units[g]]
        batch = data.batch(held, [trees[g] for g in group], loop.device)
        if state is not None:
            state.tokens += batch.forest.size
        yield batch


@torch.no_grad()
def _evaluate(
    model: Model,
    method: Method,
    cfg: MethodConfig,
    optimizer: Optimizer,
    data: Data,
    loop: Loop,
    state: State,
    metrics: Metrics,
) -> None:
    """Held-out loss and metrics of the weights that would be saved now, written and kept in the state."""
    totals = Totals()
    with optimizer.averaged():
        for batch in _micro_batches(data, range(len(data.examples)), loop, None):
            made = forward(model, batch.forest, method.needs & FORWARD, batch.temperature)
            result = method.loss(cfg, made, batch)
            totals.add(result.items, result.weights, result.metrics)
    values = totals.means()
    state.heldout.append({"step": state.step, **values})
    metrics.write(state.step, "heldout", values)


def _adapter_dropout(model: Model, on: bool) -> None:
    """LoRA's dropout is the only one: the model itself stays in eval mode."""
    for name, module in model.hf.named_modules():
        if "lora_dropout" in name:
            module.train(on)


def _should_stop(state: State, loop: Loop, optimizer: Optimizer) -> bool:
    """Keep the best weights so far; True once `patience` evaluations have not bettered them."""
    if loop.patience is None:
        return False
    loss = state.heldout[-1]["loss"]
    if loss < state.best:
        state.best, state.best_step, state.stale = loss, state.step, 0
        state.best_weights = [w.detach().clone() for w in (optimizer.ema or optimizer.masters)]
    else:
        state.stale += 1
    return state.stale >= loop.patience


def _pace(state: State) -> dict[str, float]:
    return {
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "memory_mb": peak_memory_mb(),
    }


def _check_finite(
    value: float, what: str, state: State, data: Data, chosen: Sequence[int], out: Path
) -> None:
    if not math.isfinite(value):
        reason = f"the {what} is {value} at step {state.step + 1}"
        raise TrainingError(f"{reason}; {_keep_batch(reason, data, chosen, out)}. Try a lower optimizer.lr")


def _check_divergence(
    loss: float, loop: Loop, state: State, data: Data, chosen: Sequence[int], out: Path
) -> None:
    state.losses = [*state.losses[-WINDOW + 1 :], loss]
    if len(state.losses) < WINDOW:
        return
    mean = sum(state.losses) / WINDOW
    if state.first_loss is None:
        state.first_loss = mean
    if loop.diverge and mean > loop.diverge * max(state.first_loss, 1e-3):
        reason = (
            f"the loss diverges: {mean:.4g} over the last {WINDOW} steps, "
            f"{state.first_loss:.4g} over the first"
        )
        raise TrainingError(f"{reason}; {_keep_batch(reason, data, chosen, out)}. Try a lower optimizer.lr")


def _keep_batch(reason: str, data: Data, chosen: Sequence[int], out: Path) -> str:
    """Write the batch that caused trouble; returns where it is and what is in it."""
    path = out / "bad_batch.json"
    rows = [
        {
            "row": data.examples[i].row,
            "columns": {k: v if math.isfinite(v) else None for k, v in data.examples[i].columns.items()},
            "branches": [
                {"tokens": [int(t) for t in b.tokens], "mask": [bool(m) for m in b.mask]}
                for b in data.examples[i].branches
            ],
        }
        for i in chosen
    ]
    write_json(path, {"reason": reason, "rows": rows})
    names = ", ".join(data.examples[i].row for i in chosen[:5])
    return f"its batch ({len(chosen)} rows: {names}{', …' if len(chosen) > 5 else ''}) is in {path}"


def _conditions(loop: Loop, model: Model) -> dict[str, Any]:
    """What sums and draws depend on beside the key: equal before and after a kill, or the bits differ."""
    dtype = next(model.hf.parameters()).dtype
    return {
        "device": loop.device,
        "micro_tokens": loop.micro_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        # long sums are shared out among them, and so are the rows of a rollout
        "threads": torch.get_num_threads() if loop.device == "cpu" else None,
    }


def _save(
    state: State,
    optimizer: Optimizer,
    source: Resumable,
    loop: Loop,
    model: Model,
    folder: Path,
    lines: int,
) -> None:
    save_checkpoint(
        folder,
        {
            "conditions": _conditions(loop, model),
            "state": vars(state),
            "optimizer": optimizer.state(),
            "source": source.state(),
            "torch": torch.get_rng_state(),
            "lines": lines,
        },
    )


def _resume(
    state: State, optimizer: Optimizer, source: Resumable, loop: Loop, model: Model, folder: Path
) -> int:
    """Set everything as it was; returns how many lines of metrics hold."""
    found = load_checkpoint(folder)
    if found is None:
        return 0
    before, now = found["conditions"], _conditions(loop, model)
    if before != now:
        raise TrainingError(
            f"the interrupted run in {folder} computed with {before}, this one would with {now}: "
            f"the result would be neither's. Go on as it was begun (OMP_NUM_THREADS sets the threads), or "
            f"delete {folder} to begin again"
        )
    for name, value in found["state"].items():
        setattr(state, name, value)
    optimizer.load(found["optimizer"])
    source.load(found["source"])
    torch.set_rng_state(found["torch"])
    return int(found["lines"])


def seed_everything(seed: int) -> None:
    """Every generator a model or library may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
