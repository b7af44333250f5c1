"""The judge `llm`: a language model behind a chat server grades responses by a rubric, alone or in pairs.

In pairs, as in Phi-4's judge-guided DPO (arXiv 2412.08905, section 4.2), each pair is asked both ways round,
because judges favour a place (Zheng et al., arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, final

from posttrain.engines.openai_client import ChatClient
from posttrain.engines.server import Server
from posttrain.feedback.judge import Account, Judge, PairJudge, Preference, Verdict
from posttrain.feedback.llm_asking import Asker, Asking, Question
from posttrain.feedback.llm_replies import Grades
from posttrain.feedback.llm_rubric import filled, template_for, unaskable
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Prompt, Response, row_id

_TOLD = 300  # characters of the named faults that a verdict repeats


class Llm(Server, Asking):
    """A judge behind an OpenAI-compatible chat server: the fields of `Server` say which, and what it may
    cost; those of `Asking` what it is asked.
    """

    @property
    def label(self) -> str:
        return f"llm {self.model}"

    def open(self) -> Judge | PairJudge:
        """With a cache that lasts as long as the judge. Steps use `open_with`, which keeps what is paid."""
        folder = tempfile.TemporaryDirectory(prefix="posttrain-judge-")
        judge = self.open_with(Account(Path(folder.name), "judge"))
        weakref.finalize(judge, folder.cleanup)
        return judge

    def open_with(self, account: Account) -> LlmScorer | LlmComparer:
        """Raises ConfigError where the key is not in the environment, or the openai package is missing."""
        # two judges of one step have budgets of their own
        asked = self.model_dump(mode="json", include={*Asking.model_fields, "model"})
        payer = f"{account.payer}/llm-{row_id(asked)}"
        asker = Asker(self, ChatClient(self, account.keep / "http.sqlite", payer))
        return LlmScorer(asker) if self.ask == "score" else LlmComparer(asker)


@final
class LlmScorer:
    """Grades each response alone."""

    def __init__(self, asker: Asker) -> None:
        self.asker, self.cfg = asker, asker.cfg
        self.template = template_for(self.cfg.ask, self.cfg.template)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`. parts: the grades by aspect; reason: the faults named. With `repeats`, means over the
        answers that can be read; no answer where none can.
        """
        found = [
            CUT_OFF if response.finish == "length" else Verdict(None, unaskable(prompt, self.template))
            for prompt, response in items
        ]
        places = [i for i, verdict in enumerate(found) if not verdict.reason]
        questions = []
        for i in places:
            text = filled(self.template, items[i][0], [items[i][1]], self.cfg.rubric, "score")
            questions += [Question(text, draw) for draw in range(self.cfg.repeats)]
        answers = iter(self.asker.grades(questions))
        for i in places:
            found[i] = self._verdict([next(answers) for _ in range(self.cfg.repeats)])
        return found

    def _verdict(self, answers: Sequence[tuple[Grades, ...] | str]) -> Verdict:
        read = [answer[0] for answer in answers if not isinstance(answer, str)]
        if not read:
            return Verdict(None, str(answers[0]))
        parts = {
            aspect.name: sum(grades.by[aspect.name] for grades in read) / len(read)
            for aspect in self.cfg.rubric
        }
        return Verdict(self.cfg.value(parts), read[0].faults[:_TOLD], parts)

    def spent(self) -> dict[str, Any]:
        """See `Paid`."""
        return _spent(self.asker)


@final
class LlmComparer:
    """Grades two responses side by side, both ways round; the better grade is the preference."""

    def __init__(self, asker: Asker) -> None:
        self.asker, self.cfg = asker, asker.cfg
        self.template = template_for(self.cfg.ask, self.cfg.template)

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        """See `PairJudge`. parts: the preference by each aspect alone."""
        why = [self._unaskable(*item) for item in items]
        questions = []
        for (prompt, first, second), reason in zip(items, why, strict=True):
            for pair in [(first, second), (second, first)][: 0 if reason else self.cfg.orders]:
                text = filled(self.template, prompt, pair, self.cfg.rubric, "compare")
                questions += [Question(text, draw) for draw in range(self.cfg.repeats)]
        answers = iter(self.asker.grades(questions))
        return [
            Preference(None, reason)
            if reason
            else self._preference([[next(answers) for _ in range(self.cfg.repeats)] for _ in self._orders()])
            for reason in why
        ]

    def spent(self) -> dict[str, Any]:
        """See `Paid`."""
        return _spent(self.asker)

    def _orders(self) -> range:
        return range(self.cfg.orders)

    def _unaskable(self, prompt: Prompt, first: Response, second: Response) -> str:
        cut_off = "length" in (first.finish, second.finish)
        return CUT_OFF.reason if cut_off else unaskable(prompt, self.template)

    def _preference(self, asked: Sequence[Sequence[tuple[Grades, ...] | str]]) -> Preference:
        """asked: for each order, the answers of its repeats."""
        read = [[answer for answer in answers if not isinstance(answer, str)] for answers in asked]
        for answers, readable in zip(asked, read, strict=True):
            if not readable:
                return Preference(None, str(answers[0]))
        parts = {aspect.name: self._by(read, itemgetter(aspect.name)) for aspect in self.cfg.rubric}
        whole = self._by(read, self.cfg.value)
        return Preference(whole.probability, whole.reason, parts, whole.orders)

    def _by(
        self, read: Sequence[Sequence[tuple[Grades, ...]]], value: Callable[[Mapping[str, int]], float]
    ) -> Preference:
        """The preference by one number."""
        shares = []
        for swapped, answers in enumerate(read):
            won = [_outcome(value(first.by), value(second.by)) for first, second in answers]
            share = sum(won) / len(won)
            shares.append(1 - share if swapped else share)
        if len(shares) == 1:
            return Preference(shares[0])
        orders = (shares[0], shares[1])
        if self.cfg.both_agree and _side(orders[0]) != _side(orders[1]):
            return Preference(None, "the two orders disagree", orders=orders)
        return Preference(sum(orders) / 2, orders=orders)


def _outcome(first: float, second: float) -> float:
    return 0.5 if first == second else float(first > second)


def _side(share: float) -> int:
    return (share > 0.5) - (share < 0.5)


def _spent(asker: Asker) -> dict[str, Any]:
    return asker.client.spent() | {"asked_again": asker.asked_again}
