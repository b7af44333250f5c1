"""The reward model as a judge: scores are its head times the last hidden state of the plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import CHAT_END, END, tiny_folder, tiny_tokenizer

from posttrain.common.errors import ConfigError
from posttrain.feedback.judge_use import JudgeUse, read_judge
from posttrain.feedback.reward_model import RewardModel, RewardModelJudge, readable
from posttrain.models.load import load_model
from posttrain.models.template import ChatTemplate
from posttrain.records import Message, Prompt, Provenance, Response


def prompt(text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=text), messages=(Message(role="user", content=text),))


def reward_folder(folder: Path, *aspects: str, arch: str = "qwen2") -> Path:
    base = tiny_folder(arch, folder / "base", max_position_embeddings=128)
    model = load_model(base, dtype=torch.float32, reward_heads=aspects, seed=3)
    model.save(folder / "rm")
    return folder / "rm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return reward_folder(tmp_path_factory.mktemp("rm"), "overall")


def judge_at(folder: Path, **fields) -> RewardModelJudge:
    return RewardModel(model=str(folder), precision="float32", **fields).open()


def dense(judge: RewardModelJudge, ids: list[int]) -> list[float]:
    """Each head's score of one row by the model's own forward."""
    with torch.no_grad():
        hidden = judge.model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    return (judge.model.reward_head.weight @ hidden.float()).tolist()


@pytest.mark.parametrize("arch", ["qwen2", "mamba"])
def test_scores_are_those_of_a_dense_forward(tmp_path, arch):
    judge = judge_at(reward_folder(tmp_path, "overall", arch=arch))
    template = judge.model.template
    items = [
        (prompt(asked), Response(text=said))
        for asked in ("What is 12 + 30?", "Write a polite email.")
        for said in ("42", "Thank you very much, Anna.", "no")
    ]
    found = judge.score([items[i] for i in (3, 0, 5, 1, 4, 2)])
    for verdict, i in zip(found, (3, 0, 5, 1, 4, 2), strict=True):
        (expected,) = dense(judge, template.conversation(*items[i]).tokens)
        assert verdict.score == pytest.approx(expected, abs=1e-4)
        assert verdict.parts == {"overall": verdict.score}
    assert len({round(verdict.score, 4) for verdict in found}) == 6


def test_sampled_tokens_are_judged_as_they_were_sampled(folder):
    """Two spellings of one text get two scores."""
    judge = judge_at(folder)
    template = judge.model.template
    whole = template.response(prompt("?").messages, Response(text="the answer"))
    letters = [template.tokenizer.convert_tokens_to_ids(c) for c in "theĠanswer"] + whole[-1:]
    assert template.decode(letters) == "the answer"
    asked = prompt("?")
    found = judge.score([(asked, Response(text="the answer", token_ids=tuple(i))) for i in (whole, letters)])
    before = template.prompt(asked.messages)
    assert [v.score for v in found] == pytest.approx(
        [dense(judge, before + i)[0] for i in (whole, letters)], abs=1e-4
    )
    assert found[0].score != found[1].score


def test_another_tokenizers_tokens_are_read_as_text():
    mine = ChatTemplate(tiny_tokenizer(), "chatml")
    other = tiny_tokenizer(specials=(END, "<|im_start|>", CHAT_END, "<x>", "<y>"))
    ids = tuple(other("the answer is", add_special_tokens=False)["input_ids"])
    foreign = Response(text="the answer is", token_ids=ids, logps=(-1.0,) * len(ids), finish="stop")
    assert readable(foreign, mine) == Response(text="the answer is", finish="stop")
    unknown = Response(text="x", token_ids=(10**6,), finish="stop")
    assert readable(unknown, mine).token_ids is None
    own = tuple(mine.tokenizer("it is 42\nUser:", add_special_tokens=False)["input_ids"])
    for text in ("it is 42\nUser:", "it is 42"):  # the second was ended by a stop string
        kept = Response(text=text, token_ids=own)
        assert readable(kept, mine) is kept


def test_what_cannot_be_judged_gets_no_answer(folder):
    judge = judge_at(folder)
    found = judge.score(
        [
            (prompt("?"), Response(text="42", finish="length")),
            (prompt("?"), Response(text="word " * 200)),
            (prompt("?"), Response(text="42", finish="stop")),
        ]
    )
    assert found[0].score is None
    assert found[0].reason == "cut off"
    assert found[1].score is None
    assert "longer than the judge takes" in found[1].reason
    assert found[2].score is not None
    assert judge.score([]) == []


def test_heads_are_chosen_by_aspect(tmp_path):
    folder = reward_folder(tmp_path, "helpful", "harmless")
    with pytest.raises(ConfigError, match="set aspect to one of helpful, harmless"):
        judge_at(folder)
    judge = judge_at(folder, aspect="harmless")
    item = (prompt("?"), Response(text="42"))
    (verdict,) = judge.score([item])
    scores = dense(judge, judge.model.template.conversation(*item).tokens)
    assert list(verdict.parts.values()) == pytest.approx(scores, abs=1e-4)
    assert verdict.score == verdict.parts["harmless"] != verdict.parts["helpful"]


def test_a_score_that_is_no_number_is_no_answer(folder):
    judge = judge_at(folder)
    torch.nn.init.constant_(judge.model.reward_head.weight, float("inf"))
    (verdict,) = judge.score([(prompt("?"), Response(text="42"))])
    assert verdict.score is None
    assert verdict.parts == {"overall": None}
    assert verdict.reason == "not a finite number"


def test_a_model_without_a_reward_head_cannot_judge(tmp_path):
    with pytest.raises(ConfigError, match="no reward head"):
        judge_at(tiny_folder("llama", tmp_path / "policy"))


def test_a_recipe_names_it(folder):
    use = read_judge({"name": "reward_model", "model": str(folder)})
    assert isinstance(use, JudgeUse)
    assert use.label == "reward_model rm"
    assert use == read_judge(use.model_dump())
