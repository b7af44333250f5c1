"""Losses against numbers derived by hand, and optima against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from posttrain.common.errors import ConfigError
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import Output
from posttrain.training.methods import METHODS, dpo, method_config, pretrain, reward, sft
from posttrain.training.methods.base import Batch
from posttrain.training.methods.dpo import DPO
from posttrain.training.methods.reward import Reward

NAN = math.nan


def pair_batch(reference=None, **columns):
    """One pair: prompt [1, 2], chosen [3, 4], rejected [3, 5, 6]; token 3 is shared, so N = 4 and M = 5."""
    rows = [
        Branch([1, 2, 3, 4], [False, False, True, True]),
        Branch([1, 2, 3, 5, 6], [False] * 2 + [True] * 3),
    ]
    forest = plant([tree_of(rows)])
    defaults = {"strength": NAN, "probability": NAN, "head": 0.0}
    streams = {} if reference is None else {"reference": torch.tensor(reference)}
    return Batch(forest, {k: torch.tensor([v]) for k, v in {**defaults, **columns}.items()}, streams)


def test_pairs_share_what_they_share():
    batch = pair_batch()
    assert batch.forest.targets.tolist() == [3, 4, 5, 6]
    assert batch.forest.token_of.tolist() == [0, 1, 0, 2, 3]


# log-probs of tokens 3, 4, 5, 6 under policy and reference: chosen -3 and -2.5, rejected -7 and -4
LOGPS, REFERENCE = [-1.0, -2.0, -2.5, -3.5], [-0.5, -2.0, -1.5, -2.0]
# log-ratios: chosen -3 - (-2.5) = -0.5; rejected -7 - (-4) = -3; their difference 2.5


def dpo_value(**fields):
    out = Output(logps=torch.tensor(LOGPS))
    columns = {k: fields.pop(k) for k in ("probability",) if k in fields}
    result = dpo.loss(DPO(**fields), out, pair_batch(REFERENCE, **columns))
    return result.items.item(), {k: v.item() for k, v in result.metrics.items()}


def test_dpo_sigmoid_by_hand():
    value, metrics = dpo_value(beta=0.2)
    assert value == pytest.approx(math.log(1 + math.exp(-0.5)))  # -log s(0.2 * 2.5)
    assert metrics["reward_chosen"] == pytest.approx(-0.1)
    assert metrics["reward_rejected"] == pytest.approx(-0.6)
    assert metrics["reward_margin"] == pytest.approx(0.5)
    assert metrics["accuracy"] == 1.0
    assert metrics["logps_chosen"] == pytest.approx(-3.0)
    # k3 = e^d - 1 - d with d = reference - policy: chosen tokens d = 0.5, 0; rejected 0.5, 1, 1.5
    k3 = [math.exp(d) - 1 - d for d in (0.5, 0.0, 1.0, 1.5)]
    assert metrics["kl"] == pytest.approx(((k3[0] + k3[1]) / 2 + (k3[0] + k3[2] + k3[3]) / 3) / 2)


def test_dpo_label_smoothing_and_soft_labels_by_hand():
    win, lose = math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))
    assert dpo_value(beta=0.2, label_smoothing=0.1)[0] == pytest.approx(0.9 * win + 0.1 * lose)
    assert dpo_value(beta=0.2, soft_labels=True, probability=0.7)[0] == pytest.approx(0.7 * win + 0.3 * lose)
    assert dpo_value(beta=0.2, soft_labels=True)[0] == pytest.approx(
        win
    )  # no probability given: a hard label
    assert dpo_value(beta=0.2, probability=0.7)[0] == pytest.approx(win)  # not asked for


def test_ipo_is_averaged_over_tokens():
    gap = -0.5 / 2 - (-3.0 / 3)
    assert dpo_value(beta=0.25, loss="ipo")[0] == pytest.approx((gap - 2.0) ** 2)


def test_hinge_by_hand():
    assert dpo_value(beta=0.2, loss="hinge")[0] == pytest.approx(0.5)
    assert dpo_value(beta=1.0, loss="hinge")[0] == 0.0


def test_length_normalised_by_hand():
    gap = -0.5 / 2 - (-3.0 / 3)
    assert dpo_value(beta=0.2, length_normalised=True)[0] == pytest.approx(math.log(1 + math.exp(-0.2 * gap)))


def test_sft_term_is_the_mean_over_chosen_tokens():
    plain = dpo_value(beta=0.2)[0]
    assert dpo_value(beta=0.2, sft_weight=0.5)[0] == pytest.approx(plain + 0.5 * 3.0 / 2)


def test_reference_free_leaves_the_reference_out():
    out = Output(logps=torch.tensor(LOGPS))
    result = dpo.loss(DPO(beta=0.2, reference_free=True), out, pair_batch())
    assert result.items.item() == pytest.approx(math.log(1 + math.exp(-0.2 * (-3.0 + 7.0))))
    assert "kl" not in result.metrics
    assert not dpo.METHOD.wants_reference(DPO(reference_free=True))


def test_smoothing_goes_with_sigmoid_only():
    with pytest.raises(ConfigError, match="loss: sigmoid"):
        method_config({"name": "dpo", "loss": "ipo", "label_smoothing": 0.1})


def reward_value(scores, **fields):
    columns = {k: fields.pop(k) for k in ("strength", "probability", "head") if k in fields}
    result = reward.loss(Reward(**fields), Output(scores=torch.tensor(scores)), pair_batch(**columns))
    return result.items.item(), {k: v.item() for k, v in result.metrics.items()}


def test_bradley_terry_by_hand():
    value, metrics = reward_value([[1.0], [0.25]], centring=0.0)
    assert value == pytest.approx(math.log(1 + math.exp(-0.75)))
    assert metrics == pytest.approx(
        {"accuracy": 1.0, "reward_margin": 0.75, "reward_chosen": 1.0, "reward_rejected": 0.25}
    )


def test_margin_centring_and_heads_by_hand():
    value, _ = reward_value([[1.0], [0.25]], centring=0.0, margin=0.5, strength=3.0)
    assert value == pytest.approx(math.log(1 + math.exp(-(0.75 - 1.5))))
    value, _ = reward_value([[1.0], [0.25]], centring=0.1)
    assert value == pytest.approx(math.log(1 + math.exp(-0.75)) + 0.1 * 1.25**2)
    value, _ = reward_value([[9.0, 1.0], [-9.0, 0.25]], centring=0.0, heads=("help", "safe"), head=1.0)
    assert value == pytest.approx(math.log(1 + math.exp(-0.75)))


def test_cross_entropies_are_unreduced():
    for module, cfg in ((sft, sft.SFT()), (pretrain, pretrain.Pretrain())):
        result = module.loss(cfg, Output(logps=torch.tensor(LOGPS)), pair_batch())
        assert result.items.tolist() == [-x for x in LOGPS]
        assert result.weights.tolist() == [1.0] * 4


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_optimum_is_the_closed_form(beta):
    """On a world of five responses with Bradley-Terry labels, DPO's minimiser is pi_ref exp(r / beta) / Z."""
    torch.manual_seed(0)
    r = torch.tensor([0.0, 0.5, -1.0, 1.5, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25], dtype=torch.float64).log()
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    cfg = DPO(beta=beta, soft_labels=True)
    first, second = torch.tensor([(i, j) for i in range(5) for j in range(5) if i < j]).T
    probability = torch.sigmoid(r[first] - r[second])
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - reference
        value = dpo.pair_loss(cfg, ratio[first] - ratio[second], probability).mean()
        value.backward()
        return value

    optimizer.step(closure)
    closed = (reference + r / beta).softmax(0)
    torch.testing.assert_close(logits.softmax(0).detach(), closed, atol=1e-6, rtol=1e-5)


