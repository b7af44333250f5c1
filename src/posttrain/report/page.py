"""The verb `report`: one self-contained HTML page about evaluations, and all the steps that led to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from posttrain.common.config import Config, DataRef, ModelRef
from posttrain.common.errors import ConfigError, TrainingError
from posttrain.common.files import atomic, write_json
from posttrain.common.step import Step, StepContext
from posttrain.report.ablation_config import AblationConfig

if TYPE_CHECKING:
    from posttrain.report.collect import Artifact

HERE = Path(__file__).parent
_DRAWN = ("svg", "diagram", "scale", "range")  # what the page draws, which tables.json leaves out


def _plain(value: Any) -> Any:
    """`ablation: true` takes the defaults."""
    return {} if value is True else None if value is False else value


class ReportConfig(Config):
    """inputs: the steps the page is about; whatever they were made from is found through their manifests.

    title: of the page. answers: prompts a task whose sampled answers are shown, drawn with `seed`.
    frontier: label of the task that is set against the KL, where an evaluation holds the task `kl`; the first
    other one where not given. ablation: the models of each evaluation as columns of one table; `true` for its
    defaults.
    """

    inputs: tuple[DataRef | ModelRef, ...] = Field(min_length=1)
    title: str = "Post-training report"
    answers: int = Field(6, ge=0)
    seed: int = 0
    frontier: str | None = None
    ablation: Annotated[AblationConfig | None, BeforeValidator(_plain)] = None


def run(cfg: ReportConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `report.html` and `tables.json`, and with `ablation` its table as JSON and CSV.

    Raises TrainingError, all files written, where a regression fails the step.
    """
    return write_report(cfg, ctx.out)


