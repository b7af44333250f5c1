"""How well a model predicts text it was not trained on: nats per supervised token, and per byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from posttrain.common.config import DataRef
from posttrain.common.errors import DataError
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.models.template import Encoded, Turns
from posttrain.records import Demonstration, Document, Row, prompt_key

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

Item = Demonstration | Document


class HeldoutLoss(TaskConfig):
    """Minus the log-probability of what should be said, in nats.

    `loss` is over the supervised tokens (what the assistant says and its stop token; all but a leading BOS of
    a document), every token weighing the same, as in training. `loss_per_byte` divides the same nats by the
    bytes of the text in UTF-8, so that models with different tokenizers can be compared.

    data: demonstrations or documents. turns: of a demonstration, all assistant turns or the response alone.
    group_by: a tag of the prompt; results are also given for each of its values.
    """

    title: ClassVar[str] = "Held-out loss"
    headline: ClassVar[str] = "loss"
    units: ClassVar[dict[str, str]] = {"loss": "nats/token", "loss_per_byte": "nats/byte"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "loss_per_byte"})

    data: DataRef
    turns: Turns = "all"
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a row; one longer than the model takes is in the third state."""
        from posttrain.evaluation.open import score_groups, too_long
        from posttrain.models.forest import Branch

        rows = ctx.take([self._item(row) for row in read_items(self.data, Row)])
        model = ctx.model()
        encoded = self._encode(rows, model.template)
        # The first token of a document without BOS has nothing before it that could predict it.
        branches = [(Branch(e.tokens, [False, *e.mask[1:]]),) for e in encoded]
        scored = score_groups(model, branches, ctx.label)
        return [
            self._outcome(row, found[0].logp, found[0].tokens)
            if found
            else self._outcome(row, note=too_long(model))
            for row, found in zip(rows, scored, strict=True)
        ]

    def _item(self, row: Row) -> Item:
        if not isinstance(row, Item):
            raise DataError(
                f"{self.data}: row {row.provenance.id} is a {type(row).__name__.lower()}; held-out loss is "
                "measured on demonstrations or documents"
            )
        return row

    def _encode(self, rows: list[Item], template: ChatTemplate) -> list[Encoded]:
        """Sequences in the order of the rows, demonstrations and documents encoded in one batch each."""
        spoken = [(row.prompt, row.response) for row in rows if isinstance(row, Demonstration)]
        said = iter(template.conversations(spoken, self.turns))
        written = iter(template.documents([row.text for row in rows if isinstance(row, Document)]))
        return [next(said if isinstance(row, Demonstration) else written) for row in rows]

    def _outcome(self, row: Item, logp: float | None = None, tokens: int = 0, note: str = "") -> Outcome:
        size = len(self._text(row).encode("utf-8"))
        return Outcome(
            item=row.provenance.id,
            cluster=prompt_key(row.prompt) if isinstance(row, Demonstration) else row.provenance.id,
            metrics={
                "loss": None if logp is None or not tokens else -logp / tokens,
                "loss_per_byte": None if logp is None or not size else -logp / size,
            },
            weights={"loss": float(tokens), "loss_per_byte": float(size)},
            group=group_of(row.prompt, self.group_by) if isinstance(row, Demonstration) else "",
            note=note,
        )

    def _text(self, row: Item) -> str:
        if isinstance(row, Document):
            return row.text
        earlier = (
            [m.text for m in row.prompt.messages if m.role == "assistant"] if self.turns == "all" else []
        )
        return "".join([*earlier, row.response.text])
