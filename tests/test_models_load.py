"""Loading: from folders, artifacts, configs, a hub that is not there; and every way a folder can be wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import ARCHS, CHAT_END, CHAT_START, END, FALLBACK_ARCHS, tiny_folder, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.common.errors import ConfigError
from posttrain.models.load import load_model
from posttrain.models.load_tokenizer import load_tokenizer, tokenizer_hash
from posttrain.models.spec import LoRA, ModelSpec

F32 = torch.float32
IDS = torch.randint(3, 384, (1, 24), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not run as a forest", "ignore:.*is_gradient_checkpointing"
)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tiny_folder("llama", tmp_path / "m")


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestLoads:
    @pytest.mark.parametrize("arch", ARCHS)
    def test_logits_are_those_of_plain_transformers(self, arch: str, tmp_path: Path) -> None:
        path = tiny_folder(arch, tmp_path / "m")
        expected = AutoModelForCausalLM.from_pretrained(path)(IDS).logits
        model = load_model(path, dtype=F32)
        torch.testing.assert_close(model.hf(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        assert model.forest == (arch not in FALLBACK_ARCHS)
        assert not model.hf.training
        assert not list(model.named_parameters())

    def test_an_artifact_with_model_inside(self, folder: Path) -> None:
        artifact = folder.parent / "artifact"
        artifact.mkdir()
        shutil.copytree(folder, artifact / "model")
        assert torch.equal(
            load_model(artifact, dtype=F32).hf(IDS).logits, load_model(folder, dtype=F32).hf(IDS).logits
        )

    def test_a_tokenizer_from_elsewhere(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        tiny_tokenizer(eos=END).save_pretrained(tmp_path / "t" / "tokenizer")
        model = load_model(ModelSpec(path=str(folder), tokenizer=str(tmp_path / "t")), dtype=F32)
        assert model.tokenizer.eos_token == END

    def test_the_dtype_asked_for_and_the_dtype_found(self, tmp_path: Path) -> None:
        path = tiny_folder("qwen3", tmp_path / "m", dtype=torch.bfloat16)
        model = load_model(path, dtype=F32, train=True, reward_heads=("overall",))
        assert {p.dtype for _, p in model.named_parameters()} == {F32}
        assert model.source_dtype == torch.bfloat16
        half = load_model(path, dtype=torch.bfloat16, reward_heads=("overall",))
        assert {p.dtype for p in half.hf.parameters()} == {torch.bfloat16}
        assert half.reward_head is not None
        assert half.reward_head.weight.dtype == F32

    def test_a_sharded_folder(self, tmp_path: Path) -> None:
        tiny_model("llama").save_pretrained(tmp_path / "m", max_shard_size="20KB")
        tiny_tokenizer().save_pretrained(tmp_path / "m")
        assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
        assert torch.equal(
            load_model(tmp_path / "m", dtype=F32).hf(IDS).logits, tiny_model("llama")(IDS).logits
        )

    def test_the_global_seed_is_left_alone(self, folder: Path) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load_model(ModelSpec(path=str(folder), lora=LoRA(rank=2)), dtype=F32, train=True, value_head=True)
        assert torch.equal(torch.rand(3), expected)

    def test_the_end_tokens_embedding_is_trained_where_it_is_also_the_pad(self, tmp_path: Path) -> None:
        path = tiny_folder("llama", tmp_path / "m", tokenizer=tiny_tokenizer(pad=CHAT_END), pad_token_id=2)
        model = load_model(path, dtype=F32, train=True)
        model.hf(torch.tensor([[5, 2, 7]])).logits[0, -1].sum().backward()
        assert model.base.get_input_embeddings().weight.grad[2].abs().sum() > 0


class TestLoRA:
    def test_only_the_adapters_learn_and_they_start_without_effect(self, folder: Path) -> None:
        spec = ModelSpec(path=str(folder), lora=LoRA(rank=3))
        model = load_model(spec, dtype=F32, train=True, reward_heads=("overall",))
        names = [name for name, _ in model.named_parameters()]
        assert names[-1] == "reward_head.weight"
        assert all("lora_" in name for name in names[:-1])
        assert len(names) == 1 + 2 * 7 * 2
        assert not any("lm_head" in name for name in names)
        model.hf.eval()
        assert torch.equal(model.hf(IDS).logits, load_model(folder, dtype=F32).hf(IDS).logits)

    def test_the_seed_decides_where_they_start(self, folder: Path) -> None:
        spec = ModelSpec(path=str(folder), lora=LoRA(rank=3))

        def weights(seed: int) -> list[torch.Tensor]:
            return [p for _, p in load_model(spec, dtype=F32, train=True, seed=seed).named_parameters()]

        same = [torch.equal(a, b) for a, b in zip(weights(0), weights(0), strict=True)]
        assert all(same)
        assert not all(torch.equal(a, b) for a, b in zip(weights(0), weights(1), strict=True))

    def test_for_inference_none_is_attached(self, folder: Path) -> None:
        model = load_model(ModelSpec(path=str(folder), lora=LoRA()), dtype=F32)
        assert model.hf is model.base

    def test_targets_by_name(self, folder: Path) -> None:
        spec = ModelSpec(path=str(folder), lora=LoRA(rank=2, targets=("q_proj",)))
        names = [name for name, _ in load_model(spec, dtype=F32, train=True).named_parameters()]
        assert len(names) == 4
        assert all("q_proj" in name for name in names)

    def test_targets_that_name_nothing_or_have_no_effect(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot be put.*nothing_proj"):
            load_model(
                ModelSpec(path=str(folder), lora=LoRA(targets=("nothing_proj",))), dtype=F32, train=True
            )
        mamba = tiny_folder("mamba", tmp_path / "mamba")
        with pytest.raises(ConfigError, match=r"dt_proj.*no effect"):
            load_model(
                ModelSpec(path=str(mamba), lora=LoRA(targets=("dt_proj", "in_proj"))), dtype=F32, train=True
            )

    def test_a_bare_adapter_folder_is_merged_into_its_base(self, folder: Path, tmp_path: Path) -> None:
        model = load_model(ModelSpec(path=str(folder), lora=LoRA(rank=2)), dtype=F32, train=True)
        for _, p in model.named_parameters():
            torch.nn.init.normal_(p, std=0.1)
        model.hf.eval()
        model.hf.save_pretrained(tmp_path / "adapter")
        again = load_model(tmp_path / "adapter", dtype=F32)
        torch.testing.assert_close(again.hf(IDS).logits, model.hf(IDS).logits, atol=1e-4, rtol=1e-4)


class TestFresh:
    CONFIG = {  # noqa: RUF012
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }

    @pytest.fixture(name="tokenizer")
    def _tokenizer(self, tmp_path: Path) -> str:
        tiny_tokenizer(vocab_size=350).save_pretrained(tmp_path / "step" / "tokenizer")
        return str(tmp_path / "step")

    def spec(self, tokenizer: str, **changes: object) -> ModelSpec:
        return ModelSpec(config={**self.CONFIG, **changes}, tokenizer=tokenizer)

    def test_the_vocabulary_is_the_tokenizers_rounded_up(self, tokenizer: str) -> None:
        model = load_model(self.spec(tokenizer), dtype=F32, train=True)
        assert model.base.config.vocab_size == 384
        assert model.base.config.eos_token_id == 2
        assert model.forest
        assert model.base.get_output_embeddings().weight is model.base.get_input_embeddings().weight

    def test_the_seed_decides_and_the_dtype_does_not(self, tokenizer: str) -> None:
        def first(seed: int, dtype: torch.dtype = F32) -> torch.Tensor:
            return next(load_model(self.spec(tokenizer), dtype=dtype, seed=seed).hf.parameters())

        assert torch.equal(first(1), first(1))
        assert not torch.equal(first(1), first(2))
        assert torch.equal(first(1).bfloat16(), first(1, torch.bfloat16))

    def test_what_does_not_fit_is_named(self, tokenizer: str) -> None:
        with pytest.raises(ConfigError, match="no field 'hiden_size': did you mean 'hidden_size'"):
            load_model(self.spec(tokenizer, hiden_size=8), dtype=F32)
        with pytest.raises(ConfigError, match="unknown model_type 'qwen22': did you mean 'qwen2'"):
            load_model(self.spec(tokenizer, model_type="qwen22"), dtype=F32)
        with pytest.raises(ConfigError, match="vocab_size 100 is too small for the tokenizer's 350"):
            load_model(self.spec(tokenizer, vocab_size=100), dtype=F32)
        with pytest.raises(ConfigError, match="no causal LM can be made"):
            load_model(self.spec(tokenizer, num_attention_heads=0), dtype=F32)

    def test_a_spec_says_one_origin(self) -> None:
        for wrong, message in (
            ({}, "either 'path'"),
            ({"path": "a", "config": self.CONFIG}, "either 'path'"),
            ({"config": self.CONFIG}, "needs a 'tokenizer'"),
            ({"config": {"hidden_size": 3}, "tokenizer": "t"}, "needs a 'model_type'"),
            ({"config": self.CONFIG, "tokenizer": "t", "lora": {}}, "leave out 'lora'"),
        ):
            with pytest.raises(ValueError, match=message):
                ModelSpec.model_validate(wrong)


class TestWrongFolders:
    def test_a_missing_folder_names_what_is_near(self, folder: Path) -> None:
        tiny_folder("llama", folder.parent / "sft-large")
        with pytest.raises(ConfigError, match=r"no folder .*sft-larg; near it: .*sft-large"):
            load_model(folder.parent / "sft-larg", dtype=F32)
        with pytest.raises(ConfigError, match=r"nor is there a folder .*nowhere"):
            load_model(folder.parent / "nowhere" / "m", dtype=F32)

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ConfigError, match=r"not a model folder.*no config\.json.*notes\.txt"):
            load_model(tmp_path, dtype=F32)
        with pytest.raises(ConfigError, match="is a file; a model is a folder"):
            load_model(tmp_path / "notes.txt", dtype=F32)

    def test_a_hub_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def offline(*args: object, **kwargs: object) -> str:
            raise LocalEntryNotFoundError("no connection, and not in the cache")

        monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "some").mkdir()
        (tmp_path / "some" / "modell").mkdir()
        with pytest.raises(ConfigError, match=r"hub cannot be reached.*go online.*near it: some/modell"):
            load_model("some/model", dtype=F32)

    def test_a_hub_id_fetches_safetensors_and_no_code(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        asked: dict[str, object] = {}

        def fetch(ref: str, **kwargs: object) -> str:
            asked.update(kwargs, ref=ref)
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        model = load_model(ModelSpec(path="some/model", revision="abc"), dtype=F32)
        assert model.source == "some/model"
        assert (asked["ref"], asked["revision"]) == ("some/model", "abc")
        patterns = asked["allow_patterns"]
        assert isinstance(patterns, list)
        assert "*.safetensors" in patterns
        assert not {"*.py", "*.bin"} & set(patterns)
        load_model(ModelSpec(path="some/model", trust_remote_code=True), dtype=F32)
        assert "*.py" in asked["allow_patterns"]  # type: ignore[operator]
        load_tokenizer("some/model")
        assert "*.safetensors" not in asked["allow_patterns"]  # type: ignore[operator]

    def test_pickles_are_refused_with_the_way_to_convert_them(self, folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
            load_model(folder, dtype=F32)
        save_file({"value.weight": torch.zeros(1, 32)}, folder / "heads.safetensors")
        with pytest.raises(ConfigError, match="a pickle"):
            load_model(folder, dtype=F32)
        (folder / "pytorch_model.bin").unlink()
        with pytest.raises(ConfigError, match="no weights"):
            load_model(folder, dtype=F32)

    def test_missing_weights_are_never_made_up(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: t for name, t in weights.items() if "layers.1.mlp.up_proj" not in name}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=r"do not fit its config.*layers\.1\.mlp\.up_proj\.weight"):
            load_model(folder, dtype=F32)
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=r"lm_head\.weight"):
            load_model(folder, dtype=F32)

    def test_another_models_config(self, folder: Path) -> None:
        rewrite(folder / "config.json", intermediate_size=64)
        with pytest.raises(ConfigError, match=r"do not fit its config.*mlp"):
            load_model(folder, dtype=F32)

    def test_a_truncated_file(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_model(folder, dtype=F32)

    def test_a_damaged_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        with pytest.raises(ConfigError, match="cannot be"):
            load_model(folder, dtype=F32)

    def test_code_in_a_folder_is_not_run(self, folder: Path) -> None:
        (folder / "modeling_x.py").write_text("raise SystemExit('ran')\n")
        rewrite(
            folder / "config.json",
            model_type="x_custom",
            auto_map={"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"},
        )
        with pytest.raises(ConfigError, match="trust_remote_code"):
            load_model(folder, dtype=F32)

    def test_no_tokenizer(self, folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        with pytest.raises(ConfigError, match=r"holds no tokenizer.*'tokenizer'"):
            load_model(folder, dtype=F32)

    def test_a_tokenizer_with_more_tokens_than_embeddings(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<extra>"])
        path = tiny_folder("llama", tmp_path / "m", tokenizer=tokenizer)
        with pytest.raises(ConfigError, match=r"1 tokens beyond the model's 384 embeddings \('<extra>'\)"):
            load_model(path, dtype=F32)


class TestChatTokens:
    """A base model whose vocabulary lacks ChatML's tokens."""

    @pytest.fixture(name="base", params=[350, 384])
    def _base(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        tokenizer = tiny_tokenizer(specials=(END,), eos=END, vocab_size=request.param)
        return tiny_folder("llama", tmp_path / "base", tokenizer=tokenizer, eos_token_id=0, pad_token_id=None)

    def test_by_default_nothing_is_added(self, base: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            model = load_model(base, dtype=F32, train=True)
        assert sum("chat template" in r.message for r in caplog.records) == 1
        assert model.base.config.vocab_size == 384
        assert CHAT_START not in model.tokenizer.get_vocab()
        assert model.template.stop_ids == (0,)

    def test_chatml_by_name_adds_them_when_training_and_the_saved_folder_has_them(
        self, base: Path, tmp_path: Path
    ) -> None:
        model = load_model(ModelSpec(path=str(base), chat_template="chatml"), dtype=F32, train=True)
        assert model.added_tokens == (CHAT_START, CHAT_END)
        ids = model.tokenizer.convert_tokens_to_ids([CHAT_START, CHAT_END])
        weight = model.base.get_input_embeddings().weight
        assert len(weight) % 64 == 0
        torch.testing.assert_close(weight[ids[0]], weight[: min(ids)].mean(0))
        assert model.template.stop_ids[0] == ids[1]
        model.save(tmp_path / "out")
        again = load_model(tmp_path / "out", dtype=F32)
        assert torch.equal(again.hf(IDS).logits, model.hf(IDS).logits)
        assert again.tokenizer.convert_tokens_to_ids([CHAT_START, CHAT_END]) == ids
        assert again.template.stop_ids[0] == ids[1]

    def test_never_for_inference_nor_under_lora(self, base: Path) -> None:
        with pytest.raises(ConfigError, match="'plain'"):
            load_model(ModelSpec(path=str(base), chat_template="chatml"), dtype=F32)
        with pytest.raises(ConfigError, match="LoRA does not train"):
            load_model(ModelSpec(path=str(base), chat_template="chatml", lora=LoRA()), dtype=F32, train=True)


class TestTokenizers:
    def test_tokenizer_json_wins_over_a_built_in_splitting_rule(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tiny_folder("qwen2", tmp_path / "m")
        text = "It is 42 and 1234."
        assert AutoTokenizer.from_pretrained(path).encode(text) != tiny_tokenizer().encode(text)
        with caplog.at_level(logging.WARNING):
            found = load_tokenizer(str(path))
        assert found.encode(text) == tiny_tokenizer().encode(text)
        assert any("going by tokenizer.json" in r.message for r in caplog.records)

    def test_the_hash_is_of_what_ids_mean(self) -> None:
        one = tokenizer_hash(tiny_tokenizer())
        assert one == tokenizer_hash(tiny_tokenizer(chat_template="x", eos=END))
        assert one != tokenizer_hash(tiny_tokenizer(vocab_size=383))
        more = tiny_tokenizer()
        more.add_tokens(["<extra>"])
        assert one != tokenizer_hash(more)
        assert len(one) == 16

    def test_a_damaged_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text('{"model": 3}')
        with pytest.raises(ConfigError, match=r"tokenizer in .* cannot be read"):
            load_model(folder, dtype=F32)
