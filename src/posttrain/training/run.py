"""What the `train` step does around the loop: rows in, checks, reference log-probs, the loop, the model
out.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from posttrain.common.allocator import keep_freed_memory
from posttrain.common.errors import DataError, TrainingError
from posttrain.common.memory import peak_memory_mb
from posttrain.common.step import StepContext
from posttrain.formats import read_records
from posttrain.formats.rejects import Rejects
from posttrain.models.checks import check_template
from posttrain.models.forward import causal_lm
from posttrain.models.load import Model, load_model
from posttrain.models.precision import pick_device, pick_dtype
from posttrain.records import Row, prompt_key
from posttrain.training.fit import Data, Loop, State, fit, seed_everything
from posttrain.training.methods import method_named
from posttrain.training.methods.base import LOGPS, REFERENCE, Method
from posttrain.training.offline import Encoded, Plan, encode_rows, grow
from posttrain.training.optim import Optimizer
from posttrain.training.reference import reference_logps

if TYPE_CHECKING:
    from posttrain.training.train import TrainConfig


def run_training(cfg: TrainConfig, ctx: StepContext) -> dict[str, Any]:
    started = time.monotonic()
    method = method_named(cfg.method.name)
    device = pick_device(cfg.device)
    dtype = pick_dtype(cfg.precision, device)
    seed_everything(cfg.seed)
    if device == "cpu":
        keep_freed_memory()
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        rows, heldout_rows = _read(cfg, method, rejects)
        model = load_model(
            cfg.model,
            dtype=torch.float32,
            device=device,
            seed=cfg.seed,
            reward_heads=cfg.method.aspects(),
            train=True,
        )
        _refuse_bad_template(cfg, model, rows)
        train, heldout = _encode(cfg, method, model, rows, heldout_rows, rejects, ctx.label)
    assert cfg.optimizer.lr is not None
    heads = [head.weight for head in (model.reward_head, model.value_head) if head is not None]
    optimizer = Optimizer(_trainable(model, method), cfg.optimizer, cfg.optimizer.lr, dtype, exact=heads)
    _compute_in(model, dtype)
    # no dropout but LoRA's own, which the loop switches: log-probs must be those of the policy
    model.hf.eval()
    streams, references = _references(cfg, method, model, [train, heldout], ctx, device)
    sizes = tuple(tree.size for tree in grow(train.examples))
    plan = Plan(sizes, cfg.seed, cfg.batch_size, cfg.batch_tokens)
    state = fit(
        model,
        method,
        cfg.method,
        optimizer,
        plan,
        Data(train.examples, streams[0]),
        Data(heldout.examples, streams[1]) if heldout.examples else None,
        _loop(cfg, plan, device),
        out=ctx.out,
        state_folder=ctx.state,
        trackers=cfg.log,
        label=ctx.label,
    )
    model.save(ctx.out / "model", None if cfg.save_dtype == "auto" else getattr(torch, cfg.save_dtype))
    return _summary(cfg, model, state, rejects, references, time.monotonic() - started)


def _read(cfg: TrainConfig, method: Method, rejects: Rejects) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows; unusable ones are put aside."""
    paths = cfg.data if isinstance(cfg.data, list) else [cfg.data]
    rows: list[Row] = [row for path in paths for row in read_records(path, method.data, rejects=rejects)]
    if not rows:
        raise DataError(f"{', '.join(paths)}: no {method.data.__name__.lower()} rows to train on")
    if isinstance(cfg.heldout, str):
        return rows, list(read_records(cfg.heldout, method.data, rejects=rejects))
    if cfg.heldout is None:
        return rows, []
    kept: list[Row] = []
    out: list[Row] = []
    for row in rows:
        side = out if _share(_split_key(row)) < cfg.heldout else kept
        side.append(row)
    if not kept or not out:
        raise DataError(f"heldout: {cfg.heldout} leaves {len(kept)} rows to train on and {len(out)} held out")
    return kept, out


def _split_key(row: Row) -> str:
    """Rows with the same prompt stay on the same side."""
    prompt = getattr(row, "prompt", None)
    return prompt_key(prompt) if prompt is not None else row.provenance.id


