"""Drafts: trees of token ids that somebody thinks an answer will go on with, and what is done with them.

A draft never changes an answer, it only lets a model write several tokens in one pass (speculative decoding,
arXiv 2211.17192; trees: SpecInfer, arXiv 2305.09781). Computes no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from consort.types import Draft

NOTHING = Draft((), ())
MOST_NODES = 256  # that are kept of an answer's drafts


def chain(ids: Sequence[int]) -> Draft:
    """A draft without branches."""
    return Draft(tuple(ids), tuple(range(-1, len(ids) - 1)))


def is_chain(parents: Sequence[int]) -> bool:
    """Whether each node follows the one before it."""
    return tuple(parents) == tuple(range(-1, len(parents) - 1))


def is_sound(draft: Draft, vocabulary_size: int) -> bool:
    """Whether each node is a token, and stands below an earlier one or below the answer."""
    return (
        len(draft.ids) == len(draft.parents)
        and all(-1 <= parent < node for node, parent in enumerate(draft.parents))
        and all(0 <= token < vocabulary_size for token in draft.ids)
    )


def child(draft: Draft, node: int, token: int) -> int | None:
    """The node below `node` (-1: the root) that drafts the token; None if nobody did."""
    for index in range(node + 1, len(draft.ids)):
        if draft.parents[index] == node and draft.ids[index] == token:
            return index
    return None


def below(draft: Draft, tokens: Sequence[int]) -> Draft:
    """What the draft says after `tokens`: nothing where it did not foresee them."""
    node = -1
    for token in tokens:
        found = child(draft, node, token)
        if found is None:
            return NOTHING
        node = found
    if node < 0:
        return draft
    places = {node: -1}  # of the nodes that stay: old to new
    ids: list[int] = []
    parents: list[int] = []
    for index in range(node + 1, len(draft.ids)):
        if (above := places.get(draft.parents[index])) is not None:
            places[index] = len(ids)
            ids.append(draft.ids[index])
            parents.append(above)
    return Draft(tuple(ids), tuple(parents))


def first_path(draft: Draft) -> list[int]:
    """The nodes from the root down, taking each node's first child: what the drafter thought likeliest."""
    path, node = [], -1
    for index, parent in enumerate(draft.parents):
        if parent == node:
            path.append(index)
            node = index
    return path


def attached(draft: Draft, depth: int, more: Draft) -> Draft | None:
    """`more` put after the first path, which must be `depth` long; None where it is not."""
    path = first_path(draft)
    if len(path) != depth:
        return None
    end, shift = (path[-1] if path else -1), len(draft.ids)
    parents = tuple(end if parent < 0 else parent + shift for parent in more.parents)
    return Draft(draft.ids + more.ids, draft.parents + parents)


def joined(draft: Draft, written: Sequence[int], begins: int, more: Draft) -> Draft:
    """The drafts after `written` tokens of an answer, when `more` comes, which begins after `begins` of them.

    `more` that begins earlier replaces what there was if the answer went its way; `more` that begins later
    continues the first path. Whatever fits nowhere is left out.
    """
    if begins <= len(written):
        fresh = below(more, written[begins:])
        return fresh if fresh.ids else draft
    longer = attached(draft, begins - len(written), more)
    return draft if longer is None else cut(longer, nodes=MOST_NODES, depth=MOST_NODES)


def depths(parents: Sequence[int]) -> list[int]:
    """Each node's distance from the root's children: 0 for those."""
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent < 0 else found[parent] + 1)
    return found


def cut(draft: Draft, *, nodes: int, depth: int) -> Draft:
    """At most the first `nodes` nodes, and none deeper than `depth` tokens."""
    if len(draft.ids) <= nodes and len(draft.ids) <= depth:
        return draft
    places = {-1: -1}
    ids: list[int] = []
    parents: list[int] = []
    for index, deep in enumerate(depths(draft.parents)):
        if deep < depth and len(ids) < nodes:
            places[index] = len(ids)
            ids.append(draft.ids[index])
            parents.append(places[draft.parents[index]])
    return Draft(tuple(ids), tuple(parents))
