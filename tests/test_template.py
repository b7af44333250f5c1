"""Messages to tokens: what is supervised, what a response is, that a sampled prompt is the trained one."""

from __future__ import annotations

import itertools
import logging

import chat_templates as ct
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import END, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from posttrain.common.errors import ConfigError, DataError
from posttrain.models.template import ChatTemplate
from posttrain.records import ImagePart, Message, Prompt, Provenance, Response, TextPart

QUESTION = (Message(role="user", content="What is 12 + 30?"),)
DIALOGUE = (
    Message(role="user", content="What is 12 + 30?"),
    Message(role="assistant", content="It is 42."),
    Message(role="user", content="And doubled?"),
    Message(role="assistant", content="That makes 84."),
    Message(role="user", content="Thank you."),
)
SYSTEM = Message(role="system", content="You are brief.")
ANSWER = Response(text="You are welcome.")


def prompt(messages: tuple[Message, ...] = DIALOGUE) -> Prompt:
    return Prompt(provenance=Provenance(id="p1"), messages=messages)


@pytest.fixture(params=ct.STYLES, name="style")
def _style(request: pytest.FixtureRequest) -> ct.Style:
    return ct.STYLES[request.param]


@pytest.fixture(name="template")
def _template(style: ct.Style) -> ChatTemplate:
    return ChatTemplate(style.tokenizer())


def test_prompt_ids_are_those_of_plain_transformers(style: ct.Style, template: ChatTemplate) -> None:
    messages = (SYSTEM, *QUESTION) if style.system else QUESTION
    chat = [{"role": m.role, "content": m.content} for m in messages]
    expected = style.tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert template.prompt(messages) == expected


def test_a_multi_turn_conversation_has_the_ids_of_plain_transformers(
    style: ct.Style, template: ChatTemplate
) -> None:
    whole = (*DIALOGUE, Message(role="assistant", content=ANSWER.text))
    chat = [{"role": m.role, "content": m.content} for m in whole]
    expected = style.tokenizer().apply_chat_template(chat, return_dict=False)
    found = template.conversation(prompt(), ANSWER, "all").tokens
    assert found == expected[: len(found)]
    left = template.tokenizer.decode(expected[len(found) :])
    assert left.strip() in ("", template.tokenizer.eos_token)


def test_the_last_turn_alone_is_supervised(style: ct.Style, template: ChatTemplate) -> None:
    encoded = template.conversation(prompt(), ANSWER, "last")
    learned = [t for t, m in zip(encoded.tokens, encoded.mask, strict=True) if m]
    assert learned == template.response(DIALOGUE, ANSWER)
    assert encoded.tokens == template.prompt(DIALOGUE) + learned
    assert template.tokenizer.convert_ids_to_tokens(learned[-1]) == style.stop
    assert sum(t in template.stop_ids for t in learned) == 1
    assert template.decode(learned) == ANSWER.text


def test_all_assistant_turns_are_supervised_with_their_stop_tokens(
    style: ct.Style, template: ChatTemplate
) -> None:
    encoded = template.conversation(prompt(), ANSWER, "all")
    assert encoded.tokens == template.conversation(prompt(), ANSWER, "last").tokens
    turns: list[list[int]] = [[]]
    for token, learned in zip(encoded.tokens, encoded.mask, strict=True):
        if learned:
            turns[-1].append(token)
        elif turns[-1]:
            turns.append([])
    words = [template.decode(turn).strip() for turn in turns]
    assert words == ["It is 42.", "That makes 84.", ANSWER.text]
    assert {template.tokenizer.convert_ids_to_tokens(turn[-1]) for turn in turns} == {style.stop}


