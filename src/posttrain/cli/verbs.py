"""The verbs without a recipe: each builds the config that a recipe's step would have and runs its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from posttrain.cli.output import command, show_result, tell

OUT = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)]
MODEL = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A folder, a hub id, or {path: …, lora: {rank: 16}}.", show_default=False
    ),
]
DATA = Annotated[
    list[str] | None, typer.Option("--data", "-d", help="A file or folder of rows; may be repeated.")
]
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set any field of the step's config, e.g. optimizer.lr=1e-5.", metavar="A.B=C"
    ),
]
CONFIG = Annotated[
    Path | None,
    typer.Option("--config", help="A YAML file with fields of the config; options and --set win."),
]
FORCE = Annotated[bool, typer.Option("--force", help="Replace another run's output in --out.")]

EXAMPLES = {
    "train": "posttrain train dpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --out runs/dpo"
    " --set method.beta=0.2",
    "train grpo": "posttrain train grpo --model runs/sft --out runs/grpo --set online.prompts=prompts.jsonl"
    " --set 'online.judge={name: exact_match}'",
    "tokenizer": "posttrain tokenizer --data corpus.jsonl --out runs/tokenizer --set vocab_size=8000",
    "curate": "posttrain curate gsm8k_train.jsonl.gz --out runs/demos --set holdout=0.1",
    "decontaminate": "posttrain decontaminate runs/demos --against gsm8k_test.jsonl -a human_eval.jsonl.gz"
    " --out runs/clean",
    "sample": "posttrain sample --model runs/sft --prompts prompts.jsonl --out runs/samples --n 8",
    "choose": "posttrain choose --data runs/samples --n 200 --strategy near_ties"
    " --judge '{name: reward_model, model: runs/reward}' --out runs/chosen",
    "judge": "posttrain judge --data runs/samples --judge '{name: reward_model, model: runs/reward}'"
    " --out runs/pairs",
    "pivotal": "posttrain pivotal --model runs/sft --prompts sums.jsonl --judge maths --out runs/pivots"
    " --set sampling.max_new_tokens=512",
    "probe": "posttrain probe --model runs/sft --prompts nq_open_dev.jsonl --n 10 --out runs/probe"
    " --grader '{name: rule, within: true}'",
    "bogus": "posttrain bogus --candidates bogus.jsonl --out runs/bogus"
    " --set 'attempts={model: runs/sft, n: 8}'",
    "refusals": "posttrain refusals --probe runs/probe --bogus runs/bogus --out runs/teach",
    "evaluate": "posttrain evaluate --model runs/sft --model runs/dpo"
    " --task '{name: pair_accuracy, data: heldout.jsonl}' --out runs/score",
    "gate": "posttrain gate runs/score --candidate runs/ppo --incumbent runs/sft --out runs/gate",
    "report": "posttrain report runs/score --out runs/page",
}


def register(app: typer.Typer) -> None:
    for function in (
        train,
        tokenizer,
        curate,
        decontaminate,
        sample,
        choose,
        judge,
        pivotal,
        probe,
        bogus,
        refusals,
        evaluate,
        gate,
        report,
    ):
        name = function.__name__
        cls = TrainCommand if function is train else None
        app.command(name, cls=cls, epilog=f"Example: {EXAMPLES[name]}")(function)


class TrainCommand(TyperCommand):
    """`train`, whose help goes on with the fields of the method that stands before --help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["method"] = next((arg for arg in args if not arg.startswith("-")), "")
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if ctx.meta.get("method"):
            from posttrain.cli.fields import method_help

            typer.echo(method_help(ctx.meta["method"]))


def _run(
    verb: str, out: Path, given: Mapping[str, Any], config: Path | None, sets: list[str] | None, force: bool
) -> None:
    """Fields from the file, then from the options that were given, then from --set."""
    from posttrain.flow.api import run_verb
    from posttrain.flow.overrides import parse_overrides, set_at
    from posttrain.flow.source import read_yaml

    fields = dict(read_yaml(config).data) if config else {}
    fields |= {name: value for name, value in given.items() if value is not None}
    for override in parse_overrides(sets or []):
        set_at(fields, override.path, override.value, override.place)
    result = run_verb(verb, out, fields, force=force, say=tell)
    show_result(result.out, result.summary)


def _read(text: str | None) -> Any:
    """An option's value: text, or a mapping or list where it is written as one."""
    from posttrain.flow.source import parse_value

    return parse_value(text, text) if text is not None and text.lstrip().startswith(("{", "[")) else text


def _several(texts: list[str] | None) -> Any:
    """One value as it is, several as a list."""
    values = [_read(text) for text in texts or []]
    return values[0] if len(values) == 1 else values or None