def test_ipo_optimum_is_the_closed_form():
    """IPO's minimiser for one pair puts the averaged log-ratios 1 / (2 beta) apart (eq. 17)."""
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([gap], max_iter=100)

    def closure():
        optimizer.zero_grad()
        value = dpo.pair_loss(DPO(loss="ipo", beta=0.25), gap, torch.tensor([NAN])).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert gap.item() == pytest.approx(2.0)


def test_methods_are_found_by_name_and_strict():
    assert method_config("sft") == sft.SFT()
    assert method_config({"name": "dpo", "beta": 0.3}).beta == 0.3
    with pytest.raises(ConfigError, match="did you mean 'dpo'"):
        method_config("dp0")
    with pytest.raises(ConfigError, match=r"unknown key 'bta' \(did you mean 'beta'\?\)"):
        method_config({"name": "dpo", "bta": 0.3})
    for name, method in METHODS.items():
        assert method.config().name == name


def test_metrics_never_carry_gradient():
    logps = torch.tensor(LOGPS, requires_grad=True)
    result = dpo.loss(DPO(), Output(logps=logps), pair_batch(REFERENCE))
    assert result.items.requires_grad
    assert not any(v.requires_grad for v in result.metrics.values())
    assert isinstance(SimpleNamespace(**result.metrics).accuracy, torch.Tensor)