def test_a_prompt_is_the_start_of_every_longer_one(style: ct.Style, template: ChatTemplate) -> None:
    first, whole = template.prompt(DIALOGUE[:1]), template.prompt(DIALOGUE)
    assert whole[: len(first)] == first


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma"])
def test_bos_stands_once(name: str) -> None:
    template = ChatTemplate(ct.STYLES[name].tokenizer())
    bos = template.tokenizer.bos_token_id
    encoded = template.conversation(prompt(), ANSWER, "all")
    assert encoded.tokens[0] == bos
    assert encoded.tokens.count(bos) == 1
    document = template.documents(["A text."])[0]
    assert document.tokens.count(bos) == 1
    assert document.mask == [False] + [True] * (len(document.tokens) - 1)


def test_stop_ids_name_the_turns_end_first_and_the_end_of_text(
    style: ct.Style, template: ChatTemplate
) -> None:
    ids = template.tokenizer.convert_tokens_to_ids
    assert template.written_stop == template.stop_ids[0] == ids(style.stop)
    assert ids(style.eos) in template.stop_ids


def test_control_tokens_in_data_are_spelled_out(style: ct.Style, template: ChatTemplate) -> None:
    injected = f"a {style.stop}\n{style.specials[-1]} b"
    messages = (Message(role="user", content=injected),)
    clean = template.prompt((Message(role="user", content="a b"),))
    ids = template.prompt(messages)
    for token in style.specials:
        wanted = template.tokenizer.convert_tokens_to_ids(token)
        assert ids.count(wanted) == clean.count(wanted)
    assert injected in template.tokenizer.decode(ids)
    response = template.response(messages, Response(text=injected))
    assert [t in template.stop_ids for t in response].index(True) == len(response) - 1
    assert template.decode(response) == injected
    assert template.control_tokens(injected) == [style.stop, style.specials[-1]]


def test_a_control_token_that_is_not_flagged_special_is_spelled_out_too() -> None:
    tokenizer = tiny_tokenizer(chat_template=ct.UNKNOWN_STOP)
    tokenizer.add_tokens(["</turn>"], special_tokens=False)
    template = ChatTemplate(tokenizer)
    assert tokenizer.convert_ids_to_tokens(template.stop_ids[0]) == "</turn>"
    ids = template.response(QUESTION, Response(text="x</turn>y"))
    assert ids.count(template.stop_ids[0]) == 1
    assert template.decode(ids) == "x</turn>y"


def test_sampled_ids_are_never_touched(template: ChatTemplate) -> None:
    stop = template.stop_ids[0]
    whole = Response(text="x", token_ids=(70, 71, stop), finish="stop")
    cut = Response(text="x", token_ids=(70, 71), finish="length")
    assert template.response(QUESTION, whole) == [70, 71, stop]
    assert template.response(QUESTION, cut) == [70, 71]
    encoded = template.conversation(prompt(QUESTION), cut)
    assert encoded.tokens == [*template.prompt(QUESTION), 70, 71]
    assert sum(encoded.mask) == 2


_WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufffd"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(words=_WORDS.filter(lambda text: text.strip() == text))
def test_any_text_comes_back_from_its_response_ids(words: str) -> None:
    template = _CHATML
    ids = template.response(QUESTION, Response(text=words))
    assert ids[-1] == template.stop_ids[0]
    assert template.decode(ids) == words
    alone = template.prompt(QUESTION) + ids
    assert template.conversation(prompt(QUESTION), Response(text=words)).tokens == alone


_CHATML = ChatTemplate(ct.STYLES["chatml"].tokenizer())


def test_batches_give_what_single_calls_give(template: ChatTemplate) -> None:
    rows = [
        (prompt(), ANSWER),
        (prompt(QUESTION), Response(text="42")),
        (prompt(QUESTION), Response(text="x", token_ids=(9,))),
    ]
    assert template.conversations(rows, "all") == [template.conversation(p, r, "all") for p, r in rows]
    assert template.prompts([p.messages for p, _ in rows]) == [template.prompt(p.messages) for p, _ in rows]


def test_what_a_call_returns_may_be_changed() -> None:
    first = _CHATML.prompt(QUESTION)
    kept = list(first)
    first.append(1)
    assert _CHATML.prompt(QUESTION) == kept


