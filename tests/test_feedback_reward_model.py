"""The reward model as a judge: scores are its head times the last hidden state of the plain model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import CHAT_END, END, tiny_folder, tiny_tokenizer

from posttrain.common.errors import ConfigError
from posttrain.feedback.ensemble import EnsembleJudge, RewardEnsemble, combined
from posttrain.feedback.judge import Verdict
from posttrain.feedback.judge_use import JudgeUse, read_judge
from posttrain.feedback.reward_model import RewardModel, RewardModelJudge, readable
from posttrain.flow.inputs import inputs_of
from posttrain.models.load import load_model
from posttrain.models.spec import ModelSpec
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


def with_units(folder: Path, **units: tuple[float, float]) -> Path:
    """Write down how the heads' rewards lie, as training does."""
    said = {aspect: {"mean": mean, "std": std, "n": 9} for aspect, (mean, std) in units.items()}
    (folder / "heads.json").write_text(json.dumps({"reward": [], "value": False, "standards": said}))
    return folder


def test_normalised_scores_are_in_standard_deviations(tmp_path):
    folder = with_units(reward_folder(tmp_path, "helpful", "safe"), helpful=(2.0, 0.5), safe=(-1.0, 4.0))
    item = (prompt("?"), Response(text="42"))
    (raw,) = judge_at(folder, aspect="safe").score([item])
    (found,) = judge_at(folder, aspect="safe", normalise=True).score([item])
    assert found.parts["helpful"] == pytest.approx((raw.parts["helpful"] - 2.0) / 0.5)
    assert found.score == found.parts["safe"] == pytest.approx((raw.score + 1.0) / 4.0)


def test_unknown_units_are_not_made_up(folder):
    with pytest.raises(ConfigError, match=r"rewards of overall lie .* normalise: false"):
        judge_at(folder, normalise=True)


def ensemble(*folders: Path, **fields) -> EnsembleJudge:
    return RewardEnsemble(models=[str(f) for f in folders], precision="float32", **fields).open()


@pytest.mark.parametrize("keep", [True, False])
def test_an_ensemble_of_models_each_on_its_own_template(tmp_path, keep):
    """Members are as alone: another architecture, another template, other units."""
    first = with_units(reward_folder(tmp_path / "a", "overall"), overall=(0.5, 2.0))
    base = tiny_folder("llama", tmp_path / "b" / "base", max_position_embeddings=128)
    spec = ModelSpec(path=str(base), chat_template="plain")
    load_model(spec, dtype=torch.float32, reward_heads=("overall",), seed=5).save(tmp_path / "b" / "rm")
    second = with_units(tmp_path / "b" / "rm", overall=(-0.5, 0.5))
    items = [(prompt("?"), Response(text=said)) for said in ("42", "no", "word " * 90)]
    alone = [judge_at(f, normalise=True).score(items) for f in (first, second)]
    assert judge_at(second).model.template.text != judge_at(first).model.template.text
    judge = ensemble(first, second, combine="lcb", penalty=0.5, keep=keep)
    found = judge.score(items)
    for verdict, a, b in list(zip(found, *alone, strict=True))[:2]:
        apart = abs(a.score - b.score) / 2
        assert verdict.parts == {
            "rm 1/overall": pytest.approx(a.score),
            "rm 2/overall": pytest.approx(b.score),
            "disagreement": pytest.approx(apart),
        }
        assert verdict.score == pytest.approx((a.score + b.score) / 2 - 0.5 * apart)
    assert found[2].score is None  # too long for both: no verdict, not a mean of those who answered
    assert "longer than the judge takes" in found[2].reason
    least = ensemble(first, second, combine="min").score(items[:1])[0]
    assert least.score == pytest.approx(min(a[0].score for a in alone))


def test_an_ensemble_of_heads(tmp_path):
    folder = reward_folder(tmp_path, "overall.0", "overall.1", "overall.2", "safe")
    item = (prompt("?"), Response(text="42"))
    judge = ensemble(folder, normalise=False)
    (found,) = judge.score([item])
    scores = dense(judge_at(folder, aspect="safe"), judge.kept[0].template.conversation(*item).tokens)[:3]
    mean = sum(scores) / 3
    assert found.score == pytest.approx(mean, abs=1e-4)
    assert found.parts["disagreement"] == pytest.approx(
        (sum((score - mean) ** 2 for score in scores) / 3) ** 0.5, abs=1e-4
    )
    assert list(found.parts) == [*(f"rm/overall.{k}" for k in range(3)), "disagreement"]
    with pytest.raises(ConfigError, match=r"3 members of it \(for reward_ensemble\)"):
        judge_at(folder)
    with pytest.raises(ConfigError, match="single member"):
        ensemble(folder, normalise=False, aspect="safe")
    with pytest.raises(ConfigError, match=r"no head for the aspect 'wit'"):
        ensemble(folder, normalise=False, aspect="wit")


def test_one_silent_member_silences_the_ensemble():
    """None is never a low score, and never left out of the mean."""
    said = {"a": 1.0, "b": Verdict(None, "cut off"), "c": 3.0}
    found = combined(said, "mean", 1.0)
    assert found.score is None
    assert found.reason == "b: cut off"
    assert found.parts == {"a": 1.0, "b": None, "c": 3.0, "disagreement": None}
    assert combined({"a": 1.0, "b": float("nan")}, "min", 1.0).reason == "b: not a finite number"
    whole = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert combined(whole, "min", 1.0).score == 1.0
    assert combined(whole, "lcb", 2.0).score == pytest.approx(2.0 - 2 * (2 / 3) ** 0.5)


def test_a_recipe_names_an_ensemble(folder):
    use = read_judge({"name": "reward_ensemble", "models": [str(folder), str(folder)], "combine": "min"})
    assert use.label == "reward_ensemble rm 1, rm 2 (min)"
    assert use == read_judge(use.model_dump())
    named = [leaf for leaf in inputs_of(use) if leaf.kind == "model"]
    assert [leaf.value for leaf in named] == [str(folder)] * 2
    with pytest.raises(ValueError, match="penalty goes with combine: lcb"):
        read_judge({"name": "reward_ensemble", "models": [str(folder)], "penalty": 2.0})
