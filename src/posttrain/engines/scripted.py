"""An engine that says what it is told to: for tests, and for trying out a recipe without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

from posttrain.common.errors import ConfigError
from posttrain.engines.protocol import Completion, SamplingParams, limits_of

Tokens = Sequence[int]
Script = Callable[[Tokens, int], Tokens] | Mapping[Tokens, Sequence[Tokens]]


@final
class ScriptedEngine:
    """Answers by a script: a function of (prompt, sample number), or a table from prompt to its samples.

    An answer longer than it may be is cut off there; every other one has stopped. Log-probs are 0, for
    what is said is certain. `asked` keeps the (prompts, params) of every call. Raises ConfigError for a
    prompt or sample that is not in the table.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[list[tuple[int, ...]], SamplingParams]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str = "sample",
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See `Engine`."""
        self.asked.append(([tuple(prompt) for prompt in prompts], params))
        return [
            [self._answer(prompt, j, limit) for j in range(params.n)]
            for prompt, limit in zip(prompts, limits_of(prompts, params, limits), strict=True)
        ]

    def _answer(self, prompt: Tokens, sample: int, limit: int) -> Completion:
        said = tuple(self._said(prompt, sample))
        kept = said[:limit]
        certain = (0.0,) * len(kept)
        return Completion(kept, certain, "stop" if kept == said else "length", certain)

    def _said(self, prompt: Tokens, sample: int) -> Tokens:
        if not isinstance(self.script, Mapping):
            return self.script(prompt, sample)
        samples = self.script.get(tuple(prompt), ())
        if sample >= len(samples):
            raise ConfigError(f"the script has {len(samples)} samples for {tuple(prompt)}, asked for more")
        return samples[sample]
