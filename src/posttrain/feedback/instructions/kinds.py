"""The kinds of instructions, under the ids that IFEval gives them (Zhou et al., arXiv:2311.07911)."""

from __future__ import annotations

from posttrain.feedback.instructions import keywords, layout, lengths, wording
from posttrain.feedback.instructions.checker import Checker

KINDS: dict[str, type[Checker]] = {
    "keywords:existence": keywords.KeywordsExist,
    "keywords:frequency": keywords.KeywordFrequency,
    "keywords:forbidden_words": keywords.ForbiddenWords,
    "keywords:letter_frequency": keywords.LetterFrequency,
    "language:response_language": wording.ResponseLanguage,
    "length_constraints:number_sentences": lengths.NumberOfSentences,
    "length_constraints:number_paragraphs": lengths.NumberOfParagraphs,
    "length_constraints:number_words": lengths.NumberOfWords,
    "length_constraints:nth_paragraph_first_word": lengths.ParagraphFirstWord,
    "detectable_content:number_placeholders": layout.Placeholders,
    "detectable_content:postscript": layout.Postscript,
    "detectable_format:number_bullet_lists": layout.BulletLists,
    "detectable_format:constrained_response": layout.ConstrainedResponse,
    "detectable_format:number_highlighted_sections": layout.HighlightedSections,
    "detectable_format:multiple_sections": layout.MultipleSections,
    "detectable_format:json_format": layout.JsonFormat,
    "detectable_format:title": layout.Title,
    "combination:two_responses": wording.TwoResponses,
    "combination:repeat_prompt": wording.RepeatPrompt,
    "startend:end_checker": wording.EndPhrase,
    "startend:quotation": wording.Quotation,
    "change_case:capital_word_frequency": wording.CapitalWords,
    "change_case:english_capital": wording.EnglishCapitals,
    "change_case:english_lowercase": wording.EnglishLowercase,
    "punctuation:no_comma": wording.NoComma,
}
