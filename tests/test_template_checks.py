"""The checks find each kind of broken template, and nothing wrong with sound ones."""

from __future__ import annotations

import chat_templates as ct
import pytest
from tiny import END, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.models import check_rules as rules
from posttrain.models.checks import check_template
from posttrain.models.load_tokenizer import tokenizer_hash
from posttrain.models.template import ChatTemplate
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Provenance,
    Rating,
    Response,
    Row,
    Samples,
)

ASK = Message(role="user", content="What is 12 + 30?")
SYSTEM = Message(role="system", content="You are brief.")
DIALOGUE = (ASK, Message(role="assistant", content="It is 42."), Message(role="user", content="And doubled?"))


def prompt(*messages: Message, id: str = "p") -> Prompt:
    return Prompt(provenance=Provenance(id=id), messages=messages or (ASK,))


def demo(text: str = "It is 42.", *messages: Message, id: str = "r", **response: object) -> Demonstration:
    answer = Response.model_validate({"text": text, **response})
    return Demonstration(provenance=Provenance(id=id), prompt=prompt(*messages, id=id), response=answer)


def found(template: ChatTemplate, *rows: Row, turns: str = "last") -> dict[str, str]:
    """check → severity"""
    return {p.check: p.severity for p in check_template(template, rows, turns)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ct.STYLES)
@pytest.mark.parametrize("turns", ["last", "all"])
def test_sound_templates_pass(name: str, turns: str) -> None:
    template = ChatTemplate(ct.STYLES[name].tokenizer())
    provenance = Provenance(id="x")
    rows: list[Row] = [
        demo(),
        demo("That makes 84.", *DIALOGUE),
        prompt(),
        Comparison(
            provenance=provenance, prompt=prompt(), chosen=Response(text="42."), rejected=Response(text="1.")
        ),
        Rating(provenance=provenance, prompt=prompt(), response=Response(text="42."), label=True),
        Samples(provenance=provenance, prompt=prompt(), responses=(Response(text="42."),)),
        Document(provenance=provenance, text="A river."),
    ]
    # Zephyr's pads with its end token, and its template leaves out the BOS that its tokenizer puts
    expected = {rules.PAD: "warning", rules.BOS: "warning"} if name == "zephyr" else {}
    assert found(template, *rows, turns=turns) == expected


def test_a_generation_prompt_that_is_not_there_afterwards_is_an_error() -> None:
    template = ChatTemplate(tiny_tokenizer(chat_template=ct.NOT_PREFIX))
    (problem,) = check_template(template, [demo(), demo("No."), prompt()])
    assert (problem.check, problem.severity) == (rules.PREFIX, "error")
    assert "2 of 2" in problem.message
    assert "bot" in problem.example
    assert "assistant" in problem.example


def test_no_stop_token_in_the_template_is_a_warning_and_an_error_for_earlier_turns() -> None:
    template = ChatTemplate(tiny_tokenizer(chat_template=ct.NO_STOP, eos=END))
    assert found(template, demo())[rules.STOP] == "warning"
    row = demo("84.", *DIALOGUE)
    assert rules.EARLIER not in found(template, row)
    assert found(template, row, turns="all")[rules.EARLIER] == "error"


def test_an_end_that_is_no_single_token_is_an_error() -> None:
    template = ChatTemplate(tiny_tokenizer(chat_template=ct.UNKNOWN_STOP))
    (problem,) = check_template(template, [demo()])
    assert (problem.check, problem.severity) == (rules.STOP, "error")
    assert "'</turn>'" in problem.message


def test_no_end_at_all_is_an_error() -> None:
    tokenizer = tiny_tokenizer(chat_template=ct.NO_STOP)
    tokenizer.eos_token = None
    template = ChatTemplate(tokenizer)
    assert template.stop_ids == ()
    assert found(template, demo())[rules.STOP] == "error"


def test_a_foreign_stop_token_among_samples_is_an_error() -> None:
    template = ChatTemplate(ct.STYLES["chatml"].tokenizer())
    assert found(template, demo("x", token_ids=(70, 2), finish="stop")) == {}
    assert found(template, demo("x", token_ids=(70,), finish="length")) == {}
    assert found(template, demo("x", token_ids=(70, 71), finish="stop")) == {rules.STOP: "error"}


def test_a_template_that_changes_the_words_is_an_error() -> None:
    shouting = ct.CHATML.replace("message['content']", "message['content'] | upper")
    template = ChatTemplate(
        tiny_tokenizer(chat_template=shouting.replace("| upper", "| replace('42', '43')"))
    )
    (problem,) = check_template(template, [demo(), demo("No.")])
    assert (problem.check, problem.severity) == (rules.WORDS, "error")
    assert "1 of 2" in problem.message
    assert "43" in problem.example


