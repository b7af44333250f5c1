"""Saving: plain transformers gets the same logits, scores and tokens; and no folder is ever half written."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import ARCHS, CHAT_END, END, tiny_folder, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from posttrain.common.errors import ConfigError, StoreError
from posttrain.models.folder import whole_folder
from posttrain.models.load import Model, load_model
from posttrain.models.spec import LoRA, ModelSpec

F32 = torch.float32
IDS = torch.randint(3, 384, (1, 24), generator=torch.Generator().manual_seed(0))
CLASSIFIERS = [arch for arch in ARCHS if arch not in ("mamba", "lfm2")]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not run as a forest", "ignore:.*is_gradient_checkpointing"
)


def scores(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """[1, k] at the last token."""
    assert model.reward_head is not None
    return model.reward_head(model.base.base_model(ids).last_hidden_state[:, -1].float())


def moved(model: Model) -> Model:
    """Change everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in model.named_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.hf.eval()
    return model


@pytest.mark.parametrize("arch", ARCHS)
def test_plain_transformers_gives_the_same_logits(arch: str, tmp_path: Path) -> None:
    model = moved(load_model(tiny_folder(arch, tmp_path / "a"), dtype=F32, train=True))
    expected = model.hf(IDS).logits
    model.save(tmp_path / "b")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(load_model(tmp_path / "b", dtype=F32).hf(IDS).logits, expected)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == [type(model.base).__name__]
    assert not any("forest" in str(value) for value in config.values())


@pytest.mark.parametrize("arch", ARCHS)
def test_lora_is_merged_and_stands_beside(arch: str, tmp_path: Path) -> None:
    from peft import PeftModel

    path = tiny_folder(arch, tmp_path / "a")
    spec = ModelSpec(path=str(path), lora=LoRA(rank=3, alpha=5.0))
    model = moved(load_model(spec, dtype=F32, train=True))
    expected = model.hf(IDS).logits
    untouched = {name: p.clone() for name, p in model.hf.state_dict().items()}
    model.save(tmp_path / "b")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(plain(IDS).logits, expected, atol=2e-4, rtol=1e-4)
    assert (plain(IDS).logits - AutoModelForCausalLM.from_pretrained(path)(IDS).logits).abs().max() > 0.1
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(path), tmp_path / "b" / "adapter"
    )
    torch.testing.assert_close(adapted(IDS).logits, expected, atol=2e-4, rtol=1e-4)
    assert all(torch.equal(untouched[name], p) for name, p in model.hf.state_dict().items())


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_plain_transformers_gives_the_same_rewards(arch: str, lora: LoRA | None, tmp_path: Path) -> None:
    path = tiny_folder(arch, tmp_path / "a")
    spec = ModelSpec(path=str(path), lora=lora)
    model = moved(load_model(spec, dtype=F32, train=True, reward_heads=("helpful", "harmless")))
    expected = scores(model, IDS)
    model.save(tmp_path / "b")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(plain(IDS).logits, expected, atol=2e-4, rtol=1e-4)
    assert plain.config.id2label == {0: "helpful", 1: "harmless"}
    again = load_model(tmp_path / "b", dtype=F32)
    assert again.aspects == ("helpful", "harmless")
    torch.testing.assert_close(scores(again, IDS), expected, atol=2e-4, rtol=1e-4)
    tied = model.base.config.tie_word_embeddings
    assert again.lm_head == tied
    if tied and lora is None:
        assert torch.equal(again.hf(IDS).logits, model.hf(IDS).logits)


@pytest.mark.parametrize("arch", ["mamba", "lfm2"])
def test_without_a_classifier_class_the_heads_stand_beside(arch: str, tmp_path: Path) -> None:
    model = moved(
        load_model(tiny_folder(arch, tmp_path / "a"), dtype=F32, train=True, reward_heads=("a", "b", "c"))
    )
    model.save(tmp_path / "b")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(plain(IDS).logits, model.hf(IDS).logits, atol=1e-5, rtol=1e-5)
    again = load_model(tmp_path / "b", dtype=F32)
    assert again.aspects == ("a", "b", "c")
    assert again.lm_head
    assert torch.equal(scores(again, IDS), scores(model, IDS))