def test_a_thought_that_the_template_adds_is_learned_but_not_read_back() -> None:
    template = ChatTemplate(ct.STYLES["qwen3"].tokenizer())
    ids = template.response(QUESTION, ANSWER)
    assert template.tokenizer.decode(ids) == "<think>\n\n</think>\n\nYou are welcome.<|im_end|>"
    assert template.decode(ids) == ANSWER.text
    thought = "<think>\nHm.\n</think>\n\nYes."
    assert template.decode(template.response(QUESTION, Response(text=thought))) == thought


def test_a_response_only_grows_as_it_is_decoded(style: ct.Style, template: ChatTemplate) -> None:
    ids = template.response(QUESTION, Response(text="Yes, it is 42, and not less."))
    words = [template.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert words[-1] == "Yes, it is 42, and not less."
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(words))


def test_earlier_turns_that_a_template_rewrites_are_refused_by_row() -> None:
    template = ChatTemplate(ct.SYSTEM_LAST.tokenizer())
    told = prompt((SYSTEM, *DIALOGUE))
    assert template.conversation(told, ANSWER, "last").tokens[
        : len(template.prompt(told.messages))
    ] == template.prompt(told.messages)
    with pytest.raises(DataError, match=r"row p1.*rewrites earlier turns.*turns: last"):
        template.conversation(told, ANSWER, "all")
    assert sum(template.conversation(prompt(), ANSWER, "all").mask) > sum(
        template.conversation(prompt(), ANSWER).mask
    )


def test_a_template_without_a_stop_token_gets_the_end_of_text_on_the_last_turn() -> None:
    template = ChatTemplate(tiny_tokenizer(chat_template=ct.NO_STOP, eos=END))
    assert template.written_stop is None
    ids = template.response(QUESTION, ANSWER)
    assert template.tokenizer.decode(ids) == ANSWER.text + END
    with pytest.raises(DataError, match="no stop token after an earlier assistant turn"):
        template.conversation(prompt(), ANSWER, "all")


def test_a_role_that_the_template_refuses_is_named() -> None:
    template = ChatTemplate(ct.STYLES["mistral"].tokenizer())
    with pytest.raises(DataError, match=r"turns \[system, user\].*roles must alternate"):
        template.prompt((SYSTEM, *QUESTION))


def test_an_image_is_refused_by_a_model_of_text() -> None:
    message = Message(role="user", content=(TextPart(text="see"), ImagePart(image="a.png")))
    with pytest.raises(DataError, match="reads text only"):
        _CHATML.prompt((message,))
    parts = Message(role="user", content=(TextPart(text="What is "), TextPart(text="12 + 30?")))
    assert _CHATML.prompt((parts,)) == _CHATML.prompt(QUESTION)


def test_documents_end_with_the_end_of_text() -> None:
    tokenizer = tiny_tokenizer(eos=END)
    encoded = ChatTemplate(tokenizer, "chatml").documents(["A river.", f"Two {END} three"])
    assert tokenizer.decode(encoded[0].tokens) == "A river." + END
    assert all(encoded[0].mask)
    assert encoded[1].tokens.count(0) == 1
    assert tokenizer.decode(encoded[1].tokens) == f"Two {END} three{END}"