def test_spaces_and_forms_of_unicode_are_no_change_of_words() -> None:
    trimming = ChatTemplate(ct.STYLES["llama3"].tokenizer())
    assert found(trimming, demo("  It is 42.\n")) == {}
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer(chat_template=ct.CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert found(ChatTemplate(tokenizer), demo("cafe\u0301")) == {}


def test_earlier_turns_that_lose_their_thoughts_are_told() -> None:
    template = ChatTemplate(ct.STYLES["qwen3"].tokenizer())
    thinking = Message(role="assistant", content="<think>\nHm.\n</think>\n\nIt is 42.")
    row = demo("84.", ASK, thinking, DIALOGUE[2])
    assert found(template, row) == {rules.EARLIER: "warning"}


def test_rewritten_earlier_turns_are_an_error_where_they_are_to_be_supervised() -> None:
    template = ChatTemplate(ct.SYSTEM_LAST.tokenizer())
    row = demo("84.", SYSTEM, *DIALOGUE)
    assert found(template, row) == {}
    assert found(template, row, turns="all") == {rules.EARLIER: "error"}
    assert found(template, demo("84.", *DIALOGUE), turns="all") == {}


def test_refused_conversations_are_counted_and_are_an_error_where_all_are() -> None:
    template = ChatTemplate(ct.STYLES["mistral"].tokenizer())
    refused = demo("Yes.", SYSTEM, ASK)
    assert found(template, refused) == {rules.ACCEPTED: "error"}
    (problem,) = check_template(template, [demo(), refused, demo()])
    assert (problem.check, problem.severity) == (rules.ACCEPTED, "warning")
    assert problem.message.startswith("1 of 3 conversations cannot be rendered")


class TestBos:
    def template(self, text: str, bos: str | None = "<s>") -> ChatTemplate:
        tokenizer = tiny_tokenizer(
            chat_template=text, specials=(END, "<s>", "<|im_start|>", "<|im_end|>"), bos=bos
        )
        return ChatTemplate(tokenizer)

    def test_once_is_right(self) -> None:
        assert found(self.template("{{ bos_token }}" + ct.CHATML), demo()) == {}

    def test_twice_is_an_error(self) -> None:
        assert found(self.template("{{ bos_token }}{{ bos_token }}" + ct.CHATML), demo()) == {
            rules.BOS: "error"
        }

    def test_missing_is_a_warning_where_the_tokenizer_puts_one(self) -> None:
        assert found(self.template(ct.CHATML), demo()) == {rules.BOS: "warning"}
        assert found(self.template(ct.CHATML, bos=None), demo()) == {}


def test_pad_that_is_the_end_is_told() -> None:
    template = ChatTemplate(tiny_tokenizer(chat_template=ct.CHATML, pad="<|im_end|>"))
    assert found(template, demo()) == {rules.PAD: "warning"}
    ids = template.response((ASK,), Response(text="42."))
    assert ids[-1] == template.tokenizer.pad_token_id


def test_a_merge_across_the_boundary_is_told() -> None:
    spaced = ChatTemplate(tiny_tokenizer(chat_template=ct.NO_STOP, eos=END))
    assert rules.MERGE in found(
        spaced, demo("the answer")
    )  # the prompt ends with a space, and " the" is a token
    before = ChatTemplate(
        tiny_tokenizer(chat_template=ct.NO_STOP.replace("ASSISTANT: ", "ASSISTANT:"), eos=END)
    )
    assert rules.MERGE not in found(before, demo("the answer"))


def test_unknown_tokens_are_counted() -> None:
    backend = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3, "user": 4}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    template = ChatTemplate(tokenizer, "{% for m in messages %}{{ m.content + '</s> ' }}{% endfor %}")
    known = Message(role="user", content="yes " * 30)
    assert rules.UNKNOWN not in found(template, demo("no", known))
    assert found(template, demo("no maybe", known))[rules.UNKNOWN] == "warning"
    assert found(template, demo("what is this"))[rules.UNKNOWN] == "error"


def test_control_tokens_in_data_are_told_with_their_place() -> None:
    template = ChatTemplate(ct.STYLES["chatml"].tokenizer())
    (problem,) = check_template(template, [demo("It is 42.<|im_end|>"), demo()])
    assert (problem.check, problem.severity) == (rules.CONTROL, "warning")
    assert "42.<|im_end|>" in problem.example


def test_a_date_in_the_template_is_told() -> None:
    today = "{{ strftime_now('%Y') }}"
    assert found(ChatTemplate(tiny_tokenizer(chat_template=today + ct.CHATML)), demo()) == {
        rules.DATE: "warning"
    }
    settled = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template = ChatTemplate(tiny_tokenizer(chat_template=settled + "{{ date_string }}" + ct.CHATML))
    assert found(template, demo()) == {}
    assert "26 Jul 2024" in template.render((ASK,))


def test_token_exact_pairs_of_another_tokenizer_are_an_error() -> None:
    tokenizer = ct.STYLES["chatml"].tokenizer()
    template = ChatTemplate(tokenizer)

    def pair(tokenizer: str | None, token: int) -> Comparison:
        return Comparison(
            provenance=Provenance(id="x"),
            prompt=prompt(),
            chosen=Response(text="a", token_ids=(token,)),
            rejected=Response(text="b", token_ids=(66,)),
            prompt_token_ids=(5, 6, 7),
            tokenizer=tokenizer,
        )

    assert found(template, pair(tokenizer_hash(tokenizer), 65), pair(None, 65)) == {}
    assert found(template, pair("0" * 16, 65)) == {rules.EXACT: "error"}
    assert found(template, pair(None, 5000)) == {rules.EXACT: "error"}
