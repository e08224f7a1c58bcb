"""Trees of drafts are sets of paths: what comes after a token, what is attached, what is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consort.models.drafts import (
    NOTHING,
    attached,
    below,
    chain,
    cut,
    depths,
    first_path,
    is_chain,
    is_sound,
    joined,
)
from consort.types import Draft

TOKENS = st.lists(st.integers(0, 3), max_size=6)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    ids: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(0, 12))):
        parent, token = draw(st.integers(-1, len(ids) - 1)), draw(st.integers(0, 3))
        if (parent, token) not in zip(parents, ids, strict=True):
            ids.append(token)
            parents.append(parent)
    return Draft(tuple(ids), tuple(parents))


def path(draft: Draft, node: int) -> tuple[int, ...]:
    return () if node < 0 else (*path(draft, draft.parents[node]), draft.ids[node])


def paths(draft: Draft) -> set[tuple[int, ...]]:
    return {path(draft, node) for node in range(len(draft.ids))}


@given(drafts(), TOKENS)
def test_below_are_the_paths_that_go_on(draft, tokens):
    begun = tuple(tokens)
    wanted = {each[len(begun) :] for each in paths(draft) if each[: len(begun)] == begun} - {()}
    found = below(draft, tokens)
    assert paths(found) == wanted
    assert is_sound(found, 4)


@given(drafts(), TOKENS, TOKENS)
def test_below_goes_step_by_step(draft, some, more):
    assert below(below(draft, some), more).ids == below(draft, [*some, *more]).ids


@given(drafts(), drafts())
def test_attached_continues_the_first_path_and_only_it(draft, more):
    main = tuple(draft.ids[node] for node in first_path(draft))
    longer = attached(draft, len(main), more)
    assert longer is not None
    assert paths(longer) == paths(draft) | {main + each for each in paths(more)}
    assert attached(draft, len(main) + 1, more) is None


@given(drafts(), TOKENS, st.integers(0, 9), drafts())
def test_what_is_joined_is_what_the_answer_may_still_become(draft, written, begins, more):
    found = joined(draft, written, begins, more)
    if begins <= len(written):
        fresh = below(more, written[begins:])
        assert found == (fresh if fresh.ids else draft)
    else:
        assert paths(draft) <= paths(found)


@given(drafts(), st.integers(0, 8), st.integers(0, 4))
def test_what_is_cut_keeps_its_roots(draft, nodes, depth):
    found = cut(draft, nodes=nodes, depth=depth)
    assert is_sound(found, 4)
    assert len(found.ids) <= nodes
    assert max(depths(found.parents), default=-1) < depth
    assert paths(found) <= paths(draft)
    assert cut(draft, nodes=100, depth=100) == draft


@given(TOKENS)
def test_a_chain_is_its_first_path(tokens):
    draft = chain(tokens)
    assert is_chain(draft.parents)
    assert [draft.ids[node] for node in first_path(draft)] == tokens
    assert below(draft, tokens) == NOTHING
