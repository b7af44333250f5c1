"""Training on answers sampled as it goes: through the whole step, on a tiny model, against closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from kills import kill_proof, metrics, stumbling
from online_home import online_home
from safetensors.torch import load_file

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, TrainingError
from posttrain.common.step import StepContext
from posttrain.formats import write_records
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import forward
from posttrain.models.load import load_model
from posttrain.records import Document, Message, Provenance
from posttrain.training.train import STEP, TrainConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    prompts = online_home(folder, "Say number {}.", 12)
    write_records(folder / "one.jsonl", prompts[:1])
    texts = [Document(text=f"Line {i} of a small text.", provenance=Provenance(id=f"t{i}")) for i in range(8)]
    write_records(folder / "texts.jsonl", texts)
    return folder


def fields(home, method, online=None, **others):
    return {
        "model": str(home / "base"),
        "method": method,
        "online": {
            "prompts": str(home / "prompts.jsonl"),
            "judge": "judges:Evens",
            "n": 4,
            "max_new_tokens": 6,
            "truncated": "judge",
            **(online or {}),
        },
        "batch_size": 4,
        "epochs": 1,
        "precision": "float32",
        "optimizer": {"lr": 3e-3},
        **others,
    }


def train(home, out, method, online=None, **others):
    cfg = parse(TrainConfig, fields(home, method, online, **others), "test")
    return STEP.run(cfg, StepContext(out, out / "state", "test"))


def weights(out):
    return load_file(out / "model/model.safetensors")


LORA = {"lora": {"rank": 16, "dropout": 0.1}}
CASES = [
    ({"name": "ppo"}, {"passes": 2}, {}),
    ({"name": "ppo", "critic": "base", "critic_lr": 0.01, "critic_warmup": 1}, {"rollout_prompts": 8}, {}),
    ({"name": "ppo", "critic": "lora", "kl_target": 0.5, "kl_horizon": 50}, {}, LORA),
    ({"name": "grpo"}, {"passes": 2}, {}),
    ({"name": "grpo"}, {}, LORA),
    ({"name": "rloo"}, {}, {}),
    ({"name": "dpo"}, {}, {}),
    ({"name": "kto"}, {}, {}),
]
IDS = ["-".join(str(v) for v in c[0].values()) + ("-lora" if c[2] else "") for c in CASES]


def placed(home, case):
    method, online, model = case
    if method.get("critic") == "base":
        method = {**method, "critic": str(home / "base")}
    return method, online, {"model": {"path": str(home / "base"), **model}} if model else {}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rewards_rise(home, tmp_path, case):
    method, online, others = placed(home, case)
    adapters_alone = "model" in others  # the embeddings stay, so the policy can move less
    settings = {"n": 8, "max_new_tokens": 3, **online}
    summary = train(
        home,
        tmp_path,
        method,
        settings,
        epochs=30,
        optimizer={"lr": 3e-3 if adapters_alone else 0.01},
        **others,
    )
    rewards = [line["reward"] for line in metrics(tmp_path)]
    fifth = len(rewards) // 5
    rise = (sum(rewards[-fifth:]) - sum(rewards[:fifth])) / fifth
    assert rise > (0.03 if adapters_alone else 0.15)
    counts = summary["online"]
    if "ended_early" in counts:  # every answer is as good as can be
        assert rewards[-1] > 0.8
        return
    assert counts["answers"] == 12 * 8 * 30
    assert counts["rollouts"] == 30 * 12 / (8 if "rollout_prompts" in online else 4)
    last = metrics(tmp_path)[-1]
    assert {"entropy", "kl", "truncated", "response_tokens"} <= last.keys() or method["name"] in (
        "dpo",
        "kto",
    )


# pairs of one prompt share a tree: what is computed together must be so after a stop, too
SHARED = ({"name": "dpo"}, {"pairs": "all", "passes": 4}, {})


@pytest.mark.parametrize("case", [*CASES, SHARED], ids=[*IDS, "dpo-all"])
def test_an_interrupted_run_goes_on_in_the_middle_of_a_rollout(home, tmp_path, case, monkeypatch):
    """The run stops at every third optimizer step; the weights are those of a run that never stopped."""
    method, online, others = placed(home, case)

    def run(name):
        return train(home, tmp_path / name, method, online, checkpoint_seconds=1e-9, **others)

    run("calm")
    stumbling(monkeypatch, lambda: run("hit"))
    calm, hit = weights(tmp_path / "calm"), weights(tmp_path / "hit")
    assert all(torch.equal(calm[k], hit[k]) for k in calm)
    assert (tmp_path / "calm/samples.jsonl").read_text() == (tmp_path / "hit/samples.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_killed_at_random_instants(home, tmp_path, case):
    method, online, others = placed(home, case)
    given = fields(home, method, online, epochs=40, **others)
    assert kill_proof(tmp_path, given, kills=8, seed=len(method)) >= 3


@pytest.mark.parametrize("method", ["grpo", "ppo", "rloo"])
def test_micro_batches_change_nothing(home, tmp_path, method):
    for name, tokens in (("one", 100_000), ("many", 64)):
        train(home, tmp_path / name, {"name": method}, {"passes": 2}, micro_tokens=tokens)
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-3, atol=2e-4)


def test_an_answer_without_a_score_is_left_out_and_counted(home, tmp_path):
    summary = train(home, tmp_path, {"name": "grpo"}, {"judge": "judges:Silent"})
    counts = summary["online"]
    assert 0 < counts["no_answer"] == counts["why: three"] < counts["answers"]
    assert all(line["no_answer"] > 0 for line in metrics(tmp_path))


def test_cut_off_answers_are_left_out_unless_they_have_a_price(home, tmp_path):
    with pytest.raises(TrainingError, match=r"too little to learn from.*truncated"):
        train(home, tmp_path / "out", {"name": "grpo"}, {"truncated": None})
    train(home, tmp_path / "priced", {"name": "grpo"}, {"truncated": -1.0})
    line = metrics(tmp_path / "priced")[0]
    cut, stopped = line["truncated"], 1 - line["truncated"]
    assert cut > 0.9
    assert -cut <= line["reward"] <= -cut + stopped  # what stopped scores 0 to 1


def test_impossible_settings_are_refused_before_anything_runs(home):
    def check(method, match, online=None, **others):
        with pytest.raises(ConfigError, match=match):
            parse(TrainConfig, fields(home, method, online, **others), "test")

    check({"name": "grpo"}, "needs 2 or more", {"n": 1})
    check({"name": "rloo"}, "needs 2 or more", {"n": 1})
    check({"name": "dpo"}, "needs 2 or more", {"n": 1})
    check({"name": "sft"}, "does not learn from judged answers")
    check({"name": "reward"}, "does not learn from judged answers")
    check({"name": "grpo"}, "in place of 'data'", data="rows.jsonl")
    check({"name": "grpo", "kl": 0}, "'reference' is set", reference="other")
    check({"name": "grpo"}, "no loss on rows", heldout="rows.jsonl")
    check({"name": "grpo"}, "batch_tokens: grpo on sampled answers does not read it", batch_tokens=100)
    check({"name": "grpo"}, "diverge: grpo", diverge=2.0)
    check({"name": "rloo"}, "online.pairs: rloo", {"pairs": "all"})
    check({"name": "kto"}, "online.min_gap: kto", {"min_gap": 0.1})
    check({"name": "dpo"}, "online.good_above: dpo", {"good_above": 0.1})
    check({"name": "ppo", "kl": 0, "kl_target": 1.0}, "kl_target adapts kl")
    check({"name": "ppo"}, "pretrain or sft", {"mix": {"data": "x", "method": "dpo"}})
    with pytest.raises(ConfigError, match="give 'online'"):
        parse(TrainConfig, {"model": "x", "method": "ppo", "data": "rows.jsonl"}, "test")
    with pytest.raises(ConfigError, match="'data' is missing"):
        parse(TrainConfig, {"model": "x", "method": "dpo"}, "test")


def test_a_critic_alone_learns_while_it_warms_up(home, tmp_path):
    method = {"name": "ppo", "critic": str(home / "base"), "critic_warmup": 100, "kl": 0.1, "critic_lr": 0.01}
    train(home, tmp_path, method, epochs=10)
    before, after = load_file(home / "base/model.safetensors"), weights(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in after)
    lines = metrics(tmp_path)
    assert lines[-1]["explained_variance"] > lines[0]["explained_variance"]
    assert lines[-1]["value_loss"] < lines[0]["value_loss"] / 4


def test_rows_learned_beside_are_not_forgotten(home, tmp_path):
    """Two runs of the same rollouts; the one with a mix fits the texts much better."""
    for name, weight in (("with", 1.0), ("without", None)):
        mix = {} if weight is None else {"mix": {"data": str(home / "texts.jsonl"), "weight": weight}}
        train(home, tmp_path / name, {"name": "grpo"}, mix, epochs=10)
    lines = metrics(tmp_path / "with")
    assert lines[-1]["mix_loss"] < lines[0]["mix_loss"] - 1
    assert "mix_loss" not in metrics(tmp_path / "without")[0]


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ({"method": {"name": "ppo"}}, ["policy", "reference"]),
        ({"method": {"name": "ppo", "critic": "base"}}, ["policy", "critic", "reference"]),
        ({"method": {"name": "ppo", "critic": "lora"}, "lora": True}, ["policy", "critic", "reference"]),
        ({"method": {"name": "grpo", "kl": 0}}, ["policy"]),
    ],
)
def test_models_held_are_said(home, tmp_path, case, names):
    method, _, others = placed(home, (case["method"], {}, LORA if case.get("lora") else {}))
    held = train(home, tmp_path, method, **others)["models"]
    assert list(held) == names
    if case.get("lora"):
        assert held["reference"] == 0  # the base that the policy's LoRA stands on
        assert held["critic"] < held["policy"] / 10
    elif "reference" in held:
        assert held["reference"] == pytest.approx(held["policy"], rel=0.01)


def test_samples_are_kept_to_be_looked_at(home, tmp_path):
    train(home, tmp_path, {"name": "grpo"}, {"keep_samples": 2})
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["rollout"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert {"prompt", "response", "reward", "parts", "finish"} <= lines[0].keys()


def first_token_logps(folder, home):
    """[V] log-probs of the first token of the answer to the one prompt."""
    model = load_model(folder, dtype=torch.float32)
    (row,) = [json.loads(line) for line in (home / "one.jsonl").read_text().splitlines()]
    ids = model.template.prompt([Message(**m) for m in row["messages"]])
    forest = plant([tree_of([Branch([*ids, t], [False] * len(ids) + [True]) for t in range(384)])])
    with torch.no_grad():
        return forward(model, forest).logps.double()


SCALE, BETA = 1.0, 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("method", "online"),
    [
        ({"name": "ppo", "kl": BETA, "whiten": False, "value_clip": 0}, {}),
        ({"name": "grpo", "kl": BETA, "kl_in": "reward", "scale": False}, {}),
        ({"name": "rloo", "kl": BETA}, {}),
        (
            {"name": "dpo", "beta": BETA},
            {"judge": {"name": "judges:Table", "noise": True}, "n": 8, "pairs": "all"},
        ),
    ],
    ids=["ppo", "grpo", "rloo", "online dpo"],
)
@pytest.mark.slow
def test_the_whole_step_finds_the_closed_form(home, tmp_path, method, online, seed):
    """One prompt, answers of one token, a known reward: the optimum is pi_ref exp(r / beta) / Z."""
    import judges

    rows = [json.loads((home / "one.jsonl").read_text())]
    many = tmp_path / "prompts.jsonl"
    copies = 32 if method["name"] == "dpo" else 8
    many.write_text("".join(json.dumps({**rows[0], "tags": {"copy": str(i)}}) + "\n" for i in range(copies)))
    settings = {
        "prompts": str(many), "judge": "judges:Table", "n": 64,
        "max_new_tokens": 1, **online,
    }  # fmt: skip
    train(
        home, tmp_path, method, settings, batch_size=copies, epochs=400, seed=seed,
        optimizer={"lr": 2e-3, "final_lr": 0.01, "ema": 0.98}, log_every=50,
    )  # fmt: skip
    reference = first_token_logps(home / "base", home)
    rewards = torch.tensor([judges.reward(t, SCALE) for t in range(len(reference))], dtype=torch.float64)
    target = (reference + rewards / BETA).log_softmax(0)
    found = first_token_logps(tmp_path / "model", home)
    start = (reference.exp() * (reference - target)).sum()
    apart = (found.exp() * (found - target)).sum()
    assert start > 0.5
    assert apart < 0.05, f"{apart:.4f} nats from the optimum, {start:.3f} at the start"