class TestHeads:
    def test_a_value_head_stands_beside_in_float32(self, tmp_path: Path) -> None:
        model = moved(
            load_model(tiny_folder("llama", tmp_path / "a"), dtype=F32, train=True, value_head=True)
        )
        model.save(tmp_path / "b", torch.bfloat16)
        again = load_model(tmp_path / "b", dtype=torch.bfloat16)
        assert again.source_dtype == torch.bfloat16
        assert model.value_head is not None
        assert again.value_head is not None
        assert torch.equal(again.value_head.weight, model.value_head.weight)

    def test_a_reward_model_made_by_plain_transformers(self, tmp_path: Path) -> None:
        plain = AutoModelForSequenceClassification.from_pretrained(
            tiny_folder("qwen3", tmp_path / "a"), num_labels=1
        )
        plain.save_pretrained(tmp_path / "b")
        tiny_tokenizer().save_pretrained(tmp_path / "b")
        model = load_model(tmp_path / "b", dtype=F32)
        assert model.aspects == ("overall",)
        torch.testing.assert_close(scores(model, IDS), plain(IDS).logits, atol=1e-5, rtol=1e-5)

    def test_known_heads_go_on_and_others_start_afresh(self, tmp_path: Path) -> None:
        load_model(tiny_folder("qwen3", tmp_path / "a"), dtype=F32, reward_heads=("x", "y")).save(
            tmp_path / "b"
        )
        before = load_model(tmp_path / "b", dtype=F32).reward_head
        after = load_model(tmp_path / "b", dtype=F32, reward_heads=("z", "y"), seed=9).reward_head
        assert before is not None
        assert after is not None
        assert torch.equal(after.weight[1], before.weight[1])
        assert not torch.equal(after.weight[0], before.weight[0])

    def test_a_head_with_a_bias_is_refused(self, tmp_path: Path) -> None:
        load_model(tiny_folder("qwen3", tmp_path / "a"), dtype=F32, reward_heads=("x",)).save(tmp_path / "b")
        weights = load_file(tmp_path / "b" / "model.safetensors")
        weights["score.bias"] = torch.ones(1)
        save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="has a bias"):
            load_model(tmp_path / "b", dtype=F32)

    def test_the_seed_decides_fresh_heads(self, tmp_path: Path) -> None:
        path = tiny_folder("llama", tmp_path / "a")

        def weight(seed: int) -> torch.Tensor:
            head = load_model(path, dtype=F32, reward_heads=("x",), seed=seed).reward_head
            assert head is not None
            return head.weight

        assert torch.equal(weight(3), weight(3))
        assert not torch.equal(weight(3), weight(4))


