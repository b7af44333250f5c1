"""The judge `function`: a plain Python function of the user's is the reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, final

from pydantic import Field, model_validator

from posttrain.common.config import Config, Input
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.own_code import load_dotted
from posttrain.feedback.judge import Verdict
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response


class Function(Config):
    """What a function (prompt, response) says: a number, True or False, None for no answer, or a `Verdict`.

    call: `module:function`, of a file in the current folder or an installed package. Its source is part of
    the step's key. arguments: further ones, by name. A response that was cut off is not shown to it.
    """

    call: Annotated[str, Input("code")]
    arguments: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _callable(self) -> Function:
        function = _loaded(self.call)
        try:
            inspect.signature(function).bind(None, None, **self.arguments)
        except TypeError as e:
            raise ValueError(f"'{self.call}' is no judge of (prompt, response): {e}") from None
        return self

    @property
    def label(self) -> str:
        return self.call

    def open(self) -> FunctionJudge:
        return FunctionJudge(self.call, _loaded(self.call), self.arguments)


def _loaded(call: str) -> Callable[..., Any]:
    """Raises ValueError where there is no such function."""
    try:
        found = load_dotted(call, f"function '{call}'")
    except ConfigError as e:
        raise ValueError(str(e)) from None
    if not inspect.isfunction(found):
        raise ValueError(f"'{call}' is a {type(found).__name__}, not a function")
    return found


@final
@dataclass(frozen=True)
class FunctionJudge:
    """Raises DataError where the function gives what is neither a number nor None nor a `Verdict`."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        if response.finish == "length":
            return CUT_OFF
        try:
            said = self.function(prompt, response, **self.arguments)
        except Exception as e:
            e.add_note(f"in the judge '{self.name}', asked about the prompt '{prompt.provenance.id}'")
            raise
        if said is None:
            return Verdict(None, f"{self.name} gave no answer")
        if isinstance(said, Verdict):
            return said
        if isinstance(said, Real):
            return Verdict(float(said))
        raise DataError(
            f"judge '{self.name}' gave {said!r} ({type(said).__name__}) for the prompt "
            f"'{prompt.provenance.id}'; a reward is a number, None for no answer, or a Verdict"
        )
