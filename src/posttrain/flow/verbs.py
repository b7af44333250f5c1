"""The verbs a recipe can use: an explicit dict, each resolved when a recipe or command asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step

VERBS: Mapping[str, str] = {
    "tokenizer": "posttrain.models.tokenizer:STEP",
    "curate": "posttrain.prompts.curate:STEP",
    "decontaminate": "posttrain.prompts.decontaminate:STEP",
    "sample": "posttrain.engines.sample:STEP",
    "choose": "posttrain.feedback.choose:STEP",
    "probe": "posttrain.feedback.knowledge.probe:STEP",
    "bogus": "posttrain.feedback.knowledge.bogus:STEP",
    "refusals": "posttrain.feedback.knowledge.refusals:STEP",
    "judge": "posttrain.feedback.judging:STEP",
    "pivotal": "posttrain.feedback.pivotal.step:STEP",
    "train": "posttrain.training.train:STEP",
    "evaluate": "posttrain.evaluation.suite:STEP",
    "gate": "posttrain.evaluation.gate:STEP",
    "report": "posttrain.report.page:STEP",
}

# Their output is no model: a field that takes one cannot open it.
NO_MODEL = frozenset(
    {
        *("curate", "decontaminate", "sample", "choose", "probe", "bogus", "refusals", "judge", "pivotal"),
        *("evaluate", "report"),
    }
)


def find_verb(name: object, verbs: Mapping[str, str]) -> Step:
    """The step behind a verb. Raises ConfigError with the nearest verb for one that is not known."""
    if not isinstance(name, str) or name not in verbs:
        raise ConfigError(f"no verb '{name}' ({nearest(str(name), list(verbs))})")
    module, _, attribute = verbs[name].partition(":")
    step = getattr(importlib.import_module(module), attribute)
    if not isinstance(step, Step):
        raise TypeError(f"{verbs[name]} is no Step")
    return step
