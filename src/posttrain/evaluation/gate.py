"""The verb `gate`: a new model goes on only if the metric that counts did not fall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.common.config import Config, DataRef, ModelRef
from posttrain.common.errors import TrainingError
from posttrain.common.files import write_json
from posttrain.common.step import Step, StepContext

if TYPE_CHECKING:
    from posttrain.evaluation.gate_evidence import Evidence


class GateConfig(Config):
    """Which of two measured models goes on.

    evaluation: an `evaluate` step that asked both the same items. candidate: the new model; incumbent: the
    one before it. task: its label in the evaluation; may be left out where there is one. metric: None is the
    task's headline.
    rule: the candidate fell where the interval of the paired difference lies wholly on the worse side of zero
    ("interval"), or where the difference itself does ("point").
    level: of that interval.
    max_missing: share of the items that may lack a value for one of the two; beyond it nothing is known, and
    the candidate does not go on.
    on_fall: where the candidate fell, or nothing is known, the incumbent goes on ("keep") or the step fails.
    """

    evaluation: DataRef
    candidate: ModelRef
    incumbent: ModelRef
    task: str | None = None
    metric: str | None = None
    rule: Literal["interval", "point"] = "interval"
    level: float = Field(0.95, gt=0, lt=1)
    max_missing: float = Field(0.1, ge=0, le=1)
    on_fall: Literal["keep", "stop"] = "keep"

    @model_validator(mode="after")
    def _two_models(self) -> GateConfig:
        if self.candidate == self.incumbent:
            raise ValueError(
                f"candidate and incumbent are the same model ({self.candidate}); a gate compares two"
            )
        return self


Verdict = Literal["rose", "held", "fell", "unknown"]


def run(cfg: GateConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `verdict.json` and, as `model/`, the model that goes on.

    Raises TrainingError where none does, DataError and ConfigError where the evaluation does not hold both.
    """
    from posttrain.evaluation.gate_evidence import gather
    from posttrain.evaluation.gate_model import keep_model

    evidence = gather(cfg)
    verdict, reason = decide(cfg, evidence)
    passes = verdict in ("rose", "held")
    goes_on = "candidate" if passes else "incumbent" if cfg.on_fall == "keep" else "none"
    said = {
        "verdict": verdict,
        "goes_on": goes_on,
        "why": reason,
        "rule": cfg.rule,
        "level": cfg.level,
        **evidence.as_dict(),
    }
    write_json(ctx.out / "verdict.json", said)
    if goes_on == "none":
        raise TrainingError(
            f"{reason}; on_fall is stop, so no model goes on. What was measured stays: "
            f"`posttrain report {cfg.evaluation} --out page` shows it. To go on with the incumbent, set "
            "on_fall: keep"
        )
    keep_model(cfg.candidate if passes else cfg.incumbent, ctx.out / "model")
    return said


STEP = Step("gate", GateConfig, run, version=1)


def decide(cfg: GateConfig, evidence: Evidence) -> tuple[Verdict, str]:
    """Whether the metric rose, held or fell, and why; "unknown" where the items do not say.

    Under "interval" it held where the interval holds zero: no fall was seen, which is no proof of none.
    """
    found, share = evidence.difference, evidence.missing_share
    if found.mean is None:
        return "unknown", f"{evidence.title}: no item has a value for both models"
    if share > cfg.max_missing:
        return "unknown", (
            f"{evidence.title}: {share:.1%} of the items lack a value for one of the models, more than "
            f"max_missing allows ({cfg.max_missing:.1%})"
        )
    low, high = found.low, found.high
    if cfg.rule == "point" or (low is None and found.clusters > 1):
        low = high = found.mean  # one value in every cluster: there is nothing to be unsure of
    if low is None or high is None:
        return "unknown", f"{evidence.title}: {found.method}"
    sign = -1 if evidence.lower_is_better else 1
    worst, best = min(sign * low, sign * high), max(sign * low, sign * high)
    verdict: Verdict = "fell" if best < 0 else "rose" if worst > 0 else "held"
    return verdict, f"{evidence.title} {verdict}: {evidence.in_words}"
