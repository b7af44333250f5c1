"""A ceiling on what a step pays: no request is sent that could break through it."""

from __future__ import annotations

import asyncio
from typing import final

from pydantic import Field, model_validator

from posttrain.common.config import Config
from posttrain.engines.reply_cache import Spent


class Budget(Config):
    """What a step may cost, over all its runs.

    tokens: of prompts and answers together. usd: in money; it needs both prices. usd_per_million_input,
    usd_per_million_output: prices in US dollars for a million tokens of prompts and of answers; alone, they
    only have the money told.
    """

    tokens: int | None = Field(None, ge=1)
    usd: float | None = Field(None, gt=0)
    usd_per_million_input: float | None = Field(None, ge=0)
    usd_per_million_output: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Budget:
        prices = {self.usd_per_million_input is None, self.usd_per_million_output is None}
        if len(prices) > 1:
            raise ValueError("give both prices, usd_per_million_input and usd_per_million_output, or neither")
        if self.usd is not None and True in prices:
            raise ValueError("'usd' needs usd_per_million_input and usd_per_million_output")
        if self.tokens is None and True in prices:
            raise ValueError("give 'tokens', or 'usd' with prices")
        return self

    @property
    def limits(self) -> bool:
        return self.tokens is not None or self.usd is not None

    def money(self, input: int, output: int) -> float | None:
        """US dollars; None without prices."""
        if self.usd_per_million_input is None or self.usd_per_million_output is None:
            return None
        return (input * self.usd_per_million_input + output * self.usd_per_million_output) / 1e6

    def holds(self, input: int, output: int) -> bool:
        """Whether so many tokens of prompts and answers can be paid."""
        money = self.money(input, output)
        return (self.tokens is None or input + output <= self.tokens) and (
            self.usd is None or money is None or money <= self.usd
        )

    def told(self, spent: Spent) -> str:
        """What was spent, of what."""
        money = self.money(spent.input, spent.output)
        parts = []
        if self.usd is not None and money is not None:
            parts.append(f"${money:.4f} of ${self.usd:g}")
        if self.tokens is not None:
            parts.append(f"{spent.input + spent.output:,} of {self.tokens:,} tokens")
        return ", ".join(parts)


@final
class Meter:
    """Books what requests cost, and holds the worst case of those under way against the budget."""

    def __init__(self, budget: Budget | None, spent: Spent) -> None:
        self.budget, self.spent = budget, spent
        self._held = (0, 0)
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def reserve(self, input: int, output: int) -> bool:
        """Wait until a request of at most so many tokens surely fits; False where it never will."""
        async with self._changed:
            while not self._fits(input, output):
                if not self._under_way:
                    return False
                await self._changed.wait()
            self._held = (self._held[0] + input, self._held[1] + output)
            self._under_way += 1
            return True

    async def settle(self, reserved: tuple[int, int], paid: Spent) -> None:
        """Let go of what a request was reserved, and book what it cost."""
        async with self._changed:
            self._held = (self._held[0] - reserved[0], self._held[1] - reserved[1])
            self._under_way -= 1
            self.spent = Spent(
                self.spent.answers + paid.answers,
                self.spent.input + paid.input,
                self.spent.output + paid.output,
                self.spent.uncounted + paid.uncounted,
            )
            self._changed.notify_all()

    def _fits(self, input: int, output: int) -> bool:
        if self.budget is None:
            return True
        return self.budget.holds(
            self.spent.input + self._held[0] + input, self.spent.output + self._held[1] + output
        )
