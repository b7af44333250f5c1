"""Keys: what determines a result is in them, and nothing else is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from flow_fakes import JOIN, MAKE, Beta, Gamma, JoinConfig, MakeConfig
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from posttrain.common.config import Config, DataRef, Input, ModelRef, Runtime
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import Step
from posttrain.flow import hashing, hub
from posttrain.flow.fingerprint import Outsiders, canonical, fingerprint, key_of
from posttrain.flow.hashing import Hasher
from posttrain.flow.inputs import Leaf, Pinned, inputs_of, plain, replace_inputs
from posttrain.models.locate import find_model


def key(config: Config, step: Step | None = None, steps: dict[str, str] | None = None) -> str:
    known = steps or {}
    return fingerprint(step or JOIN, config, known.get, Outsiders(Hasher())).key


class Everything(Config):
    """Every way to mark an input."""

    plain: str
    data: DataRef
    maybe: DataRef | None
    many: DataRef | list[DataRef]
    pair: tuple[int, ModelRef]
    named: dict[str, ModelRef]
    deep: list[dict[str, tuple[DataRef, ...]]]
    marked: Annotated[list[str], Input("data")]
    share: DataRef | Annotated[float, "a share"]
    choice: ModelRef | Literal["none", "self"]
    cache: Annotated[ModelRef, Runtime()]
    loose: dict[str, Any]
    nested: Beta
    nothing: DataRef


def everything(**other: Any) -> Everything:
    given = {
        "plain": "words",
        "data": "d",
        "maybe": "m",
        "many": ["l1", "l2"],
        "pair": (1, "t"),
        "named": {"x": "n"},
        "deep": [{"y": ("deep",)}],
        "marked": ["in a marked list"],
        "share": 0.1,
        "choice": "none",
        "cache": "r",
        "loose": {"a": "any", "b": ["anyhow"]},
        "nested": Beta(teacher="b"),
        "nothing": "",
    }
    return Everything(**{**given, **other})


def test_marked_fields_are_inputs_wherever_they_stand() -> None:
    found = {leaf.path: leaf.kind for leaf in inputs_of(everything()) if leaf.kind is not None}
    assert found == {
        ("data",): "data",
        ("maybe",): "data",
        ("many", "0"): "data",
        ("many", "1"): "data",
        ("pair", "1"): "model",
        ("named", "x"): "model",
        ("deep", "0", "y", "0"): "data",
        ("marked", "0"): "data",
        ("cache",): "model",
        ("loose", "a"): "",
        ("loose", "b", "0"): "",
        ("nested", "teacher"): "model",
    }
    assert "cache" not in plain(everything(), lambda leaf: leaf.value)
    other = everything(choice="owner/x", share="file")
    assert {leaf.value for leaf in inputs_of(other) if leaf.kind} > {"owner/x", "file"}


def test_inputs_are_replaced_and_the_rest_is_left_as_it_is() -> None:
    config = everything()
    changed = replace_inputs(config, lambda leaf: f"<{leaf.value}>" if leaf.kind else leaf.value)
    assert changed.deep == [{"y": ("<deep>",)}]
    assert changed.pair == (1, "<t>")
    assert changed.nested == Beta(teacher="<b>")
    assert (changed.plain, changed.loose, changed.choice) == (config.plain, config.loose, "none")
    assert config == everything()
    assert replace_inputs(config, lambda leaf: leaf.value) is config


def test_a_hub_model_is_pinned_beside_its_name_or_in_it() -> None:
    class Spec(Config):
        path: ModelRef
        revision: str | None = None
        tokenizer: ModelRef | None = None

    class Holder(Config):
        spec: Spec
        other: ModelRef
        more: tuple[ModelRef, ...] = ()

    config = Holder(spec=Spec(path="o/m", revision="v1", tokenizer="o/t"), other="o/m", more=("o/n",))
    revisions = {leaf.path: leaf.revision for leaf in inputs_of(config)}
    assert revisions[("spec", "path")] == "v1"
    assert revisions[("other",)] == revisions[("spec", "tokenizer")] == ""
    pinned = replace_inputs(config, lambda leaf: Pinned(leaf.value, "c0ffee") if leaf.kind else leaf.value)
    assert pinned.spec == Spec(path="o/m", revision="c0ffee", tokenizer="o/t@c0ffee")
    assert (pinned.other, pinned.more) == ("o/m@c0ffee", ("o/n@c0ffee",))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"threads": 4}, False),
        ({"text": "b"}, True),
        ({"n": 2}, True),
        ({"fail": True}, True),
    ],
)
def test_a_key_follows_every_field_but_those_of_runtime(change: dict[str, Any], differs: bool) -> None:
    assert (key(MakeConfig(**change), MAKE) != key(MakeConfig(), MAKE)) is differs


def test_a_key_follows_kind_version_and_class() -> None:
    config = MakeConfig()
    keys = {
        key(config, MAKE),
        key(config, Step("other", MakeConfig, MAKE.run, version=1)),
        key(config, Step("make", MakeConfig, MAKE.run, version=2)),
    }
    assert len(keys) == 3
    beta = JoinConfig(inputs=(), method=Beta(beta=0.2))
    gamma = JoinConfig(inputs=(), method=Gamma(beta=0.2))
    assert key(beta) != key(gamma)
    assert plain(beta, lambda leaf: leaf.value)["method"]["class"] == "flow_fakes:Beta"
    assert "class" not in plain(everything(), lambda leaf: leaf.value)["nested"]


def test_two_plug_ins_with_the_same_fields_have_two_keys() -> None:
    def plug_in(module: str) -> Config:
        made = type("Beta", (Beta,), {"__module__": module})
        return JoinConfig.model_construct(inputs=(), method=made())

    assert key(plug_in("one")) != key(plug_in("two"))


def test_a_plug_in_may_say_its_version() -> None:
    class Own(Beta):
        version: ClassVar[int] = 1

    def now() -> str:
        return key(JoinConfig.model_construct(inputs=(), method=Own()))

    first = now()
    assert now() == first
    Own.version = 2
    assert now() != first


def test_files_count_by_content_and_not_by_name(tmp_path: Path) -> None:
    def of(content: str, *parts: str) -> str:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return key(JoinConfig(inputs=str(path)))

    first = of("same", "one.txt")
    assert of("same", "elsewhere", "two.txt") == first
    assert of("other", "one.txt") != first
    assert key(JoinConfig(inputs=(str(tmp_path / "elsewhere"),))) != first


def test_a_folder_counts_by_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return Hasher().content(tmp_path / name).sha256

    first = folder("a", x="1", sub__y="2")
    assert folder("b", x="1", sub__y="2") == first
    assert folder("c", x="1", sub__z="2") != first
    assert folder("d", x="1", sub__y="3") != first
    assert folder("e", x="1", sub="2") != first
    (tmp_path / "a" / ".hidden").write_text("x")
    (tmp_path / "a" / "manifest.json").write_text("{}")
    assert Hasher().content(tmp_path / "a").sha256 == first
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is an empty folder"):
        Hasher().content(tmp_path / "empty")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Hasher().content(tmp_path / "a")


def test_references_count_by_key_and_file() -> None:
    config = JoinConfig(inputs="@a")
    first = key(config, steps={"a": "k1"})
    assert key(config, steps={"a": "k2"}) != first
    assert key(JoinConfig(inputs="@b"), steps={"b": "k1"}) == first
    assert key(JoinConfig(inputs="@a/rows.txt"), steps={"a": "k1"}) != first
    loose = JoinConfig(inputs=(), extra={"x": "@a"})
    assert key(loose, steps={"a": "k1"}) != key(loose, steps={"a": "k2"})


def test_a_text_may_be_a_file_or_itself(tmp_path: Path) -> None:
    file = tmp_path / "template"
    file.write_text("long")
    by_file = key(JoinConfig(inputs=(), template=str(file)))
    file.write_text("longer")
    assert key(JoinConfig(inputs=(), template=str(file))) != by_file
    assert key(JoinConfig(inputs=(), template="x" * 5000)) != key(JoinConfig(inputs=(), template="y"))


def test_the_order_of_a_mapping_counts_the_order_of_fields_does_not() -> None:
    one, two = everything(named={"a": "x", "b": "y"}), everything(named={"b": "y", "a": "x"})

    def form(config: Config) -> bytes:
        return canonical(plain(config, lambda leaf: leaf.value))

    assert form(one) != form(two)
    fields = list(plain(everything(), lambda leaf: leaf.value))
    assert fields == sorted(fields)


def test_values_without_a_stable_form_are_refused() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)
        value: Any = None

    for value in (float("nan"), float("inf"), object(), Path("x"), b"x", lambda: 0, {1: 2}, [Path("y")]):
        with pytest.raises(ConfigError, match="value"):
            plain(Odd(value=value), lambda leaf: leaf.value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mark its field as DataRef or ModelRef"):
        plain(Odd(value=Path("x")), lambda leaf: leaf.value)  # type: ignore[arg-type]
    assert plain(Odd(value={3, 1, 2}), lambda leaf: leaf.value)["value"] == [1, 2, 3]  # type: ignore[arg-type]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_keys_are_equal_exactly_where_the_values_are(one: Any, two: Any) -> None:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and repr(a) == repr(b)

    assert (key_of({"v": one}) == key_of({"v": two})) == same(one, two)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def count(path: Path) -> str:
        read.append(path)
        return real(path)

    real: Callable[[Path], str] = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", count)
    return read


def test_big_files_are_hashed_once_and_again_after_any_change(tmp_path: Path, counted: list[Path]) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"a" * hashing.BIG)
    hasher = Hasher(tmp_path / "cache")
    first = hasher.content(big).sha256
    assert hasher.content(big).sha256 == first
    assert len(counted) == 2, "just written: the clock's grain could hide a change, so it is not remembered"

    def age(path: Path) -> None:
        wait = hashing.SETTLED_NS
        monkey = pytest.MonkeyPatch()
        monkey.setattr(time, "time_ns", lambda now=time.time_ns: now() + 2 * wait)
        hasher.content(path)
        monkey.undo()

    age(big)
    counted.clear()
    assert hasher.content(big).sha256 == first
    assert not counted
    times = os.stat(big)
    big.write_bytes(b"b" * hashing.BIG)
    os.utime(big, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hasher.content(big).sha256 != first, "same size and time of modification, other content"
    (tmp_path / "other").write_bytes(b"c" * hashing.BIG)
    os.replace(tmp_path / "other", big)
    assert hasher.content(big).sha256 not in (first, "")
    for entry in (tmp_path / "cache").iterdir():
        entry.write_text("not json")
    counted.clear()
    hasher.content(big)
    assert counted == [big]


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing"
    path.write_text("a")

    def grow(file: Path) -> str:
        with open(file, "a") as f:
            f.write("more")
        return "0" * 64

    monkeypatch.setattr(hashing, "sha256_file", grow)
    with pytest.raises(DataError, match="changed while it was read"):
        Hasher().content(path)


def test_what_is_not_there_is_refused_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inputs\.1: 'none\.txt': no such file or folder"):
        key(JoinConfig(inputs=[str(Path(__file__)), "none.txt"]))
    with pytest.raises(
        ConfigError, match=r"method\.teacher: 'no such model!': no such folder, and no hub model"
    ):
        key(JoinConfig(inputs=(), method=Beta(teacher="no such model!")))
    with pytest.raises(ConfigError, match="'@a' names a step, and there is no recipe here"):
        key(JoinConfig(inputs="@a"))
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the output of a step that has not finished"):
        key(JoinConfig(inputs=str(tmp_path)))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds `owner/name` at COMMIT, and no way to the hub."""
    from huggingface_hub import constants

    folder = tmp_path / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.revision.cache_clear()
    yield folder
    hub.revision.cache_clear()


