"""`posttrain inspect`: what is shown is what would be trained on; it fails where training would refuse."""

from __future__ import annotations

import io
from pathlib import Path

import chat_templates as ct
import pytest
from rich.console import Console
from tiny import END, tiny_folder, tiny_tokenizer

from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.models import check_rules as rules
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
from posttrain.training.inspection import Report, inspect_data, make_report
from posttrain.training.inspection_view import _histogram, _quantile

ASK = Message(role="user", content="What is 12 + 30?")
DIALOGUE = (ASK, Message(role="assistant", content="It is 42."), Message(role="user", content="And doubled?"))
OPENED = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"


def prompt(*messages: Message, id: str = "p") -> Prompt:
    return Prompt(provenance=Provenance(id=id), messages=messages or (ASK,))


def demo(text: str, *messages: Message, id: str = "d") -> Demonstration:
    return Demonstration(provenance=Provenance(id=id), prompt=prompt(*messages), response=Response(text=text))


def pair(chosen: str = "It is 42.", rejected: str = "No.") -> Comparison:
    return Comparison(
        provenance=Provenance(id="c"),
        prompt=prompt(),
        chosen=Response(text=chosen),
        rejected=Response(text=rejected),
    )


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> str:
    return str(tiny_folder("llama", tmp_path / "model", tokenizer=tiny_tokenizer(chat_template=ct.CHATML)))