class TestSpecialTokens:
    """Pad = eos makes plain transformers look for a response's end one token early."""

    def rewards_of(self, folder: Path, rows: list[list[int]]) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        width = max(map(len, rows))
        padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return plain(torch.tensor(padded), attention_mask=torch.tensor(mask)).logits

    @pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
    def test_the_end_token_is_scored_where_it_was_also_the_pad(self, arch: str, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(eos=CHAT_END, pad=CHAT_END)
        path = tiny_folder(arch, tmp_path / "a", tokenizer=tokenizer, pad_token_id=2, eos_token_id=2)
        model = moved(load_model(path, dtype=F32, train=True, reward_heads=("overall",)))
        model.save(tmp_path / "b")
        rows = [[5, 6, 7, 2], [8, 9, 10, 11, 12, 2]]
        found = self.rewards_of(tmp_path / "b", rows)
        expected = torch.cat([scores(model, torch.tensor([row])) for row in rows])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_without_any_token_to_pad_with_plain_transformers_refuses_a_batch(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(specials=(END,), eos=END, pad=END)
        path = tiny_folder("llama", tmp_path / "a", tokenizer=tokenizer, pad_token_id=0, eos_token_id=0)
        model = load_model(path, dtype=F32, reward_heads=("overall",))
        model.save(tmp_path / "b")
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
        row = torch.tensor([[5, 6, 0]])
        torch.testing.assert_close(plain(row).logits, scores(model, row), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="no padding token"):
            plain(torch.tensor([[5, 6, 0], [5, 6, 7]]))

    def test_generation_ends_at_every_stop_token(self, tmp_path: Path) -> None:
        path = tiny_folder(
            "llama", tmp_path / "a", tokenizer=tiny_tokenizer(eos=END, pad=None), eos_token_id=0
        )
        model = load_model(path, dtype=F32)
        model.save(tmp_path / "b")
        config = GenerationConfig.from_pretrained(tmp_path / "b")
        assert config.eos_token_id == [2, 0]
        assert config.pad_token_id == 0
        again = load_model(tmp_path / "b", dtype=F32)
        assert again.template.stop_ids == (2, 0)


class TestFolder:
    def test_tokenizer_and_chat_template_come_back(self, tmp_path: Path) -> None:
        model = load_model(tiny_folder("llama", tmp_path / "a"), dtype=F32)
        model.save(tmp_path / "b")
        plain = AutoTokenizer.from_pretrained(tmp_path / "b")
        chat = [{"role": "user", "content": "What is 12 + 30?"}]
        text = plain.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text == "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
        assert plain.encode("12 + 30 {}") == tiny_tokenizer().encode("12 + 30 {}")

    def test_dtype_of_the_file_and_its_config(self, tmp_path: Path) -> None:
        model = load_model(tiny_folder("llama", tmp_path / "a", dtype=torch.bfloat16), dtype=F32)
        model.save(tmp_path / "same")
        model.save(tmp_path / "full", F32)
        for name, dtype in (("same", "BF16"), ("full", "F32")):
            with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
                assert {file.get_slice(key).get_dtype() for key in file.keys()} == {dtype}  # noqa: SIM118
        assert json.loads((tmp_path / "same" / "config.json").read_text())["dtype"] == "bfloat16"
        assert next(model.hf.parameters()).dtype == F32

    def test_tied_weights_are_stored_once_and_stay_tied(self, tmp_path: Path) -> None:
        model = load_model(tiny_folder("qwen3", tmp_path / "a"), dtype=F32)
        model.save(tmp_path / "b", torch.bfloat16)
        with safe_open(tmp_path / "b" / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in set(file.keys())
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
        assert again.lm_head.weight is again.model.embed_tokens.weight

    def test_an_existing_folder_is_replaced_whole(self, tmp_path: Path) -> None:
        model = load_model(tiny_folder("llama", tmp_path / "a"), dtype=F32)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "stale").write_text("x")
        (tmp_path / ".b.killed.tmp").mkdir()
        model.save(tmp_path / "b")
        assert not (tmp_path / "b" / "stale").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

    def test_a_failure_leaves_the_old_folder_and_no_draft(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load_model(tiny_folder("llama", tmp_path / "a"), dtype=F32)
        model.save(tmp_path / "b")
        before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("killed half way")

        monkeypatch.setattr("posttrain.models.save.write_heads", broken)
        with pytest.raises(RuntimeError, match="half way"):
            model.save(tmp_path / "b")
        assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

    def test_a_full_disk_is_a_clear_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = load_model(tiny_folder("llama", tmp_path / "a"), dtype=F32)

        def full(self: PreTrainedModel, folder: Path, **kwargs: object) -> None:
            # what safetensors says on a file system that is full
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(StoreError, match="no space left"):
            model.save(tmp_path / "b")
        with pytest.raises(StoreError, match="no space left"), whole_folder(tmp_path / "c"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]

    def test_a_generation_config_that_transformers_would_not_write(self, tmp_path: Path) -> None:
        path = tiny_folder("llama", tmp_path / "a")
        file = path / "generation_config.json"
        file.write_text(json.dumps({"temperature": 0.6, "eos_token_id": 2}))
        load_model(path, dtype=F32).save(tmp_path / "b")
        written = GenerationConfig.from_pretrained(tmp_path / "b")
        assert (written.temperature, written.do_sample) == (0.6, True)

    def test_a_model_of_its_own_code_goes_on_being_one(self, tmp_path: Path) -> None:
        path = tiny_folder("llama", tmp_path / "a")
        (path / "modeling_own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
            "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "model_type": "own_llama", "auto_map": auto}))
        model = load_model(ModelSpec(path=str(path), trust_remote_code=True), dtype=F32)
        assert type(model.hf).__name__ == "OwnForCausalLM"
        model.save(tmp_path / "b")
        again = load_model(ModelSpec(path=str(tmp_path / "b"), trust_remote_code=True), dtype=F32)
        assert torch.equal(again.hf(IDS).logits, model.hf(IDS).logits)

    def test_a_tokenizer_that_plain_transformers_would_split_otherwise_is_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = load_model(tiny_folder("qwen2", tmp_path / "a"), dtype=F32)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            model.save(tmp_path / "b")
        assert [
            str(tmp_path / "b") in r.message and "Qwen2Tokenizer" in r.message for r in caplog.records
        ] == [True]
