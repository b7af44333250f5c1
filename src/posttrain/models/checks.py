"""Would these rows train the tokens one thinks they do? Asked of the chat template before any training."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.common.errors import DataError
from posttrain.models import check_rules as rules
from posttrain.models.check_rules import CHECKS, Problem, Sample
from posttrain.models.template import ChatTemplate, Turns
from posttrain.records import Comparison, Demonstration, Document, Prompt, Rating, Response, Row, Samples

__all__ = ["CHECKS", "Problem", "check_template"]


def check_template(template: ChatTemplate, rows: Sequence[Row], turns: Turns = "last") -> list[Problem]:
    """What is wrong with training on `rows` through `template`; nothing, where all is well.

    rows: a sample of any kinds. turns: the assistant turns that are to be supervised.
    """
    sample = _sample(template, rows)
    return [
        *rules.accepted(sample),
        *rules.prefix(template, sample.written),
        *rules.words(template, sample.written),
        *rules.stop(template, sample.spoken),
        *rules.earlier(template, sample.prompts, turns),
        *rules.exact(template, sample),
        *rules.bos(template, sample.prompts),
        *rules.pad(template),
        *rules.merge(template, sample.written),
        *rules.unknown(template, sample),
        *rules.control(template, sample),
        *rules.date(template),
    ]


def _sample(template: ChatTemplate, rows: Sequence[Row]) -> Sample:
    sample = Sample()
    for row in rows:
        if isinstance(row, Document):
            sample.texts.append(row.text)
            continue
        if isinstance(row, Comparison) and row.prompt_token_ids is not None:
            sample.exact.append(row)
            continue
        prompt, responses = _parts(row)
        try:
            template.prompt(prompt.messages)
            for response in responses:
                template.response(prompt.messages, response)
        except DataError as e:
            sample.refused.append((prompt, str(e)))
            continue
        sample.prompts.append(prompt)
        sample.spoken += [(prompt, response) for response in responses]
        sample.texts += [m.text for m in prompt.messages] + [r.text for r in responses if r.token_ids is None]
    return sample


def _parts(row: Row) -> tuple[Prompt, list[Response]]:
    if isinstance(row, Prompt):
        return row, []
    if isinstance(row, Demonstration | Rating):
        return row.prompt, [row.response]
    if isinstance(row, Comparison):
        return row.prompt, [row.chosen, row.rejected]
    if isinstance(row, Samples):
        return row.prompt, list(row.responses)
    raise TypeError(f"no conversation in a {type(row).__name__}")
