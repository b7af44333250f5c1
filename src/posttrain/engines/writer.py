"""The seam above token ids: prompts in, responses out, whoever writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from posttrain.engines.protocol import BATCH_TOKENS, SamplingParams
from posttrain.models.precision import Precision
from posttrain.models.spec import ModelSpec
from posttrain.records import Prompt, Response


@dataclass(frozen=True)
class Written:
    """What came of one prompt.

    responses: those that there are. missing: why each of the others is not there; together they are n.
    """

    responses: tuple[Response, ...]
    missing: tuple[str, ...] = ()


class Writer(Protocol):
    """Lets one model answer prompts.

    name: how rows name the model. keeps: it keeps every answer itself, as it comes, so that a killed step can
    ask for all of them again.
    """

    name: str
    keeps: bool

    def turned_away(self, prompts: Sequence[Prompt]) -> list[str]:
        """Why each prompt cannot be asked; "" for one that can."""
        ...

    def write(
        self, prompts: Sequence[Prompt], params: SamplingParams, label: str = "sample"
    ) -> list[Written]:
        """`params.n` answers to each prompt, in order; none is made up where there is none."""
        ...

    def spent(self) -> dict[str, Any]:
        """What the answers cost, for the step's summary; empty where nothing was paid."""
        ...


@dataclass(frozen=True)
class Job:
    """What a step hands to an engine.

    model: None for an engine that names its model itself. precision, device, batch_tokens: as in
    `SampleConfig`. keep: a folder for what is worth keeping. payer: whom costs are booked to.
    """

    model: ModelSpec | None
    keep: Path
    payer: str
    precision: Precision = "auto"
    device: str = "auto"
    batch_tokens: int = BATCH_TOKENS


class EngineConfig(Protocol):
    """What is registered: a frozen `Config`, the fields of `{name: …, fields}`, that opens into a writer.

    takes: which of model, precision, device and batch_tokens mean something to it; `model` is then needed.
    """

    takes: ClassVar[frozenset[str]]

    def check(self, params: SamplingParams) -> None:
        """Raise ValueError for what the engine would have to ignore."""
        ...

    def open(self, job: Job) -> Writer:
        """Load or reach the model. Raises ConfigError where it cannot."""
        ...
