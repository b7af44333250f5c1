"""The tokenizer step: loadable by plain transformers, the same bytes from the same rows, and fit for chat."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.models.load_tokenizer import load_tokenizer, splits_as_written, tokenizer_hash
from posttrain.models.template import ChatTemplate
from posttrain.models.tokenizer import STEP, TokenizerConfig, texts_of
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

WORDS = [
    "river",
    "city",
    "mountain",
    "polite",
    "letter",
    "answer",
    "number",
    "seven",
    "twelve",
    "because",
    "although",
    "garden",
    "winter",
]


def rows(count: int = 60) -> list[Row]:
    text = [
        " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 12)) + f" {i}{i + 7}."
        for i in range(count)
    ]
    made: list[Row] = [Document(provenance=Provenance(id=f"d{i}"), text=t) for i, t in enumerate(text)]
    made.append(
        Demonstration(provenance=Provenance(id="x"), prompt=ask(), response=Response(text="Grüße, 你好!"))
    )
    return made


def ask(text: str = "What is 12 + 30?") -> Prompt:
    return Prompt(provenance=Provenance(id="p"), messages=(Message(role="user", content=text),))


def write(folder: Path, made: list[Row]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text(
        "".join(row.model_dump_json() + "\n" for row in made), encoding="utf-8"
    )
    return str(folder)


def train(tmp: Path, name: str = "t", made: list[Row] | None = None, **fields: object) -> tuple[Path, dict]:
    data = write(tmp / f"data-{name}", rows() if made is None else made)
    context = StepContext(tmp / name, tmp / f"{name}.state", name)
    context.out.mkdir()
    summary = STEP.run(parse(TokenizerConfig, {"data": data, "vocab_size": 320, **fields}, name), context)
    return context.out, summary


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return train(tmp_path_factory.mktemp("tokenizer"))


def digest(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def test_plain_transformers_loads_it_with_the_chat_template(made: tuple[Path, dict]) -> None:
    out, summary = made
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert len(tokenizer) == summary["vocab_size"] == 320
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    chat = [{"role": "user", "content": "river"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "<|im_start|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nriver\nassistant\n"
    assert summary["rejected"] == 0
    assert summary["rows"] == 61
    text = rows(1)[0].text  # type: ignore[attr-defined]
    assert summary["bytes_per_token"] > 2
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2


def test_it_is_ready_for_chat_without_a_warning(
    made: tuple[Path, dict], caplog: pytest.LogCaptureFixture
) -> None:
    template = ChatTemplate(load_tokenizer(str(made[0])))
    assert not caplog.records
    names = template.tokenizer.convert_ids_to_tokens(list(template.stop_ids))
    assert names == ["<|im_end|>", "<|endoftext|>"]
    assert template.tokenizer.pad_token_id not in template.stop_ids


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_every_text_comes_back(made: tuple[Path, dict], text: str) -> None:
    import unicodedata

    tokenizer = load_tokenizer(str(made[0]))
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


def test_digits_stand_alone_or_in_runs(tmp_path: Path) -> None:
    numbers: list[Row] = [
        Document(provenance=Provenance(id=str(i)), text="it cost 1234567 in 1984 " * 5) for i in range(9)
    ]
    single = AutoTokenizer.from_pretrained(train(tmp_path, "s", numbers, vocab_size=300)[0] / "tokenizer")
    runs = AutoTokenizer.from_pretrained(
        train(tmp_path, "r", numbers, vocab_size=300, digits="runs")[0] / "tokenizer"
    )
    assert single.tokenize("1234567") == list("1234567")
    assert runs.tokenize("1234567") == ["123", "456", "7"]


def test_without_normalisation_decomposed_letters_stay(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(train(tmp_path, normalize=None)[0]))
    assert tokenizer.decode(tokenizer.encode("cafe\u0301")) == "cafe\u0301"


def test_the_same_rows_give_the_same_bytes_whatever_the_hash_seed_and_threads(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows())
    script = (
        "import sys, pathlib\n"
        "from posttrain.common.step import StepContext\n"
        "from posttrain.models.tokenizer import STEP, TokenizerConfig\n"
        "out = pathlib.Path(sys.argv[2]); out.mkdir()\n"
        "STEP.run(TokenizerConfig(data=sys.argv[1], vocab_size=500), StepContext(out, out, 't'))\n"
    )
    digests = []
    for seed, threads in (("1", "1"), ("2", "2")):
        out = tmp_path / f"run{seed}"
        env = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", script, data, str(out)], check=True, env=env)
        digests.append(digest(out / "tokenizer"))
    assert digests[0] == digests[1]


def test_a_qwen2_model_made_with_it_is_split_alike_by_plain_transformers(
    made: tuple[Path, dict], tmp_path: Path
) -> None:
    """Transformers splits by a built-in rule for this architecture; the default rule is the same one."""
    from tiny import tiny_model

    tiny_model("qwen2", vocab_size=320).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(made[0] / "tokenizer").save_pretrained(tmp_path / "m")
    plain = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert type(plain).__name__ == "Qwen2Tokenizer"
    assert splits_as_written(plain, tmp_path / "m")
    assert tokenizer_hash(plain) == tokenizer_hash(load_tokenizer(str(made[0])))
    chat = [{"role": "user", "content": "river 12"}]
    ids = plain.apply_chat_template(chat, return_dict=False)
    assert ids == AutoTokenizer.from_pretrained(made[0] / "tokenizer").apply_chat_template(
        chat, return_dict=False
    )


def test_further_special_tokens_are_single_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(train(tmp_path, special_tokens=["<tool>", "</tool>"])[0]))
    assert tokenizer.tokenize("<tool>river</tool>")[0] == "<tool>"
    assert {"<tool>", "</tool>"} <= set(tokenizer.all_special_tokens)


def test_every_kind_of_row_is_read() -> None:
    p, a, b = ask("q"), Response(text="a"), Response(text="b")
    provenance = Provenance(id="x")
    assert texts_of(p) == ["q"]
    assert texts_of(Demonstration(provenance=provenance, prompt=p, response=a)) == ["q", "a"]
    assert texts_of(Comparison(provenance=provenance, prompt=p, chosen=a, rejected=b)) == ["q", "a", "b"]
    assert texts_of(Rating(provenance=provenance, prompt=p, response=a)) == ["q", "a"]
    assert texts_of(Samples(provenance=provenance, prompt=p, responses=(a, b))) == ["q", "a", "b"]
    assert texts_of(Document(provenance=provenance, text="d")) == ["d"]


def test_no_rows_and_a_vocabulary_without_room_are_clear(tmp_path: Path) -> None:
    (tmp_path / "data-none").mkdir()
    with pytest.raises(DataError, match="no rows to make a vocabulary from"):
        train(tmp_path, "none", [])
    many = [f"<{i}>" for i in range(60)]
    with pytest.raises(ConfigError, match="leaves no room: bytes and special tokens are 320"):
        parse(TokenizerConfig, {"data": "x", "vocab_size": 310, "special_tokens": many}, "t")


def test_too_little_text_for_so_many_tokens_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = train(tmp_path, vocab_size=5000)[1]
    assert 320 < summary["vocab_size"] < 400
    assert [f"give {summary['vocab_size']} tokens, not 5000" in r.message for r in caplog.records] == [True]


def test_unusable_rows_are_put_aside_and_too_many_stop_it(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": "river and city"}) + "\n" for _ in range(20))
        + json.dumps({"text": ""})
        + "\n"
    )
    for limit, name in ((0.1, "a"), (0.01, "b")):
        cfg = TokenizerConfig(data=str(tmp_path / "texts.jsonl"), vocab_size=300, max_rejected=limit)
        context = StepContext(tmp_path / name, tmp_path / name, name)
        context.out.mkdir()
        if limit == 0.1:
            assert STEP.run(cfg, context)["rejected"] == 1
            assert len((context.out / "rejected.jsonl").read_text().splitlines()) == 1
        else:
            with pytest.raises(DataError, match="1 of 21 rows"):
                STEP.run(cfg, context)
            assert not (context.out / "tokenizer").exists()
