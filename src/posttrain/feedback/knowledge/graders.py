"""Who grades a short answer, as a config names it: `rule`, or `{name: rule | llm | check, …}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from posttrain.common.config import nearest
from posttrain.feedback.fact_grades import RuleGrader
from posttrain.feedback.fact_llm import LlmGrader
from posttrain.feedback.knowledge.check import CheckGrader

_NAMES = ["rule", "llm", "check"]


def _named(value: Any) -> Any:
    """A grader by its name alone. Raises ValueError with the nearest for what is none."""
    if isinstance(value, RuleGrader | LlmGrader | CheckGrader):
        return value
    given = {"name": value} if isinstance(value, str) else value
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(
            f"a grader is a name or a mapping with a 'name' ({', '.join(_NAMES)}), got {value!r}"
        )
    if name not in _NAMES:
        raise ValueError(f"no grader named '{name}' ({nearest(name, _NAMES)})")
    return given


GraderField = Annotated[
    RuleGrader | LlmGrader | CheckGrader, Field(discriminator="name"), BeforeValidator(_named)
]