def check(cfg: ReportConfig, behind: Mapping[str, Config]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is asked for that the evaluations will not hold."""
    from posttrain.report.asked_for import mistakes_of

    return mistakes_of(cfg, behind)


STEP = Step("report", ReportConfig, run, version=6, check=check)


def build(inputs: Sequence[str | Path], out: str | Path, title: str | None = None) -> Path:
    """Write the page about finished folders into the folder `out` and return its path.

    Raises DataError where an input is missing or damaged.
    """
    given = {} if title is None else {"title": title}
    write_report(ReportConfig(inputs=tuple(str(path) for path in inputs), **given), Path(out))
    return Path(out) / "report.html"


def write_report(cfg: ReportConfig, out: Path) -> dict[str, Any]:
    from posttrain.report.ablation_files import write_tables
    from posttrain.report.collect import collect

    content = gather(cfg, collect(cfg.inputs))
    with atomic(out / "report.html") as f:
        f.write(render(content))
    write_json(out / "tables.json", plain(content))
    if content["ablations"]:
        write_tables(out, plain(content["ablations"]))
    failed = [said for table in content["ablations"] for said in table["regressions"]]
    if failed:
        raise TrainingError(
            "\n  ".join(["fail_on_regression:", *failed])
            + f"\n  The page is written all the same: {out / 'report.html'}"
        )
    return {"steps": len(content["provenance"]["steps"]), "verdicts": content["verdicts"]}


def gather(cfg: ReportConfig, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """All that the page shows, as plain data."""
    from posttrain.report.ablation import ablation_table
    from posttrain.report.collect import read_summary
    from posttrain.report.costs import cost_table, data_table
    from posttrain.report.curves import training_curves
    from posttrain.report.gates import gate_table
    from posttrain.report.graph import provenance
    from posttrain.report.pivotal import pivotal_views

    evaluated = [artifact for artifact in artifacts if artifact.kind == "evaluate"]
    summaries = {artifact.folder: read_summary(artifact) for artifact in evaluated}
    evaluations = [
        _evaluation(cfg, artifact, number, summaries, artifacts) for number, artifact in enumerate(evaluated)
    ]
    ablations = []
    if cfg.ablation is not None:
        tables = (ablation_table(cfg.ablation, one, summaries[one.folder]) for one in evaluated)
        ablations = [table for table in tables if table]
        if not ablations:
            raise ConfigError("ablation: no evaluation among the inputs holds two models or more to compare")
    if cfg.frontier is not None and not any(evaluation["frontier"] for evaluation in evaluations):
        raise ConfigError(f"frontier: no evaluation holds the task 'kl' and one labelled '{cfg.frontier}'")
    return {
        "title": cfg.title,
        "seed": cfg.seed,
        "evaluations": evaluations,
        "ablations": ablations,
        "lead": _lead(evaluations, artifacts),
        "verdicts": [v for evaluation in evaluations for v in evaluation["verdicts"]],
        "gains": [m for evaluation in evaluations if (m := evaluation["methods"]) and m["seeds"]],
        "gates": gate_table(artifacts),
        "curves": training_curves(artifacts),
        "pivotal": pivotal_views(artifacts),
        "costs": cost_table(artifacts),
        "data": data_table(artifacts),
        "provenance": provenance(artifacts),
    }


def _evaluation(
    cfg: ReportConfig,
    artifact: Artifact,
    number: int,
    summaries: dict[Path, dict[str, Any]],
    artifacts: Sequence[Artifact],
) -> dict[str, Any]:
    """One `evaluate` step. number: makes the ids inside its figures unique on the page."""
    from posttrain.report import stages
    from posttrain.report.answers import sampled_answers
    from posttrain.report.calibration import calibration_curves
    from posttrain.report.evolution import evolution
    from posttrain.report.families import families
    from posttrain.report.frontier import frontier
    from posttrain.report.methods import methods_table

    summary, others = summaries[artifact.folder], list(summaries.values())
    return {
        "name": artifact.name,
        "level": summary["level"],
        "models": [model["name"] for model in summary["models"]],
        "families": list(families(summary, artifacts)),
        "stages": stages.stage_table(summary),
        "methods": methods_table(artifact, summaries, artifacts),
        "groups": stages.group_tables(summary),
        "evolution": evolution(summary, f"v{number}"),
        "metrics": stages.metric_tables(summary),
        "calibration": calibration_curves(summary, f"k{number}"),
        "frontier": frontier(summary, others, artifacts, cfg.frontier, f"x{number}"),
        "differences": stages.difference_table(summary),
        "verdicts": stages.verdicts(summary),
        "comparisons": stages.count_comparisons(summary),
        "answers": sampled_answers(artifact, summary, cfg.answers, cfg.seed),
        "seed": summary.get("seed"),
        "limit": summary.get("limit"),
    }


def _lead(evaluations: Sequence[dict[str, Any]], artifacts: Sequence[Artifact]) -> str:
    """What was run, in one sentence."""
    from posttrain.report.costs import cost_table
    from posttrain.report.text import duration, several

    models = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation["families"]))
    tasks = sum(len(evaluation["stages"]["columns"]) for evaluation in evaluations)
    total = cost_table(artifacts)["total"]["seconds"]
    made = several(len(artifacts), "step") + (f", {duration(total)} of work" if total is not None else "")
    if not models:
        return f"{made}; nothing evaluated yet."
    listed = models[0] if len(models) == 1 else ", ".join(models[:-1]) + " and " + models[-1]
    return f"Measured {listed} on {several(tasks, 'task')}; {made} in all."


def render(content: dict[str, Any]) -> str:
    """The page. Everything is escaped but the figures, which this package drew itself."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from posttrain.common.version import VERSION
    from posttrain.report import stages, text

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        amount=text.amount, duration=text.duration, size=text.size, several=text.several
    )
    environment.filters["drawn"] = Markup
    return environment.get_template("page.html.j2").render(
        **content,
        evolves=any(evaluation["evolution"] for evaluation in content["evaluations"]),
        has_answers=any(evaluation["answers"] for evaluation in content["evaluations"]),
        marks={"better": "▲", "worse": "▼", "same": "≈", None: "·"},
        words=stages.words,
        percent=lambda level: f"{100 * level:.0f}\u202f%",
        css=Markup((HERE / "page.css").read_text("utf-8")),
        version=VERSION,
    )


def _visible(value: Any) -> Any:
    """Any text may have come with data (groups, licences, reasons): control characters are shown."""
    from posttrain.report.text import visible

    return visible(value, None).text if type(value) is str else value


def plain(content: Any) -> Any:
    """The same content as JSON can hold it, without the figures."""
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode("utf-8")
    if isinstance(content, dict):
        return {plain(str(key)): plain(value) for key, value in content.items() if key not in _DRAWN}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, "__dataclass_fields__"):
        return {name: plain(getattr(content, name)) for name in content.__dataclass_fields__}
    return content
