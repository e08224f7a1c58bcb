"""A party owns private data and its own model; what it lets out of a round is one update of the shared
adapter, as a packet.

`Device` is the party of this machine; over a network the same protocol is a thin bridge. Each device keeps
its own journal in its own folder: private weights and adapters never leave it, and a round asked for twice is
answered with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from consort.config import Config, DeviceConfig
from consort.errors import ConsortError
from consort.federated.aggregate import change
from consort.federated.journal import Entry, Journal
from consort.federated.packets import encode_adapter
from consort.models.local import load_model
from consort.training.adapters import (
    DOMAIN,
    SHARED,
    lora_parameters,
    read_adapter,
    read_parameters,
    trainable_part,
    write_parameters,
)
from consort.training.answers import answered
from consort.training.data import Sample
from consort.training.loop import LogRow
from consort.training.mutual import BridgeBuilder, Learner, Pool, co_train, pool_of
from consort.training.proxy import load_proxy
from consort.types import Adapter, FloatArray


@dataclass(frozen=True, slots=True)
class Update:
    """What a party lets out of a round: the packed change of the shared adapter, and how many rows it stands
    for."""

    party: str
    round_number: int
    packet: bytes
    num_examples: int
    log: tuple[LogRow, ...] = ()


class Party(Protocol):
    """One owner of private data."""

    name: str

    def local_round(self, shared: Adapter, round_number: int) -> Update:
        """Tune on private data, starting from the broadcast adapter."""
        ...


@dataclass(frozen=True, slots=True)
class PrivateRows:
    """A device's data in memory; none of it is ever part of an update."""

    train: list[Sample]
    unlabelled: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PrivateState:
    """What a device carries from round to round: its SLM's learned weights, its domain adapter, the rounding
    it still owes."""

    slm: Mapping[str, FloatArray]
    domain: Mapping[str, FloatArray]
    residual: Mapping[str, FloatArray]


class Device:
    """A party on this machine: DST, answers to its unlabelled inputs, SAML, upload (arXiv 2511.11678)."""

    def __init__(
        self,
        device: DeviceConfig,
        config: Config,
        rows: PrivateRows,
        *,
        proxy_dir: Path,
        journal: Journal,
        seed: int,
        bridge: BridgeBuilder | None = None,
    ) -> None:
        self.name = device.name
        self.device, self.config, self.rows = device, config, rows
        self._proxy_dir, self._journal, self._seed, self._bridge = proxy_dir, journal, seed, bridge

    def local_round(self, shared: Adapter, round_number: int) -> Update:
        """The round's update; asked for again, the same bytes."""
        entry = self._journal.once(f"round-{round_number}", lambda: self._round(shared, round_number))
        packet = load_tensors(entry.payload)["packet"].tobytes()
        return Update(
            self.name, round_number, packet, len(self.rows.train), tuple(dict(row) for row in entry.rows)
        )

    def state(self) -> PrivateState | None:
        """The state after the last finished round; None before the first."""
        for round_number in reversed(range(self.config.tune.rounds)):
            if self._journal.done(f"round-{round_number}"):
                return _unpacked(self._journal.once(f"round-{round_number}", _unreachable).payload)
        return None

    def close(self) -> None:
        """Let another process use the device's folder."""
        self._journal.close()

    def _round(self, shared: Adapter, round_number: int) -> Entry:
        tune, before = self.config.tune, self.state()
        seed = self._seed + 1000 * round_number
        proxy = load_proxy(
            self._proxy_dir, self.config.proxy, self.config.runtime, shared=shared, seed=self.config.seed
        )
        slm_config = self.device.slm
        slm = load_model(
            slm_config.model,
            runtime=self.config.runtime,
            chat_template=slm_config.chat_template,
            name=self.name,
        )
        learned = trainable_part(slm, slm_config, seed=self._seed)
        if before is not None:
            write_parameters(learned, before.slm, where=self.name)
            write_parameters(lora_parameters(proxy, DOMAIN), before.domain, where=self.name)
        max_tokens = slm_config.max_tokens

        # 1) DST: the domain adapter learns the private rows over the frozen shared one
        specialist = Learner(
            proxy, lora_parameters(proxy, DOMAIN), self.config.proxy.learning_rate, max_tokens
        )
        lessons = co_train([specialist], [pool_of(self.rows.train)], tune, steps=tune.domain_steps, seed=seed)
        log = _marked("domain", round_number, self.name, lessons)

        # 2) the proxy answers the device's own further inputs, and nothing leaves
        pools = [pool_of(self.rows.train)]
        asked = self.rows.unlabelled[: tune.proxy_answers]
        if asked and tune.answers_share > 0:
            answers = answered(proxy, asked, max_new_tokens=self.config.eval.max_new_tokens)
            pools = [Pool(pools[0].examples, 1 - tune.answers_share), pool_of(answers, tune.answers_share)]

        # 3) SAML: proxy and SLM teach each other across their tokenizers; of the proxy, only what travels
        # learns
        learners = [
            Learner(slm, learned, slm_config.learning_rate, max_tokens, kd_weight=tune.slm_kd_weight),
            Learner(
                proxy,
                lora_parameters(proxy, SHARED),
                self.config.proxy.learning_rate,
                max_tokens,
                kd_weight=tune.proxy_kd_weight,
                prompt_weight=tune.prompt_weight,
            ),
        ]
        lessons = co_train(learners, pools, tune, steps=tune.mutual_steps, seed=seed + 1, bridge=self._bridge)
        log += _marked("mutual", round_number, self.name, lessons)

        # 4) upload the shared adapter's change; what rounding loses is owed to the next round
        owed = (
            None
            if before is None or not before.residual
            else Adapter(before.residual, shared.scaling, shared.base_sha256)
        )
        moved = change(read_adapter(proxy, SHARED), shared)
        packet, residual = encode_adapter(moved, bits=tune.update_bits, residual=owed)
        state = PrivateState(
            read_parameters(learned),
            read_parameters(lora_parameters(proxy, DOMAIN)),
            {} if residual is None else residual.tensors,
        )
        return Entry(_packed(state, packet), {"num_examples": len(self.rows.train)}, tuple(log))


def _marked(phase: str, round_number: int, party: str, log: list[LogRow]) -> list[LogRow]:
    return [{"phase": phase, "round": round_number, "party": party, **row} for row in log]


def _packed(state: PrivateState, packet: bytes) -> bytes:
    tensors = {"packet": np.frombuffer(packet, dtype=np.uint8)}
    for part in ("slm", "domain", "residual"):
        tensors |= {
            f"{part}/{name}": np.ascontiguousarray(array) for name, array in getattr(state, part).items()
        }
    payload: bytes = save_tensors(tensors)
    return payload


def _unpacked(payload: bytes) -> PrivateState:
    parts: dict[str, dict[str, FloatArray]] = {"slm": {}, "domain": {}, "residual": {}}
    for name, array in load_tensors(payload).items():
        if name != "packet":
            part, _, rest = name.partition("/")
            parts[part][rest] = array
    return PrivateState(**parts)


def _unreachable() -> Entry:
    raise ConsortError("a finished round is missing from the device's journal")