def look(
    tmp_path: Path, model: str, *rows: Row, terminal: bool = False, fails: bool = False, **options: object
) -> tuple[str, Report | None]:
    (tmp_path / "rows.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    out = io.StringIO()
    console = Console(
        file=out, width=300, force_terminal=terminal, color_system="standard" if terminal else None
    )
    options = {"n": 9, **options}
    if fails:
        with pytest.raises(TrainingError, match="would train the wrong tokens"):
            inspect_data(model, tmp_path / "rows.jsonl", console=console, **options)  # type: ignore[arg-type]
        return out.getvalue(), None
    report = inspect_data(model, tmp_path / "rows.jsonl", console=console, **options)  # type: ignore[arg-type]
    return out.getvalue(), report


def test_supervised_tokens_stand_in_brackets_without_colour(tmp_path: Path, model: str) -> None:
    shown, report = look(tmp_path, model, demo("It is 42."))
    assert OPENED + "⟦It is 42.<|im_end|>⟧" in shown
    assert "\x1b[" not in shown
    assert report is not None
    assert report.supervised == [len(tiny_tokenizer().encode("It is 42.<|im_end|>"))]
    assert report.lengths == [len(tiny_tokenizer().encode(OPENED + "It is 42.<|im_end|>"))]


def test_supervised_tokens_are_coloured_and_prompts_dim_on_a_terminal(tmp_path: Path, model: str) -> None:
    shown, _ = look(tmp_path, model, demo("It is 42."), terminal=True)
    assert "\x1b[1;32mIt is 42.\x1b[0m" in shown
    assert (
        "\x1b[2mWhat is 12 + 30?" in shown.replace("user\n", "").replace("\x1b[0m\x1b[2m", "")
        or "\x1b[2m" in shown
    )
    assert "⟦" not in shown


def test_all_turns_where_the_method_says_so(tmp_path: Path, model: str) -> None:
    row = demo("That makes 84.", *DIALOGUE)
    last, _ = look(tmp_path, model, row, method={"name": "sft", "turns": "last"})
    assert last.count("⟦") == 2  # and once in the legend
    both, _ = look(tmp_path, model, row, method={"name": "sft", "turns": "all"})
    assert "⟦It is 42.<|im_end|>⟧\n<|im_start|>user\nAnd doubled?" in both
    assert "⟦That makes 84.<|im_end|>⟧" in both


def test_a_pair_shows_its_prompt_once(tmp_path: Path, model: str) -> None:
    shown, report = look(tmp_path, model, pair())
    assert shown.count("What is 12 + 30?") == 1
    assert "chosen:\n⟦It is 42.<|im_end|>⟧\nrejected:\n⟦No.<|im_end|>⟧" in shown
    assert report is not None
    assert len(report.lengths) == 2


def test_a_token_exact_pair_shows_its_own_tokens(tmp_path: Path, model: str) -> None:
    tokenizer = tiny_tokenizer()
    prefix = tokenizer.encode(OPENED + "The answer is")
    a, b = tokenizer.encode("A"), tokenizer.encode("B")
    row = Comparison(
        provenance=Provenance(id="t"),
        prompt=prompt(),
        chosen=Response(text="A", token_ids=tuple(a)),
        rejected=Response(text="B", token_ids=tuple(b)),
        prompt_token_ids=tuple(prefix),
    )
    shown, report = look(tmp_path, model, row)
    assert "assistant\nThe answer is\nchosen:\n⟦A⟧\nrejected:\n⟦B⟧" in shown
    assert report is not None
    assert report.supervised == [1, 1]


def test_documents_prompts_ratings_and_samples(tmp_path: Path, model: str) -> None:
    provenance = Provenance(id="x")
    rows: list[Row] = [
        Document(provenance=provenance, text="A river."),
        prompt(),
        Rating(provenance=provenance, prompt=prompt(), response=Response(text="Yes."), label=True),
        Samples(provenance=provenance, prompt=prompt(), responses=(Response(text="a"), Response(text="b"))),
    ]
    shown, report = look(tmp_path, model, *rows)
    assert "⟦Yes.<|im_end|>⟧" in shown
    assert "response 1:\n⟦a<|im_end|>⟧\nresponse 2:\n⟦b<|im_end|>⟧" in shown
    assert " river.<|im_end|>⟧" in shown
    assert report is not None
    assert len(report.lengths) == 5
    assert report.supervised[1] == 0


def test_the_numbers(tmp_path: Path, model: str) -> None:
    rows = [demo("a" + " b" * i, id=str(i)) for i in range(20)]
    shown, report = look(tmp_path, model, *rows, n=1, limit=10)
    assert report is not None
    assert len(report.seen) == 10
    assert report.more
    assert "10 demonstrations (there are more)" in shown
    share = sum(report.supervised) / sum(report.lengths)
    assert f"{share:.1%} of the tokens are supervised" in shown
    assert shown.count("What is 12 + 30?") == 1
    line = next(line for line in shown.splitlines() if line.split()[:2] == ["supervised", "2"])
    assert line.split()[1:7] == ["2", "6", "6.5", "11", "11", "65"]


def test_quantiles_and_histogram() -> None:
    assert [_quantile([1, 2, 3, 4], q) for q in (0.5, 0.95)] == [2, 4]
    assert _quantile([7], 0.95) == 7
    assert _quantile(list(range(1, 101)), 0.95) == 95
    assert _histogram([5, 5, 5]).strip("5 ") == "█"
    bars = _histogram([0] * 8 + [100])
    assert bars.startswith("0 █")
    assert bars.endswith("▁ 100")


class TestChecks:
    def test_each_is_marked(self, tmp_path: Path, model: str) -> None:
        shown, _ = look(tmp_path, model, demo("It is 42."), pair())
        for check in rules.CHECKS:
            assert f"✓ {check}" in " ".join(shown.split())

    def test_a_broken_template_is_shown_and_refused(self, tmp_path: Path, model: str) -> None:
        shown, _ = look(tmp_path, model, demo("It is 42."), chat_template=ct.NOT_PREFIX, fails=True)
        assert f"✗ {rules.PREFIX}: in 1 of 1" in " ".join(shown.split())
        assert "⟦It is 42." in shown

    def test_warnings_do_not_refuse(self, tmp_path: Path) -> None:
        tiny_tokenizer(chat_template=ct.NO_STOP, eos=END).save_pretrained(tmp_path / "t")
        shown, report = look(tmp_path, str(tmp_path / "t"), demo("It is 42."))
        assert f"! {rules.STOP}: the template writes no stop token" in " ".join(shown.split())
        assert report is not None
        assert not report.errors

    def test_the_turns_of_the_method_are_checked(self, tmp_path: Path) -> None:
        tiny_tokenizer(chat_template=ct.NO_STOP, eos=END).save_pretrained(tmp_path / "t")
        row = demo("84.", *DIALOGUE)
        look(
            tmp_path,
            str(tmp_path / "t"),
            row,
            demo("It is 42."),
            method={"name": "sft", "turns": "all"},
            fails=True,
        )


class TestRows:
    def test_unusable_rows_are_counted_with_the_reason(self, tmp_path: Path, model: str) -> None:
        same = Comparison(
            provenance=Provenance(id="s"),
            prompt=prompt(),
            chosen=Response(text="No."),
            rejected=Response(text="No. ", token_ids=tuple(tiny_tokenizer().encode("No.<|im_end|>"))),
        )
        shown, report = look(tmp_path, model, pair(), same)
        assert report is not None
        assert len(report.seen) == 1
        assert "1 rows cannot be used:\n  1 × 'rejected': chosen and rejected are the same tokens" in shown

    def test_nothing_usable_is_an_error(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(DataError, match="not one of the 1 training rows compares or rates 'other'"):
            look(tmp_path, model, pair(), method={"name": "reward", "heads": ["other"]})

    def test_a_method_and_a_model_that_do_not_exist(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(ConfigError, match="did you mean"):
            look(tmp_path, model, pair(), method="rewards")
        with pytest.raises(ConfigError, match="no folder"):
            look(tmp_path, str(tmp_path / "nothing" / "here"), pair())

    def test_rows_of_another_kind_than_the_methods(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(DataError, match="comparisons"):
            look(tmp_path, model, demo("x"), method="dpo")

    def test_other_formats_are_read(self, tmp_path: Path, model: str) -> None:
        (tmp_path / "alpaca.jsonl").write_text(
            '{"instruction": "What is 12 + 30?", "input": "", "output": "42"}\n'
        )
        from posttrain.models.load_tokenizer import load_template

        report = make_report(load_template(model), tmp_path / "alpaca.jsonl")
        assert [type(seen.row) for seen in report.seen] == [Demonstration]


def test_the_generation_configs_stop_tokens_count(tmp_path: Path) -> None:
    from posttrain.models.load_tokenizer import load_template

    path = tiny_folder(
        "llama", tmp_path / "m", tokenizer=tiny_tokenizer(chat_template=ct.CHATML), eos_token_id=[2, 0]
    )
    assert load_template(str(path)).stop_ids == (2, 0)
