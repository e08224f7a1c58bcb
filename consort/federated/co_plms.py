"""The co-tuning round (Co-PLMs, arXiv 2511.11678) in plain Python: broadcast, local rounds, average, cloud,
repeat.

Every finished step is in the journal, so a killed run goes on where it stood, bit for bit. Networks are not
here: a party is whatever answers `local_round`. `docs/paper_index.md` says what is the paper's and what is
our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consort.config import TuneConfig
from consort.errors import ConsortError, RunError
from consort.federated.aggregate import apply_change, check_update
from consort.federated.cloud import Cloud, CloudState, Contribution
from consort.federated.journal import Entry, Journal
from consort.federated.packets import decode_adapter
from consort.federated.party import Party, Update
from consort.types import Adapter

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
    """The end of a run: the cloud's state and every message of it."""

    cloud: CloudState
    traffic: tuple[Traffic, ...]


def co_tune(
    cloud: Cloud,
    parties: Sequence[Party],
    options: TuneConfig,
    *,
    journal: Journal,
    seed: int,
    report: Report = lambda line: None,
) -> Outcome:
    """Run all rounds. A party that fails, or whose update cannot be accepted, is left out of that round and
    reported."""
    state = CloudState.unpacked(
        journal.once("start", lambda: Entry(CloudState({}, cloud.first_broadcast()).packed())).payload
    )
    traffic: list[Traffic] = []
    for round_number in range(options.rounds):
        shared = cloud.decode(state.broadcast)
        contributions: list[Contribution] = []
        for party in _drawn(parties, options.participation, seed, round_number):
            update, failure = _asked(party, shared, round_number, journal, report)
            contribution, failure = _accepted(update, shared, options, failure)
            contributions += [contribution] if contribution else []
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
    return Outcome(state, tuple(traffic))


def _drawn(parties: Sequence[Party], participation: float, seed: int, round_number: int) -> list[Party]:
    """At least one party, in the order given; who, depends on (seed, round) alone."""
    wanted = max(1, round(participation * len(parties)))
    chosen = np.random.default_rng([seed, round_number]).choice(len(parties), wanted, replace=False)
    return [parties[index] for index in sorted(chosen)]


def _asked(
    party: Party, shared: Adapter, round_number: int, journal: Journal, report: Report
) -> tuple[Update | None, str]:
    """The party's update, or why there is none. Both are recorded: a resumed run must repeat the round that
    was."""

    def work() -> Entry:
        report(f"round {round_number + 1}: {party.name} tunes")
        try:
            update = party.local_round(shared, round_number)
        except RunError:  # the run directory itself: nothing more can be recorded
            raise
        except (
            ConsortError,
            RuntimeError,
            OSError,
        ) as error:  # RuntimeError: torch's, for example out of memory
            return Entry(b"", {"failure": f"{type(error).__name__}: {error}"})
        return Entry(update.packet, {"num_examples": update.num_examples}, update.log)

    entry = journal.once(f"round-{round_number}/{party.name}", work)
    if failure := entry.meta.get("failure"):
        return None, str(failure)
    return Update(party.name, round_number, entry.payload, int(entry.meta["num_examples"])), ""


def _accepted(
    update: Update | None, shared: Adapter, options: TuneConfig, failure: str
) -> tuple[Contribution | None, str]:
    if update is None:
        return None, failure
    try:
        adapter = apply_change(shared, decode_adapter(update.packet, base_sha256=shared.base_sha256))
        check_update(adapter, shared, max_norm=options.max_update_norm)
    except ConsortError as error:
        return None, str(error)
    return Contribution(update.party, adapter, update.num_examples), ""


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
