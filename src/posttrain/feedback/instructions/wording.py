"""How it begins, ends and is put: quotation, end phrase, repetition, two responses, case, language."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from posttrain.feedback.instructions.checker import Checker, Relation, Words, holds

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Below this probability the language is taken for unknown; the identifier's are calibrated.
_SURE = 0.5
_UNKNOWN = "und"


class TwoResponses(Checker):
    """Two responses that differ, parted by six asterisks."""

    def followed(self, text: str) -> bool:
        parts = [part.strip() for part in text.split("******")]
        inner = parts[1 if not parts[0] else 0 : -1 if len(parts) > 1 and not parts[-1] else None]
        return len(inner) == 2 and all(inner) and inner[0] != inner[1]


class RepeatPrompt(Checker):
    """The response begins with the request, word for word."""

    prompt_to_repeat: Words

    def followed(self, text: str) -> bool:
        return text.strip().lower().startswith(self.prompt_to_repeat.strip().lower())


class EndPhrase(Checker):
    """Nothing follows the phrase but a closing quotation mark."""

    end_phrase: str = Field(pattern=r'[^\s"]')

    def followed(self, text: str) -> bool:
        ending = text.strip().strip('"').lower()
        return ending.endswith(self.end_phrase.strip().strip('"').lower())


class Quotation(Checker):
    """The whole response stands in double quotation marks."""

    def followed(self, text: str) -> bool:
        bare = text.strip()
        return len(bare) > 1 and bare[0] in '"“' and bare[-1] in '"”'


class NoComma(Checker):
    def followed(self, text: str) -> bool:
        return "," not in text


class CapitalWords(Checker):
    """How many words are written in capitals alone."""

    capital_frequency: int = Field(ge=0)
    capital_relation: Relation

    def followed(self, text: str) -> bool:
        count = sum(word.isupper() for word in re.findall(r"[\w'’-]+", text))
        return holds(count, self.capital_relation, self.capital_frequency)


class ResponseLanguage(Checker):
    """The language of the response, by its ISO 639 code; what is too short to tell stays open."""

    language: str

    @field_validator("language")
    @classmethod
    def _known(cls, language: str) -> str:
        base = language.lower().split("-")[0]  # "zh-cn" in langdetect's names
        if base not in identifier().labels:
            raise ValueError(f"no language '{language}' is known; codes are those of ISO 639-1, as 'en'")
        return base

    def followed(self, text: str) -> bool | None:
        said = language_of(text)
        return None if said is None else said == self.language


class EnglishCapitals(Checker):
    """In capital letters alone, and in English where the language can be told."""

    def followed(self, text: str) -> bool:
        return text.isupper() and language_of(text) in ("en", None)


class EnglishLowercase(Checker):
    """In small letters alone, and in English where the language can be told."""

    def followed(self, text: str) -> bool:
        return text.islower() and language_of(text) in ("en", None)


def language_of(text: str) -> str | None:
    """ISO 639 code of a text's language; None where none is likelier than all others together."""
    found, _ = identifier().classify(text)
    return None if found in (_UNKNOWN, "zxx") else str(found)


@cache
def identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_SURE)
