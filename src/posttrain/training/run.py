"""What the `train` step does around the loop: rows in, checks, reference log-probs, the loop, the model
out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from posttrain.common.allocator import keep_freed_memory
from posttrain.common.memory import peak_memory_mb, reset_peak_memory
from posttrain.common.step import StepContext
from posttrain.formats.rejects import Rejects
from posttrain.models.forward import causal_lm
from posttrain.models.load import Model, load_model
from posttrain.models.precision import pick_device, pick_dtype
from posttrain.models.vocabulary import same_vocabulary
from posttrain.training.critic import add_critic, critic_parameters
from posttrain.training.fit import Loop, State, fit, seed_everything
from posttrain.training.held import held_models
from posttrain.training.methods import method_named
from posttrain.training.methods.base import LOGPS, REFERENCE, VALUES, Method
from posttrain.training.offline import Encoded, Plan, grow
from posttrain.training.online import Online
from posttrain.training.open_online import open_online, read_online
from posttrain.training.optim import Optimizer
from posttrain.training.reference import reference_logps
from posttrain.training.rows import encode_sides, read_sides, refuse_bad_template, settled
from posttrain.training.source import Data, Offline
from posttrain.training.standards import standards_of

if TYPE_CHECKING:
    from posttrain.training.train import TrainConfig


def run_training(cfg: TrainConfig, ctx: StepContext) -> dict[str, Any]:
    started = time.monotonic()
    method = method_named(cfg.method.name)
    device = pick_device(cfg.device)
    dtype = pick_dtype(cfg.precision, device)
    seed_everything(cfg.seed)
    reset_peak_memory()
    if device == "cpu":
        keep_freed_memory()
    with Rejects(ctx.out / "rejected.jsonl") as rejects:
        rows, heldout_rows = read_sides(cfg, method, rejects)
        cfg = settled(cfg, method, rows)
        model = load_model(
            cfg.model,
            dtype=torch.float32,
            device=device,
            seed=cfg.seed,
            reward_heads=cfg.method.aspects(),
            train=True,
        )
        refuse_bad_template(cfg, model, rows)
        train, heldout = encode_sides(cfg, method, model, rows, heldout_rows, rejects, ctx.label)
        asked = read_online(cfg, model, rejects, ctx.label) if cfg.online else None
    optimizer = _optimizer(cfg, method, model, dtype, device)
    references: dict[str, int] = {}
    temperature = cfg.online.temperature if cfg.online else 1.0
    source: Offline | Online
    if asked is not None:
        source, streams = open_online(cfg, method, model, heldout, asked, device, ctx)
    else:
        (first, streams), references = _references(cfg, method, model, [train, heldout], ctx, device)
        sizes = tuple(tree.size for tree in grow(train.examples))
        families = tuple(example.family for example in train.examples)
        plan = Plan(sizes, cfg.seed, cfg.batch_size, cfg.batch_tokens, families)
        source = Offline(plan, Data(train.examples, first))
    state = fit(
        model,
        method,
        cfg.method,
        optimizer,
        source,
        Data(heldout.examples, streams, temperature=temperature) if heldout.examples else None,
        _loop(cfg, cfg.steps or source.steps(cfg.epochs), device),
        out=ctx.out,
        state_folder=ctx.state,
        trackers=cfg.log,
        label=ctx.label,
    )
    model.standards = standards_of(model, method, train.examples, cfg.micro_tokens, ctx.label)
    model.save(ctx.out / "model", None if cfg.save_dtype == "auto" else getattr(torch, cfg.save_dtype))
    summary = _summary(cfg, model, state, rejects, heldout.rows, references, time.monotonic() - started)
    return {**summary, **source.summary(), "models": held_models(model, source)}


def _optimizer(cfg: TrainConfig, method: Method, model: Model, dtype: torch.dtype, device: str) -> Optimizer:
    """Give the policy its critic where it needs one, take over all that is trained, and round the rest."""
    rates = {}
    if VALUES in method.needs:
        add_critic(model, cfg.method, cfg.seed, device)  # type: ignore[arg-type]
        lr = getattr(cfg.method, "critic_lr", None)
        assert cfg.optimizer.lr is not None
        if lr is not None:
            rates = dict.fromkeys(critic_parameters(model), lr / cfg.optimizer.lr)
    models = [model] if model.critic is None else [model, model.critic]
    heads = [head.weight for m in models for head in (m.reward_head, m.value_head) if head is not None]
    assert cfg.optimizer.lr is not None
    trainable = _trainable(model, method)
    optimizer = Optimizer(trainable, cfg.optimizer, cfg.optimizer.lr, dtype, exact=heads, rates=rates)
    for each in models:
        _compute_in(each, dtype)
        # no dropout but LoRA's own, which the loop switches: log-probs must be those of the policy
        each.hf.eval()
    return optimizer


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
        same_vocabulary(model, reference, "reference")
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


def _loop(cfg: TrainConfig, steps: int, device: str) -> Loop:
    return Loop(
        steps=steps,
        micro_tokens=cfg.micro_tokens,
        evaluate_every=cfg.evaluate_every,
        log_every=cfg.log_every,
        checkpoint_seconds=cfg.checkpoint_seconds,
        patience=cfg.early_stopping,
        diverge=cfg.diverge if cfg.online is None else 0.0,  # a policy's loss is no measure of its worth
        device=device,
    )


def _summary(
    cfg: TrainConfig,
    model: Model,
    state: State,
    rejects: Rejects,
    heldout: int,
    references: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    """For the manifest: what was trained on what, what it gave, what it cost."""
    summary: dict[str, Any] = {
        "method": cfg.method.name,
        "steps": state.step,
        "rows": {
            "kept": rejects.kept - heldout,
            "heldout": heldout,
            "rejected": rejects.rejected,
            "reasons": dict(rejects.reasons),
        },
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "trained_parameters": sum(p.numel() for _, p in model.named_parameters()),
        "tokens": state.tokens,
        "seconds": round(seconds, 3),
        "loop_seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "peak_memory_mb": peak_memory_mb(),
        "forest": model.forest,
    }
    if method_named(cfg.method.name).settle is not None:
        summary["settled"] = cfg.method.model_dump(mode="json")  # with what was taken from the rows
    if references:
        summary["reference"] = references
    if state.heldout:
        saved = state.best_step if cfg.early_stopping is not None else state.step
        summary["heldout_before"] = state.heldout[0]
        summary["heldout_after"] = next(held for held in state.heldout if held["step"] == saved)
    if cfg.early_stopping is not None:
        summary["best_step"] = state.best_step
    return summary
