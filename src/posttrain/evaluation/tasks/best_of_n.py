"""What picking the best of n answers by a judge gains, for every n, from one set of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from posttrain.common.config import DataRef
from posttrain.common.errors import ConfigError, DataError
from posttrain.engines.token_writer import model_name
from posttrain.evaluation.answered import scoring, verdicts
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.feedback.best_of_n import expected_best, kl_bound, won
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judge_use import JudgeField
from posttrain.models.spec import as_spec
from posttrain.records import Prompt, Response, Samples, prompt_key


class BestOfN(TaskConfig):
    """`gold@n` is the expected gold score of the best of n by the picking judge, `proxy@n` that judge's own,
    `kl@n` the bound on the distance to the sampler in nats; for every n up to the N samples of a prompt, each
    without bias from the same samples. `best` is the first of the two (proxy without a gold judge) at `n`,
    `gain` that less its value at n = 1, `won` how often it beats another answer of the sampler in the same
    judge's eyes, a tie counting one half; of prompts with more than n samples.

    A sample that was cut off, or to which one of the judges gave no answer, is in the third state: it cannot
    be ranked or valued, and `unscored` counts such samples. Its prompt has no value for the largest n then.

    data: samples, of which those that the model under evaluation wrote are taken. writer: take those of this
    writer instead, as rows name it (an engine `http` writes under its server's name). pick: the judge that
    picks (the proxy). gold: the judge whose scores count. n: what `best` and `gain` are for; the largest
    number of samples where None. group_by: a tag of the prompt; results are also
    given for each of its values.
    """

    title: ClassVar[str] = "Best of n"
    headline: ClassVar[str] = "best"
    units: ClassVar[dict[str, str]] = {"kl": "nats"}
    amounts: ClassVar[frozenset[str]] = frozenset({"gain", "unscored"})
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"unscored"})

    data: DataRef | list[DataRef]
    pick: JudgeField
    gold: JudgeField | None = None
    n: int | None = Field(None, ge=1)
    writer: str | None = None
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a prompt. Raises DataError where the writer has no samples in the data; ConfigError,
        before a judge is asked, for an n that no prompt reaches or a judge that cannot score.
        """
        groups = self._samples(self.writer or model_name(as_spec(ctx.model_path)))
        keys = ctx.take(list(groups))
        largest = max(len(groups[key][1]) for key in keys)
        if self.n is not None and self.n > largest:
            raise ConfigError(f"best_of_n: n is {self.n}, and no prompt has more than {largest} samples")
        items = [(groups[key][0], response) for key in keys for response in groups[key][1]]
        uses = [use for use in (self.pick, self.gold) if use is not None]
        judges = [(use.name, scoring(use, ctx.account, "best_of_n")) for use in uses]
        said = [iter(verdicts(judge, name, items)) for name, judge in judges]
        picks, golds = said[0], said[1] if self.gold else None
        outcomes = []
        for key in keys:
            prompt, responses = groups[key]
            pairs = [(next(picks), next(golds) if golds else None) for _ in responses]
            outcomes.append(self._outcome(key, prompt, pairs, largest))
        return outcomes

    def _samples(self, writer: str) -> dict[str, tuple[Prompt, list[Response]]]:
        rows = [row for path in _several(self.data) for row in read_items(path, Samples)]
        groups: dict[str, tuple[Prompt, list[Response]]] = {}
        for row in rows:
            if row.model == writer:
                key = prompt_key(row.prompt)
                groups.setdefault(key, (row.prompt, []))[1].extend(row.responses)
        if not groups:
            others = ", ".join(sorted({row.model or "nobody named" for row in rows}))
            raise DataError(
                f"best_of_n: no samples by '{writer}' in the data, only by {others}; sample from the model "
                "under evaluation, or say whose samples to take with 'writer'"
            )
        return groups

    def _outcome(
        self, key: str, prompt: Prompt, pairs: Sequence[tuple[Verdict, Verdict | None]], largest: int
    ) -> Outcome:
        scored = [
            (pick.score, gold.score if gold else None)
            for pick, gold in pairs
            if pick.score is not None and (gold is None or gold.score is not None)
        ]
        proxy = [pick for pick, _ in scored]
        worth = {"gold": [gold for _, gold in scored if gold is not None]} if self.gold else {}
        worth["proxy"] = proxy
        main = next(iter(worth))
        metrics: dict[str, float | None] = {"best": None, "gain": None}
        for n in range(1, largest + 1):
            for name, values in worth.items():
                metrics[f"{name}@{n}"] = expected_best(proxy, values, n) if n <= len(proxy) else None
            metrics[f"kl@{n}"] = kl_bound(n)
        n = self.n or largest
        first, last = metrics[f"{main}@1"], metrics[f"{main}@{n}"]
        metrics["best"] = last
        metrics["gain"] = None if first is None or last is None else last - first
        if n < largest:
            metrics["won"] = won(proxy, worth[main], n) if n < len(proxy) else None
        metrics["unscored"] = float(len(pairs) - len(scored))
        why = [v.reason for pair in pairs for v in pair if v is not None and v.score is None]
        return Outcome(
            item=key,
            cluster=key,
            metrics=metrics,
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            note="; ".join(dict.fromkeys(why)),
        )


def _several(data: str | list[str]) -> list[str]:
    return [data] if isinstance(data, str) else data