@command
def train(
    method: Annotated[
        str,
        typer.Argument(help="pretrain, sft, reward, dpo, kto, ppo, grpo, rloo, or package.module:METHOD."),
    ],
    out: OUT,
    model: MODEL = None,
    data: DATA = None,
    heldout: Annotated[
        str | None, typer.Option("--heldout", help="Held-out rows: a file, or a share of --data such as 0.1.")
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Train a model by METHOD; --out receives the model folder, metrics.jsonl and manifest.json.

    `posttrain train grpo --help` shows the fields of grpo as well. ppo, grpo and rloo learn from answers that
    they sample: give --set online.prompts=… and --set online.judge=… in place of --data.
    """
    from posttrain.flow.source import parse_value, read_yaml

    written = read_yaml(config).data.get("method") if config else None
    chosen = {**written, "name": method} if isinstance(written, dict) else {"name": method}
    share = parse_value(heldout, "--heldout") if heldout is not None else None
    given = {
        "method": chosen,
        "model": _read(model),
        "data": _several(data),
        "heldout": share if isinstance(share, float) else heldout,
    }
    _run("train", out, given, config, sets, force)


@command
def tokenizer(
    out: OUT, data: DATA = None, sets: SET = None, config: CONFIG = None, force: FORCE = False
) -> None:
    """Train a tokenizer."""
    _run("tokenizer", out, {"data": _several(data)}, config, sets, force)


@command
def curate(
    out: OUT,
    source: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, or {name: source, …}.", show_default=False)
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Gather rows from SOURCE, in whatever format they are, clean, select and split them."""
    _run("curate", out, {"source": _several(source)}, config, sets, force)


@command
def decontaminate(
    out: OUT,
    data: Annotated[
        list[str] | None, typer.Argument(help="Files or folders of rows.", show_default=False)
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", "-a", help="Evaluation prompts: a file, folder or {name: source, …}; repeat it."
        ),
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Take out rows that hold evaluation prompts, with the matching words as evidence."""
    _run("decontaminate", out, {"data": _several(data), "against": _several(against)}, config, sets, force)


@command
def sample(
    out: OUT,
    model: MODEL = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="Rows with prompts, of any kind.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Answers to each prompt.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Who writes: local, vllm, or {name: http, base_url: …, …}.")
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Let a model answer prompts."""
    given = {"model": _read(model), "prompts": _read(prompts), "n": n, "engine": _read(engine)}
    _run("sample", out, given, config, sets, force)


@command
def choose(
    out: OUT,
    data: DATA = None,
    n: Annotated[int | None, typer.Option("--n", help="Prompts to choose.")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="random, disagreement, near_ties or coverage.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Who predicts: a name, or {name: …, …}.")
    ] = None,
    model: MODEL = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Choose which sampled prompts are worth a label."""
    given = {"data": _several(data), "n": n, "strategy": strategy, "judge": _read(judge)}
    _run("choose", out, given | {"model": _read(model)}, config, sets, force)


@command
def judge(
    out: OUT,
    data: DATA = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A judge: a name, or {name: …, …}.")] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Let a judge score answers, and make ratings or comparisons of them."""
    _run("judge", out, {"data": _several(data), "judge": _read(judge)}, config, sets, force)


@command
def pivotal(
    out: OUT,
    model: MODEL = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="Rows with prompts that the judge can grade.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Who says what succeeds: a name, or {name: …, …}.")
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Find the tokens on which a model's success turns, and make pairs of single tokens of them."""
    given = {"model": _read(model), "prompts": _read(prompts), "judge": _read(judge)}
    _run("pivotal", out, given, config, sets, force)


@command
def probe(
    out: OUT,
    model: MODEL = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="Questions with reference answers.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Answers to each question.")] = None,
    grader: Annotated[
        str | None, typer.Option("--grader", help="rule, or {name: rule | llm | check, …}.")
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Find out which questions a model knows the answer to."""
    given = {"model": _read(model), "prompts": _read(prompts), "n": n, "grader": _read(grader)}
    _run("probe", out, given, config, sets, force)


@command
def bogus(
    out: OUT,
    questions: Annotated[
        str | None, typer.Option("--questions", "-q", help="Real questions, for a writer (--set writer=…).")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="In their place: bogus questions made elsewhere.")
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Make questions that look real and that nothing answers; keep those on which attempts disagree."""
    given = {"questions": questions, "candidates": candidates}
    _run("bogus", out, given, config, sets, force)


@command
def refusals(
    out: OUT,
    probe: Annotated[str | None, typer.Option("--probe", help="The folder of a probe.")] = None,
    bogus: Annotated[str | None, typer.Option("--bogus", help="Prompts that nothing answers.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="demonstrations or comparisons.")] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Make rows that teach a model to answer what it knows and to refuse the rest."""
    _run("refusals", out, {"probe": probe, "bogus": bogus, "to": to}, config, sets, force)


@command
def evaluate(
    out: OUT,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model; repeat it to compare several, in order."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="A task: a name, or {name: …, …}; may be repeated."),
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Measure models on tasks, item by item, with intervals and paired differences."""
    tasks = [_read(text) for text in task] if task else None
    _run("evaluate", out, {"model": _several(model), "tasks": tasks}, config, sets, force)


@command
def gate(
    out: OUT,
    evaluation: Annotated[
        str | None, typer.Argument(help="The folder of an evaluation of both models.", show_default=False)
    ] = None,
    candidate: Annotated[str | None, typer.Option("--candidate", help="The new model.")] = None,
    incumbent: Annotated[str | None, typer.Option("--incumbent", help="The one before it.")] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Let the new model go on only if what counts did not fall; --out receives the one that does."""
    given = {"evaluation": evaluation, "candidate": candidate, "incumbent": incumbent}
    _run("gate", out, given, config, sets, force)


@command
def report(
    out: OUT,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of finished steps, evaluations above all.", show_default=False),
    ] = None,
    sets: SET = None,
    config: CONFIG = None,
    force: FORCE = False,
) -> None:
    """Write one HTML page about evaluations and all the steps that led to them."""
    _run("report", out, {"inputs": inputs or None}, config, sets, force)
