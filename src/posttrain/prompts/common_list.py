"""Where a list of n-grams that many texts have comes from."""

from __future__ import annotations

from pydantic import Field, model_validator

from posttrain.common.config import Config, DataRef


class Common(Config):
    """Where the list of common n-grams comes from; each way adds to it.

    phrases: a text file with a phrase a line; every n-gram of it is common.
    corpus, documents: rows of any kind; an n-gram that more than `documents` of them have is common.
    items: an n-gram that more than so many evaluation items have is common: the words of a benchmark's form.
    """

    phrases: DataRef | None = None
    corpus: DataRef | list[DataRef] | None = None
    documents: int = Field(10, ge=1)
    items: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _used(self) -> Common:
        if self.corpus is None and "documents" in self.model_fields_set:
            raise ValueError("'documents' counts rows of a 'corpus', and none is given")
        return self
