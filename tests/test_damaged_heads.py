"""Head files that are damaged, or another model's: an error that names the file, whoever reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_folder

from posttrain.common.errors import ConfigError
from posttrain.feedback.judge_use import read_judge
from posttrain.models.heads import heads_for
from posttrain.models.load import load_model

F32 = torch.float32
GOOD = {"mean": 0.0, "std": 1.0, "n": 3}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A classifier, and a model whose heads stand beside it (its architecture has no classifier)."""
    folder = tmp_path_factory.mktemp("heads")
    for name, arch in (("classifier", "qwen2"), ("beside", "lfm2")):
        base = tiny_folder(arch, folder / f"{name} base")
        load_model(base, dtype=F32, reward_heads=("overall", "wit"), value_head=True).save(folder / name)
    return folder


@pytest.fixture(params=["classifier", "beside"])
def folder(kept, tmp_path, request) -> Path:
    return Path(shutil.copytree(kept / request.param, tmp_path / "rm"))


def standards(**numbers) -> str:
    return json.dumps({"reward": ["overall", "wit"], "value": True, "standards": {"overall": numbers}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("{half", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "expected an object, got list"),
        ('{"reward": ["overall", "wit"], "standards": [1]}', "'standards' is no mapping"),
        (standards(mean=0.0, n=3), r"standards\.overall must have mean, std and n"),
        (standards(**GOOD, more=1), "must have mean, std and n"),
        (standards(**GOOD | {"std": 0}), r"overall\.std must be above 0"),
        (standards(**GOOD | {"std": "wide"}), r"overall\.std must be a finite number, got 'wide'"),
        (standards(**GOOD | {"mean": float("nan")}), r"overall\.mean must be a finite number, got 'nan'"),
    ],
)
def test_a_damaged_heads_json_is_named(folder, text, says):
    (folder / "heads.json").write_text(text)
    use = {"name": "reward_model", "model": str(folder), "precision": "float32", "normalise": False}
    with pytest.raises(ConfigError, match=rf"heads\.json.*{says}.*copy the folder again"):
        read_judge(use).open()


def test_a_missing_heads_json_is_named(kept, tmp_path):
    folder = Path(shutil.copytree(kept / "beside", tmp_path / "rm"))
    (folder / "heads.json").unlink()
    with pytest.raises(ConfigError, match=r"heads\.json: the names of the heads cannot be read"):
        load_model(folder, dtype=F32)
    (folder / "heads.json").write_text('{"reward": "overall"}')
    with pytest.raises(ConfigError, match=r"heads\.json: 'reward' must list the names"):
        load_model(folder, dtype=F32)
    (folder / "heads.json").write_text('{"reward": ["wit", "wit"]}')
    with pytest.raises(ConfigError, match="two reward heads of one name: wit, wit"):
        load_model(folder, dtype=F32)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("reward.weight", (2, 31), r"reward heads of shape \[2, 31\], and the model takes \[heads, \d+\]"),
        ("reward.weight", (2,), r"reward heads of shape \[2\]"),
        ("value.weight", (1, 31), r"a value head of shape \[1, 31\]"),
        ("value.weight", (2, 32), r"a value head of shape \[2, 32\]"),
    ],
)
def test_heads_of_another_models_width_are_refused(kept, tmp_path, name, shape, says):
    folder = Path(shutil.copytree(kept / "beside", tmp_path / "rm"))
    save_file({name: torch.zeros(shape)}, folder / "heads.safetensors")
    with pytest.raises(ConfigError, match=says):
        load_model(folder, dtype=F32)


def test_a_damaged_file_of_heads_is_named(folder):
    (folder / "heads.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"heads\.safetensors: its heads cannot be read"):
        load_model(folder, dtype=F32)


def test_an_aspect_asked_for_by_name_must_be_there(kept):
    models = [str(kept / "classifier")] * 2
    fields = {"precision": "float32", "normalise": False}
    for aspect in ("safty", "overal"):
        with pytest.raises(ConfigError, match=f"no head for the aspect '{aspect}'; its heads: overall, wit"):
            read_judge({"name": "reward_ensemble", "models": models, "aspect": aspect, **fields}).open()
    read_judge({"name": "reward_ensemble", "models": models, "aspect": "wit", **fields}).open()


def test_a_sole_aspect_is_no_other(tmp_path):
    base = tiny_folder("qwen2", tmp_path / "base")
    load_model(base, dtype=F32, reward_heads=("overall",)).save(tmp_path / "rm")
    models = [str(tmp_path / "rm")] * 2
    with pytest.raises(ConfigError, match="no head for the aspect 'safty'; its heads: overall"):
        read_judge(
            {"name": "reward_ensemble", "models": models, "aspect": "safty", "normalise": False}
        ).open()
    assert heads_for(("wit",), None) == heads_for(("wit",), "style") == [0]  # of rows: the only head speaks
