"""Steps that are quick to run and easy to reason about, for the tests of the flow."""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, SerializeAsAny

from posttrain.common.config import Config, DataRef, Input, ModelRef, Runtime, parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import Step, StepContext


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> Iterator[None]:
    """Keep the garbage collector, and that of forked children, away from what other tests have loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(name="memory_path")
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a place: thousands of flushes to a disk take their time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


RAN: list[str] = []  # labels of the steps that ran in this process, in order


class Recipe(Config):
    """A nested config with a registered kind of its own."""

    rate: float = Field(0.5, gt=0)
    rounds: int = 1


class Beta(Recipe):
    name: Literal["beta"] = "beta"
    beta: float = 0.1
    teacher: ModelRef | None = None


class Gamma(Recipe):
    name: Literal["gamma"] = "gamma"
    beta: float = 0.1


def _registered(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value
    kinds = {"beta": Beta, "gamma": Gamma}
    if not isinstance(value, dict) or value.get("name") not in kinds:
        raise ValueError("a mapping with a name: beta or gamma")
    try:
        return parse(kinds[value["name"]], value, f"method {value['name']}")
    except ConfigError as e:
        raise ValueError(str(e)) from None


class MakeConfig(Config):
    """text, n times."""

    text: str = "a"
    n: int = Field(1, ge=0)
    threads: Annotated[int, Runtime()] = 1
    fail: bool = False
    source: DataRef | None = None


class JoinConfig(Config):
    """What the inputs hold, one after the other."""

    inputs: DataRef | tuple[DataRef, ...] | dict[str, DataRef]
    weight: float = 1.0
    method: Annotated[SerializeAsAny[Recipe], BeforeValidator(_registered)] = Beta()
    label: str = ""
    template: Annotated[str, Input("text")] = "plain"
    extra: dict[str, Any] = Field(default_factory=dict)


class GrindConfig(Config):
    """A long computation: `links` links of a hash chain, then `files` files written piece by piece."""

    seed: str = "s"
    links: int = 8
    files: int = 3
    pause: Annotated[float, Runtime()] = 0.0
    inputs: DataRef | None = None


def make(cfg: MakeConfig, ctx: StepContext) -> dict[str, Any]:
    RAN.append(ctx.label)
    if cfg.fail:
        raise DataError("the data is bad; mend it")
    (ctx.out / "rows.txt").write_text(cfg.text * cfg.n)
    return {"n": cfg.n}


def join(cfg: JoinConfig, ctx: StepContext) -> dict[str, Any]:
    RAN.append(ctx.label)
    paths = [cfg.inputs] if isinstance(cfg.inputs, str) else list(cfg.inputs)
    paths = list(cfg.inputs.values()) if isinstance(cfg.inputs, dict) else paths
    files = [Path(p, "rows.txt") if Path(p).is_dir() else Path(p) for p in paths]
    text = "+".join(f.read_text() for f in files)
    (ctx.out / "rows.txt").write_text(f"{cfg.weight:g}({text})")
    return {"inputs": len(files)}


def grind(cfg: GrindConfig, ctx: StepContext) -> dict[str, Any]:
    """Resumes its chain from `state`; writes its output in place and slowly, so that a kill leaves halves."""
    RAN.append(ctx.label)
    done = sorted(ctx.state.glob("link-*"), key=lambda p: int(p.name[5:]))
    value = done[-1].read_text() if done else cfg.seed
    for i in range(len(done), cfg.links):
        value = hashlib.sha256(value.encode()).hexdigest()
        part = ctx.state / f"part-{i}"
        part.write_text(value)
        os.replace(part, ctx.state / f"link-{i}")
        time.sleep(cfg.pause)
    for i in range(cfg.files):
        (ctx.out / "deep").mkdir(exist_ok=True)
        (ctx.out / f"{i}.txt").write_text(value)
        with open(ctx.out / "deep" / f"{i}.bin", "w") as f:
            for piece in range(20):
                f.write(f"{value}-{i}-{piece}\n" * 20)
                f.flush()
                time.sleep(cfg.pause / 20)
    return {"value": value}


MAKE = Step("make", MakeConfig, make, version=1)
JOIN = Step("join", JoinConfig, join, version=2)
GRIND = Step("grind", GrindConfig, grind, version=1)
VERBS = {"make": "flow_fakes:MAKE", "join": "flow_fakes:JOIN", "grind": "flow_fakes:GRIND"}
