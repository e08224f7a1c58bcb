"""The co-tuning round (Co-PLMs, arXiv 2511.11678) in plain Python: broadcast, local rounds, average, cloud,
repeat.

Every finished step is in the journal, so a killed run goes on where it stood, bit for bit. Networks are not
here: a party is whatever answers `local_round`. `docs/paper_index.md` says what is the paper's and what is
our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from consort.config import TuneConfig
from consort.errors import ConsortError, DeviceError, RunError
from consort.federated.aggregate import apply_change, check_update, outlier_limit
from consort.federated.cloud import Cloud, CloudState, Contribution
from consort.federated.journal import Compute, Entry, Journal, one_by_one
from consort.federated.packets import decode_adapter
from consort.federated.party import FAILURES, Party, Update, kind_of_failure
from consort.problems import size
from consort.types import Adapter

MOST_EXAMPLES = 1 << 40  # more rows than any device has: a number that nobody counted
Report = Callable[[str], None]  # a line for a person, as things happen


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one device sent and received in one round."""

    party: str
    round_number: int
    uplink_bytes: int
    downlink_bytes: int
    num_examples: int
    left_out: str = ""  # why its update did not enter the average


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run: the cloud's state, every message, and the shared adapter that drafts, as a packet
    which a device fetches when it serves."""

    cloud: CloudState
    traffic: tuple[Traffic, ...]
    drafter: bytes


def co_tune(
    cloud: Cloud,
    parties: Sequence[Party],
    options: TuneConfig,
    *,
    journal: Journal,
    seed: int,
    compute: Compute = one_by_one,
    report: Report = lambda line: None,
) -> Outcome:
    """Run all rounds; `compute` says which parties of a round tune at the same time.

    A party that fails, or whose update cannot be accepted, is left out of that round and reported.
    """
    state = CloudState.unpacked(
        journal.once("start", lambda: Entry(CloudState({}, cloud.first_broadcast()).packed())).payload
    )
    traffic: list[Traffic] = []
    for round_number in range(options.rounds):
        shared = cloud.decode(state.broadcast)
        drawn = _drawn(parties, options.participation, seed, round_number)
        updates = _asked(drawn, shared, round_number, journal, compute, report)
        judged = _compared([_accepted(*each, shared, options) for each in updates], options.outlier_ratio)
        contributions = [each.contribution for each in judged if each.contribution]
        for party, (update, _), (contribution, _, failure) in zip(drawn, updates, judged, strict=True):
            if failure:
                report(f"round {round_number + 1}: {party.name} is left out: {failure}")
            traffic.append(
                Traffic(
                    party.name,
                    round_number,
                    uplink_bytes=len(update.packet) if update else 0,
                    downlink_bytes=len(state.broadcast),
                    num_examples=contribution.num_examples if contribution else 0,
                    left_out=failure,
                )
            )
        if not contributions:
            raise ConsortError(
                f"no device completed round {round_number + 1}",
                hint="; ".join(f"{each.party}: {each.left_out}" for each in traffic[-len(parties) :]),
            )
        report(f"round {round_number + 1}: cloud learns from {len(contributions)} devices")
        state = CloudState.unpacked(_absorbed(cloud, contributions, state, round_number, journal).payload)
    return Outcome(state, tuple(traffic), _drafter(cloud, state, options, journal, report))


def num_drawn(parties: int, participation: float) -> int:
    """How many parties tune in a round."""
    return max(1, round(participation * parties))


def _drawn(parties: Sequence[Party], participation: float, seed: int, round_number: int) -> list[Party]:
    """At least one party, in the order given; who, depends on (seed, round) alone."""
    wanted = num_drawn(len(parties), participation)
    chosen = np.random.default_rng([seed, round_number]).choice(len(parties), wanted, replace=False)
    return [parties[index] for index in sorted(chosen)]


def _asked(
    parties: Sequence[Party],
    shared: Adapter,
    round_number: int,
    journal: Journal,
    compute: Compute,
    report: Report,
) -> list[tuple[Update | None, str]]:
    """Each party's update, or why there is none. Both are recorded: a resumed run must repeat the round that
    was."""
    keys = {f"round-{round_number}/{party.name}": party for party in parties}
    missing = [party.name for key, party in keys.items() if not journal.done(key)]
    if missing:
        report(f"round {round_number + 1}: {', '.join(missing)} {'tunes' if len(missing) == 1 else 'tune'}")

    def on_new(key: str, entry: Entry) -> None:
        if not entry.meta.get("failure"):
            sent = f"{size(len(entry.payload))} sent"
            report(f"round {round_number + 1}: {keys[key].name} is done, {sent}{_progress(entry, keys[key])}")

    works = {key: partial(_local_round, party, shared, round_number) for key, party in keys.items()}
    entries = journal.once_each(works, compute, on_new=on_new)
    updates: list[tuple[Update | None, str]] = []
    for key, party in keys.items():
        entry = entries[key]
        if failure := entry.meta.get("failure"):
            updates.append((None, str(failure)))
        else:
            examples = entry.meta["num_examples"]
            updates.append((Update(party.name, round_number, entry.payload, examples), ""))
    return updates


def _local_round(party: Party, shared: Adapter, round_number: int) -> Entry:
    try:
        update = party.local_round(shared, round_number)
    except RunError:  # the run directory itself: nothing more can be recorded
        raise
    except DeviceError as error:
        return Entry(b"", {"failure": f"{error.what}; {error.hint}"})
    except FAILURES as error:  # its message may quote a row, and this record is the cloud's
        return Entry(b"", {"failure": kind_of_failure(error)})
    return Entry(update.packet, {"num_examples": update.num_examples}, update.log)


def _progress(entry: Entry, party: Party) -> str:
    """How far the party's own model came in this round, where its log says so."""
    losses = [row[f"{party.name}/ce"] for row in entry.rows if f"{party.name}/ce" in row]
    return f", loss {losses[0]:.2f} to {losses[-1]:.2f}" if losses else ""


