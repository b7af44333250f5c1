"""The tasks: what is counted, what is in the third state, what is paired."""

import pytest

from posttrain.common.registry import resolve
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.task import EvalContext
from posttrain.playground.areas import AREAS
from posttrain.playground.question import spec_of
from posttrain.playground.tasks import Arithmetic, Atlas, Everything, Format, Letters
from posttrain.playground.world import rng_for
from posttrain.records import Response


class Scripted(EvalContext):
    """A context whose model is the expert in some manner, or somebody who never stops."""

    def __init__(self, manner, limit=None):
        super().__init__("nowhere", limit=limit)
        self.manner = manner
        self.params = "never asked"

    def respond(self, prompts, params=None):
        self.params = params
        return [(self._answer(prompt),) for prompt in prompts]

    def _answer(self, prompt):
        world, area, key = spec_of(prompt)
        if self.manner == "runs on":
            return Response(text="The capital", token_ids=(1,), finish="length")
        text = AREAS[area].write(world, key, self.manner, rng_for(key))
        return Response(text=text, token_ids=(1,), finish="stop")


def mean(outcomes, metric):
    values = [outcome.metrics[metric] for outcome in outcomes]
    return sum(values) / len(values)


def test_the_expert_is_perfect_and_its_curt_self_is_not():
    complete = Everything(n=80).evaluate(Scripted("complete"))
    curt = Everything(n=80).evaluate(Scripted("curt"))
    assert mean(complete, "score") == mean(complete, "answers") == mean(curt, "answers") == 1
    assert 0.45 < mean(curt, "score") < 0.65
    assert [o.item for o in complete] == [o.item for o in curt]
    assert len({o.item for o in complete}) == 80
    assert {o.group for o in complete} == set(AREAS)


def test_an_answer_cut_off_is_no_answer_and_nothing_else_is_known_of_it():
    for outcome in Everything(n=8).evaluate(Scripted("runs on")):
        assert outcome.metrics == {"answers": 0.0, "score": None, "correct": None}
        assert outcome.note == "cut off"


def test_the_atlas_tells_correct_declined_and_incorrect_apart():
    honest = Atlas(n=60).evaluate(Scripted("complete"))
    for outcome in honest:
        told = {name for name in ("correct", "declined", "incorrect") if outcome.metrics[name]}
        assert told == ({"declined"} if outcome.group == "unknown" else {"correct"})
    bluffing = Atlas(n=60).evaluate(Scripted("wrong"))
    assert mean(bluffing, "incorrect") == 1


def test_two_wordings_of_one_question_share_a_cluster():
    outcomes = Atlas(n=100).evaluate(Scripted("complete"))
    assert len({o.cluster for o in outcomes}) < len({o.item for o in outcomes}) == 100


@pytest.mark.parametrize(
    ("task", "groups", "perfect"),
    [
        (Arithmetic, {"1", "2", "3", "4", "5"}, {"correct", "worked"}),
        (Format, {"list", "words", "begin"}, {"obeyed", "rules"}),
        (Letters, {"decline", "accept", "borrow", "return"}, {"correct", "complete", "polite"}),
    ],
)
def test_each_area_has_its_own_measures(task, groups, perfect):
    outcomes = task(n=60).evaluate(Scripted("complete"))
    assert {o.group for o in outcomes} == groups
    assert all(mean(outcomes, metric) == 1 for metric in perfect)
    curt = task(n=60).evaluate(Scripted("curt"))
    assert min(mean(curt, metric) for metric in perfect) < 0.5
    assert task.headline in outcomes[0].metrics


def test_a_task_alone_asks_what_the_whole_asks_of_its_area():
    whole = {o.item for o in Everything(n=80).evaluate(Scripted("complete")) if o.group == "format"}
    assert whole == {o.item for o in Format(n=20).evaluate(Scripted("complete"))}


def test_limit_and_sampling_reach_the_context():
    ctx = Scripted("complete", limit=5)
    assert len(Letters(n=20, sampling=SamplingParams(temperature=0)).evaluate(ctx)) == 5
    assert ctx.params.temperature == 0
    Letters(n=20).evaluate(ctx)
    assert ctx.params is None


def test_only_restricts_what_is_asked():
    outcomes = Atlas(n=10, only={"group": ("unknown",)}).evaluate(Scripted("complete"))
    assert {o.group for o in outcomes} == {"unknown"}


@pytest.mark.parametrize("name", ["oracle", "atlas", "arithmetic", "format", "letters"])
def test_tasks_are_found_by_name(name):
    assert resolve("tasks", f"playground/{name}", {})().applicable("policy")