class TestDefaults:
    def test_chatml_where_its_tokens_exist_with_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = tiny_tokenizer()
        with caplog.at_level(logging.WARNING):
            template = ChatTemplate(tokenizer)
        assert [r.message.count("chat template") for r in caplog.records] == [1]
        assert tokenizer.decode(template.prompt(QUESTION)) == (
            "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert tokenizer.chat_template == template.text

    @pytest.mark.parametrize("bos", [None, "<s>"])
    def test_plain_for_a_vocabulary_without_chat_tokens(self, bos: str | None) -> None:
        tokenizer = tiny_tokenizer(specials=(END, "<s>"), eos=END, bos=bos)
        size = len(tokenizer)
        template = ChatTemplate(tokenizer)
        encoded = template.conversation(prompt(), ANSWER, "all")
        text = tokenizer.decode(encoded.tokens)
        assert text.startswith(
            (bos or "") + "<|user|>\nWhat is 12 + 30?\n<|assistant|>\nIt is 42.<|endoftext|>\n<|user|>"
        )
        assert text.endswith("<|assistant|>\nYou are welcome.<|endoftext|>")
        assert len(tokenizer) == size
        assert template.stop_ids == (0,)

    def test_chatml_is_refused_where_its_tokens_are_missing(self) -> None:
        with pytest.raises(ConfigError, match="'plain'"):
            ChatTemplate(tiny_tokenizer(specials=(END,), eos=END), "chatml")

    def test_a_file_or_text_overrides(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        file = tmp_path / "t.jinja"
        file.write_text(ct.PHI3)
        tokenizer = ct.STYLES["phi3"].tokenizer()
        assert ChatTemplate(tokenizer, str(file)).text == ct.PHI3
        assert ChatTemplate(tokenizer, ct.ZEPHYR).text == ct.ZEPHYR

    def test_of_several_named_templates_the_default_is_used_and_all_are_kept(self) -> None:
        tokenizer = tiny_tokenizer()
        several = {"default": ct.CHATML, "tool_use": ct.QWEN3}
        tokenizer.chat_template = several
        assert ChatTemplate(tokenizer).text == ct.CHATML
        assert tokenizer.chat_template == several

    def test_an_unknown_name_and_a_broken_template_are_clear(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'chatml'"):
            ChatTemplate(tiny_tokenizer(), "chatlm")
        with pytest.raises(ConfigError, match="cannot render"):
            ChatTemplate(tiny_tokenizer(), "{% for m in messages %}")
        with pytest.raises(ConfigError, match="leaves out what the assistant says"):
            ChatTemplate(tiny_tokenizer(), "{{ messages[0].content }}")


def _sentencepiece(normalizer: normalizers.Normalizer | None, pre: object | None) -> PreTrainedTokenizerFast:
    """A vocabulary like Llama-2's: a space is ▁, and one is put before every text."""
    from tokenizers import pre_tokenizers

    words = ["▁answer", "▁question", "answer", "question", "▁", "<0x0A>", "[", "]", "/", "INST", "▁a", "a"]
    letters = sorted({c for w in words for c in w} | set("abcdefghijklmnopqrstuvwxyz.?"))
    vocab = {t: i for i, t in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *letters, *words]))}
    merges, known = [], set(vocab)
    for word in [w for w in words if not w.startswith("<")]:
        made = word[0]
        for c in word[1:]:
            if made + c not in known:
                vocab.setdefault(made + c, len(vocab))
            merges.append((made, c))
            made += c
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True)
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre is not None:
        assert isinstance(pre, pre_tokenizers.PreTokenizer)
        backend.pre_tokenizer = pre
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=ct.MISTRAL,
    )


@pytest.mark.parametrize("kind", ["normalizer", "metaspace first", "metaspace always"])
def test_a_sentencepiece_vocabulary_gets_no_second_space_at_a_boundary(kind: str) -> None:
    from tokenizers import pre_tokenizers

    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = {
        "normalizer": lambda: _sentencepiece(legacy, None),
        "metaspace first": lambda: _sentencepiece(
            None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        ),
        "metaspace always": lambda: _sentencepiece(
            None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        ),
    }[kind]()
    template = ChatTemplate(tokenizer)
    messages = (Message(role="user", content="question?"),)
    tokens = tokenizer.convert_ids_to_tokens(template.response(messages, Response(text="answer.")))
    assert tokens == ["▁answer", ".", "</s>"]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "question?"}, {"role": "assistant", "content": "answer."}],
        return_dict=False,
    )
    encoded = template.conversation(prompt(messages), Response(text="answer."))
    assert encoded.tokens == whole
    longer = (*messages, Message(role="assistant", content="answer."), *messages)
    chat = [{"role": m.role, "content": m.content} for m in longer]
    assert template.prompt(longer) == tokenizer.apply_chat_template(chat, return_dict=False)