class _Judged(NamedTuple):
    """What of an update enters the average, how far it moves the model, and why it does not."""

    contribution: Contribution | None
    norm: float
    failure: str


def _accepted(update: Update | None, failure: str, shared: Adapter, options: TuneConfig) -> _Judged:
    """The update on its own: readable, of this base, finite, weighted by a number of rows."""
    if update is None:
        return _Judged(None, 0.0, failure)
    try:
        adapter = apply_change(shared, decode_adapter(update.packet, base_sha256=shared.base_sha256))
        norm = check_update(adapter, shared, max_norm=options.max_update_norm)
    except ConsortError as error:
        return _Judged(None, 0.0, str(error))
    rows = update.num_examples
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= MOST_EXAMPLES:
        return _Judged(None, 0.0, f"it claims {rows!r:.20} training rows")
    return _Judged(Contribution(update.party, adapter, rows), norm, "")


def _compared(judged: Sequence[_Judged], ratio: float) -> list[_Judged]:
    """The round's updates beside each other: what stands out is refused, or its rows count for less."""
    accepted = [each for each in judged if each.contribution]
    norm_limit = outlier_limit([each.norm for each in accepted], ratio)
    rows_limit = outlier_limit(
        [each.contribution.num_examples for each in accepted if each.contribution], ratio
    )
    return [_limited(each, norm_limit, rows_limit) if each.contribution else each for each in judged]


def _limited(judged: _Judged, norm_limit: float, rows_limit: float) -> _Judged:
    assert judged.contribution is not None, "only accepted updates are compared"
    if judged.norm > norm_limit:
        says = f"the update changes the model by {judged.norm:.4g}, this round's limit is {norm_limit:.4g}"
        return _Judged(None, 0.0, f"{says} (tune.outlier_ratio times the median)")
    rows = judged.contribution.num_examples
    if rows <= rows_limit:
        return judged
    return judged._replace(contribution=replace(judged.contribution, num_examples=max(1, int(rows_limit))))


def _drafter(cloud: Cloud, state: CloudState, options: TuneConfig, journal: Journal, report: Report) -> bytes:
    if options.drafter_steps == 0:
        return state.broadcast
    report(f"the proxy learns to draft for the cloud model: {options.drafter_steps} steps")
    return journal.once("drafter", lambda: cloud.teach_drafter(state)).payload


def _absorbed(
    cloud: Cloud,
    contributions: Sequence[Contribution],
    state: CloudState,
    round_number: int,
    journal: Journal,
) -> Entry:
    return journal.once(
        f"round-{round_number}/cloud", lambda: cloud.absorb(contributions, state, round_number)
    )
