"""Which model another was trained from, read from manifests, and the differences that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.common.errors import StoreError
from posttrain.evaluation.origins import origins


def step(store: Path, name: str, model: Any = None, **inputs: str) -> str:
    """An artifact whose config names `model`; inputs: {reference without @: folder}."""
    folder = store / name
    (folder / "model").mkdir(parents=True)
    entries = {f"@{ref}": {"key": ref, "path": f"../{at}"} for ref, at in inputs.items()}
    entries["hub/base"] = {"path": "hub/base"}
    manifest = {"config": {"model": model}, "inputs": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    step(tmp_path, "base-1", {"path": "hub/base"})
    step(tmp_path, "sft-2", {"path": "@base"}, base="base-1")
    step(tmp_path, "dpo-3", {"path": "@sft"}, pairs="base-1", sft="sft-2")
    step(tmp_path, "ppo-4", {"path": "@sft"}, sft="sft-2")
    step(tmp_path, "gate-5", None, ppo="ppo-4")
    return tmp_path


def test_what_a_model_was_trained_from(store: Path) -> None:
    asked = {name: str(store / name) for name in ("base-1", "sft-2", "dpo-3", "ppo-4")}
    assert origins(asked) == {"sft-2": "base-1", "dpo-3": "sft-2", "ppo-4": "sft-2"}


def test_one_that_is_not_asked_is_passed_over(store: Path) -> None:
    asked = {"start": str(store / "base-1"), "end": str(store / "ppo-4" / "model")}
    assert origins(asked) == {"end": "start"}


def test_the_folder_of_weights_stands_for_its_step(store: Path) -> None:
    asked = {"start": str(store / "sft-2" / "model"), "end": str(store / "ppo-4")}
    assert origins(asked) == {"end": "start"}


def test_where_nothing_is_known(store: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    asked = {"gate": str(store / "gate-5"), "plain": str(tmp_path / "plain"), "hub": "org/model"}
    assert origins(asked) == {}
    assert origins({"a": str(store / "gate-5"), "b": str(store / "ppo-4")}) == {}


def test_a_damaged_manifest_is_said(store: Path) -> None:
    (store / "ppo-4" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        origins({"sft": str(store / "sft-2"), "ppo": str(store / "ppo-4")})
