"""Which examples share a tree: as the trees themselves would say, without making each of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from posttrain.models.forest import Branch
from posttrain.training.families import together, tree_of_all
from posttrain.training.methods.base import Example

# few tokens, so that much is shared, and branches that end within one another
_TOKENS = st.lists(st.integers(0, 1), min_size=2, max_size=7)
_BRANCH = st.tuples(_TOKENS, st.integers(1, 3)).map(
    lambda each: Branch(each[0], [i >= each[1] for i in range(len(each[0]))])
)
_EXAMPLE = st.tuples(st.lists(_BRANCH, min_size=1, max_size=3), st.sampled_from(["", "a", "b"])).map(
    lambda each: Example("", tuple(each[0]), {}, family=each[1])
)


@given(st.lists(_EXAMPLE, max_size=12), st.integers(1, 40))
def test_groups_are_as_large_as_their_trees_allow(examples, budget):
    groups = together(examples, budget)
    assert [i for group in groups for i in group] == [*range(len(examples))]
    for group, after in itertools.zip_longest(groups, groups[1:]):
        families = {examples[i].family for i in group}
        assert len(group) == 1 or (len(families) == 1 and "" not in families)
        assert len(group) == 1 or tree_of_all([examples[i] for i in group]).size <= budget
        if after is not None and families == {examples[after[0]].family} != {""}:
            assert tree_of_all([examples[i] for i in (*group, after[0])]).size > budget


def test_hundreds_of_pairs_of_one_prompt_are_grouped_in_a_moment():
    """Each by a tree of its own, and all before it, took half a minute."""
    prompt = [*range(25)]
    answers = [Branch([*prompt, 100 + i % 300], [False] * 25 + [True]) for i in range(1800)]
    pairs = [Example("", (answers[2 * i], answers[2 * i + 1]), {}, family="x") for i in range(900)]
    assert together(pairs, 325) == [[*range(900)]]
    assert len(together(pairs, 324)) > 1
