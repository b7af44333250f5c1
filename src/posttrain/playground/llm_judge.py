"""The judge `playground/llm_judge`: the oracle, asked as an LLM judge is, over HTTP, with errors of a chosen
size.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

from pydantic import Field

from posttrain.common.config import Runtime
from posttrain.engines.budget import Budget
from posttrain.feedback.judge import Account, Judge, PairJudge, Preference, Verdict
from posttrain.feedback.llm_asking import Asking
from posttrain.feedback.llm_judge import Llm, LlmComparer, LlmScorer
from posttrain.playground.judge_server import Errors, JudgeServer
from posttrain.records import Prompt, Response


class LlmOracle(Asking):
    """The judge `llm` whose server is the oracle (`judge_server`), on this machine, while the judge is open.

    errors: how it errs. All other fields are those of `llm`; accuracy is graded by correctness, style by how
    much of the text is the answer, detail by manner, any other aspect by the oracle's score.
    """

    version: ClassVar[int] = 1  # part of a step's key: raise it when grades change

    errors: Errors = Errors()
    concurrency: Annotated[int, Runtime(), Field(ge=1)] = 8
    budget: Annotated[Budget | None, Runtime()] = None

    def open(self) -> Judge | PairJudge:
        """As `Llm.open`."""
        folder = tempfile.TemporaryDirectory(prefix="posttrain-judge-")
        judge = self.open_with(Account(Path(folder.name), "judge"))
        weakref.finalize(judge, folder.cleanup)
        return judge

    def open_with(self, account: Account) -> Judge | PairJudge:
        """Start the server, which stops when the judge is let go."""
        server = JudgeServer(self.rubric, self.errors, self.seed)
        asking = {name: getattr(self, name) for name in self.model_fields_set & set(Asking.model_fields)}
        # the cache goes by the model's name: oracles that err otherwise are other models
        errors = self.errors.model_dump_json(exclude_defaults=True)
        llm = Llm(
            base_url=server.base_url,
            model=f"oracle {self.version} {errors} seed {self.seed}",
            concurrency=self.concurrency,
            budget=self.budget,
            **asking,
        )
        inner = llm.open_with(account)
        judge = (
            ScoringOracle(server, inner) if isinstance(inner, LlmScorer) else ComparingOracle(server, inner)
        )
        weakref.finalize(judge, server.close)
        return judge


@final
class ScoringOracle:
    def __init__(self, server: JudgeServer, inner: LlmScorer) -> None:
        self.server, self.inner = server, inner

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`."""
        self.server.know(prompt for prompt, _ in items)
        return self.inner.score(items)

    def spent(self) -> dict[str, Any]:
        """See `Paid`."""
        return self.inner.spent()


@final
class ComparingOracle:
    def __init__(self, server: JudgeServer, inner: LlmComparer) -> None:
        self.server, self.inner = server, inner

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        """See `PairJudge`."""
        self.server.know(prompt for prompt, _, _ in items)
        return self.inner.compare(items)

    def spent(self) -> dict[str, Any]:
        """See `Paid`."""
        return self.inner.spent()
