"""The verbs as Python functions: the same configs, code and folders as in recipes and on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.common.config import parse
from posttrain.flow.oneoff import Result, run_into
from posttrain.flow.recipe import load_recipe
from posttrain.flow.runner import Done
from posttrain.flow.runner import run_recipe as run_checked
from posttrain.flow.store import Store
from posttrain.flow.verbs import VERBS, find_verb

Say = Callable[[str], None]


def tell(line: str) -> None:
    """Print to stderr."""
    print(line, file=sys.stderr)


def run_verb(
    verb: str, out: Path | str, fields: Mapping[str, Any], *, force: bool = False, say: Say = tell
) -> Result:
    """Run one verb into the folder `out`. fields: of its config, as in a recipe; paths may be `Path`s.

    Raises ConfigError with the nearest valid name for a field that does not exist.
    """
    step = find_verb(verb, VERBS)
    config = parse(step.config, {name: plain_paths(value) for name, value in fields.items()}, verb)
    return run_into(step, config, out, force=force, say=say)


def plain_paths(value: Any) -> Any:
    """The value with every `Path` in it as text, which is what configs hold."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_paths(inner) for inner in value]
    return value


def train(
    *, method: Any, model: Any, out: Path | str, data: Any = None, force: bool = False, **fields: Any
) -> Result:
    """Train `model` by `method` (`DPO(beta=0.1)`, a name, or a mapping), on `data` or on answers it samples.

    model: a folder, a hub id, or the fields of ModelSpec. fields: the others of `TrainConfig`, such as
    online (prompts, judge, …), heldout, epochs, optimizer. out: receives `model/`, `metrics.jsonl` and
    `manifest.json`.
    """
    rows = {} if data is None else {"data": data}
    return run_verb("train", out, {"method": method, "model": model, **rows, **fields}, force=force)


def tokenizer(*, data: Any, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Train a tokenizer on rows or text. fields: the others of `TokenizerConfig`."""
    return run_verb("tokenizer", out, {"data": data, **fields}, force=force)


def curate(*, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Gather, clean, select and split rows. fields: of `CurateConfig`. out: receives `rows.jsonl`."""
    return run_verb("curate", out, fields, force=force)


def decontaminate(*, data: Any, against: Any, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Take out rows of `data` that hold evaluation prompts. fields: the others of `DecontaminateConfig`."""
    return run_verb("decontaminate", out, {"data": data, "against": against, **fields}, force=force)


def sample(*, prompts: Any, out: Path | str, model: Any = None, force: bool = False, **fields: Any) -> Result:
    """Let `model` answer `prompts`; it is left out where the engine names its own. fields: the others of
    `SampleConfig`, such as n, temperature, engine.
    """
    given = {} if model is None else {"model": model}
    return run_verb("sample", out, given | {"prompts": prompts, **fields}, force=force)


def choose(*, data: Any, n: int, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Choose `n` of the sampled prompts. fields: the others of `ChooseConfig`, such as strategy, judge."""
    return run_verb("choose", out, {"data": data, "n": n, **fields}, force=force)


def judge(*, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Let a judge give feedback on answers. fields: of `JudgeConfig`. out: receives `rows.jsonl`."""
    return run_verb("judge", out, fields, force=force)


def pivotal(
    *, prompts: Any, judge: Any, out: Path | str, model: Any = None, force: bool = False, **fields: Any
) -> Result:
    """Find pivotal tokens of `model`'s answers, and pairs of them. fields: the others of `PivotalConfig`."""
    given = {"model": model, "prompts": prompts, "judge": judge, **fields}
    return run_verb("pivotal", out, {k: v for k, v in given.items() if v is not None}, force=force)


def probe(*, prompts: Any, out: Path | str, model: Any = None, force: bool = False, **fields: Any) -> Result:
    """Find out which questions `model` knows. fields: the others of `ProbeConfig`, such as n, grader."""
    given = {} if model is None else {"model": model}
    return run_verb("probe", out, given | {"prompts": prompts, **fields}, force=force)


def bogus(*, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Make questions that nothing answers, and keep those on which attempts disagree. fields: of
    `BogusConfig`.
    """
    return run_verb("bogus", out, fields, force=force)


def refusals(*, probe: Any, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Make rows that teach to answer what is known and to refuse the rest. fields: the others of
    `RefusalsConfig`.
    """
    return run_verb("refusals", out, {"probe": probe, **fields}, force=force)


def evaluate(*, model: Any, tasks: Any, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Measure one model, a list, or `{name: model}` on `tasks` (a name, or a list of names and mappings)."""
    tasks = [tasks] if isinstance(tasks, str | Mapping) else tasks
    return run_verb("evaluate", out, {"model": model, "tasks": tasks, **fields}, force=force)


def gate(
    *, evaluation: Any, candidate: Any, incumbent: Any, out: Path | str, force: bool = False, **fields: Any
) -> Result:
    """Keep `candidate` unless it fell behind `incumbent`. fields: the others of `GateConfig`."""
    given = {"evaluation": evaluation, "candidate": candidate, "incumbent": incumbent}
    return run_verb("gate", out, {**given, **fields}, force=force)


def report(*, inputs: Any, out: Path | str, force: bool = False, **fields: Any) -> Result:
    """Write one HTML page about finished folders and all they were made from."""
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    return run_verb("report", out, {"inputs": inputs, **fields}, force=force)


def run_recipe(
    recipe: Path | str,
    store: Path | str = "store",
    *,
    overrides: Mapping[str, Any] | None = None,
    only: Iterable[str] = (),
    force: Iterable[str] = (),
    say: Say = tell,
) -> dict[str, Done]:
    """Run a recipe file; what the store has is not run again. Returns what became of each step, by its name.

    overrides: {"dpo.method.beta": 0.2, "data_dir": "../data"}, as `--set` takes them.
    only: these steps and what they need. force: steps to make again.
    Raises ConfigError before anything runs, StepFailed where a step fails.
    """
    checked = load_recipe(recipe, overrides or {})
    only = list(only)
    checked = checked.only(only) if only else checked
    return {done.name: done for done in run_checked(checked, Store(store), force=list(force), say=say)}