def _share(key: str) -> float:
    """A number in [0, 1) from a key, the same in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]) / 2**56


def _refuse_bad_template(cfg: TrainConfig, model: Model, rows: Sequence[Row]) -> None:
    """Training on the wrong tokens is worse than not training."""
    problems = check_template(model.template, rows[:32], turns=getattr(cfg.method, "turns", "last"))
    errors = [problem.message for problem in problems if problem.severity == "error"]
    if errors:
        raise TrainingError(
            f"the chat template of {model.source} would train the wrong tokens: {'; '.join(errors)}. "
            "`posttrain inspect` shows it; a working one can be set with model.chat_template"
        )


def _encode(
    cfg: TrainConfig,
    method: Method,
    model: Model,
    rows: list[Row],
    heldout_rows: list[Row],
    rejects: Rejects,
    label: str,
) -> tuple[Encoded, Encoded]:
    """Examples to train on and to hold out; what cannot be used is put aside and counted."""
    longest = cfg.max_length or getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
    sides = []
    rejects.kept = 0
    for side in (rows, heldout_rows):
        done = encode_rows(method, cfg.method, side, model.template, longest, label)
        rejects.kept += len(side) - len(done.rejected)
        for row, error in done.rejected:
            file, _, line = row.provenance.source.rpartition(":")
            at = (file, int(line)) if line.isdigit() else (f"row {row.provenance.id}", 0)
            rejects.add(*at, error, row.model_dump(mode="json"))
        sides.append(done)
    rejects.tell(label)
    rejects.check(cfg.max_rejected)
    if not sides[0].examples:
        raise DataError(f"no row of {len(rows)} can be trained on: {dict(rejects.reasons)}")
    if cfg.heldout is not None and not sides[1].examples:
        raise DataError(f"heldout: {cfg.heldout} has no row that could be measured")
    return sides[0], sides[1]


def _trainable(model: Model, method: Method) -> list[torch.nn.Parameter]:
    """Parameters this objective reaches; an LM head that no loss looks at stays as it is."""
    if LOGPS not in method.needs:
        causal = causal_lm(model.hf)
        head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            head.requires_grad_(False)
    return [parameter for _, parameter in model.named_parameters()]


def _compute_in(model: Model, dtype: torch.dtype) -> None:
    """Round the weights, and them alone: buffers such as rotary frequencies stay float32."""
    for parameter in model.hf.parameters():
        parameter.data = parameter.data.to(dtype)


def _references(
    cfg: TrainConfig, method: Method, model: Model, sides: Sequence[Encoded], ctx: StepContext, device: str
) -> tuple[list[dict[str, list[torch.Tensor]]], dict[str, int]]:
    """Reference log-probs of each side, and how many were computed or found. The policy before its first
    step is the reference, so one model in memory is enough; another reference is loaded, asked, and let
    go.
    """
    if not method.wants_reference(cfg.method):
        return [{} for _ in sides], {}
    folder = (ctx.cache or ctx.state) / "reference"
    reference = model
    if cfg.reference is not None:
        reference = load_model(cfg.reference, dtype=pick_dtype(cfg.precision, device), device=device)
    done = [
        reference_logps(reference, side.examples, folder, budget=cfg.micro_tokens, label=ctx.label)
        for side in sides
    ]
    if reference is not model:
        del reference
        gc.collect()
    computed = sum(count for _, count in done)
    total = sum(len(side.examples) for side in sides)
    return [{REFERENCE: values} for values, _ in done], {"computed": computed, "found": total - computed}


def _loop(cfg: TrainConfig, plan: Plan, device: str) -> Loop:
    return Loop(
        steps=cfg.steps or plan.steps(cfg.epochs),
        micro_tokens=cfg.micro_tokens,
        evaluate_every=cfg.evaluate_every,
        log_every=cfg.log_every,
        checkpoint_seconds=cfg.checkpoint_seconds,
        patience=cfg.early_stopping,
        diverge=cfg.diverge,
        device=device,
    )


def _summary(
    cfg: TrainConfig,
    model: Model,
    state: State,
    rejects: Rejects,
    references: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    """For the manifest: what was trained on what, what it gave, what it cost."""
    summary: dict[str, Any] = {
        "method": cfg.method.name,
        "steps": state.step,
        "rows": {"kept": rejects.kept, "rejected": rejects.rejected, "reasons": dict(rejects.reasons)},
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "trained_parameters": sum(p.numel() for _, p in model.named_parameters()),
        "tokens": state.tokens,
        "seconds": round(seconds, 3),
        "loop_seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "peak_memory_mb": peak_memory_mb(),
        "forest": model.forest,
    }
    if references:
        summary["reference"] = references
    if state.heldout:
        saved = state.best_step if cfg.early_stopping is not None else state.step
        summary["heldout_before"] = state.heldout[0]
        summary["heldout_after"] = next(held for held in state.heldout if held["step"] == saved)
    if cfg.early_stopping is not None:
        summary["best_step"] = state.best_step
    return summary