def test_hub_models_count_by_revision(cached_model: Path) -> None:
    outside = Outsiders(Hasher())
    found = outside(Leaf("owner/name", ("model",), "model"))
    assert found.identity == {"model": "owner/name", "revision": COMMIT}
    assert str(found.pinned) == f"owner/name@{COMMIT}"
    other = "f" * 40
    for leaf in (Leaf(f"owner/name@{other}", (), "model"), Leaf("owner/name", (), "model", revision=other)):
        assert Outsiders(Hasher())(leaf).identity == {"model": "owner/name", "revision": other}
    (cached_model / "snapshots" / COMMIT).mkdir(parents=True)
    (cached_model / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert find_model(str(found.pinned)) == cached_model / "snapshots" / COMMIT
    first = key(JoinConfig(inputs=(), method=Beta(teacher="owner/name")))
    (cached_model / "refs" / "main").write_text(other)
    hub.revision.cache_clear()
    assert key(JoinConfig(inputs=(), method=Beta(teacher="owner/name"))) != first


def test_a_hub_model_that_cannot_be_found_says_where_it_was_sought(cached_model: Path) -> None:
    with pytest.raises(ConfigError) as e:
        Outsiders(Hasher())(Leaf("owner/other", (), "model"))
    assert str(e.value).startswith("model 'owner/other' (main): no such folder, not in the local cache")
