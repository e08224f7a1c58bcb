"""A party owns private data and its own model; what it lets out of a round is one update of the shared
adapter, as a packet.

`Device` is the party of this machine; over a network the same protocol is a thin bridge. Each device keeps
its own journal in its own folder: private weights and adapters never leave it, and a round asked for twice is
answered with the same bytes.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from consort.config import Config, DeviceConfig
from consort.config_file import fingerprint
from consort.errors import ConsortError, DeviceError, RunError
from consort.federated.aggregate import change
from consort.federated.journal import Entry, Journal
from consort.federated.packets import encode_adapter
from consort.models.local import LocalModel, load_model
from consort.training.adapters import (
    DOMAIN,
    SHARED,
    lora_parameters,
    merged,
    read_adapter,
    read_parameters,
    trainable_part,
    use_adapters,
    write_parameters,
)
from consort.training.answers import answered
from consort.training.data import Sample
from consort.training.lessons import BridgeBuilder, Example, Learner
from consort.training.loop import LogRow
from consort.training.mutual import Pool, co_train, knowledge_of, pool_of
from consort.training.proxy import load_proxy, speak_for_device
from consort.types import Adapter, FloatArray

# What can go wrong in a round without being our own mistake; RuntimeError is torch's, as out of memory.
FAILURES = (ConsortError, RuntimeError, OSError, MemoryError, ValueError, LookupError, ArithmeticError)
FAILURES_LOG = "failures.log"  # in a device's folder
_DST, _SLM_ALONE, _BOTH = 0, 1, 2  # a round's phases, each with a random stream of its own


@dataclass(frozen=True, slots=True)
class Update:
    """What a party lets out of a round: the packed change of the shared adapter, how many rows it stands for,
    and (`tune.send_losses`) the losses of its logged steps."""

    party: str
    round_number: int
    packet: bytes
    num_examples: int
    log: tuple[LogRow, ...] = ()


class Party(Protocol):
    """One owner of private data."""

    @property
    def name(self) -> str:
        """What the party is called in a run."""
        ...

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

    def packed(self, packet: bytes) -> bytes:
        """As safetensors, together with the packet that the same round let out: both are kept, or neither."""
        tensors = {"packet": np.frombuffer(packet, dtype=np.uint8)}
        for part in ("slm", "domain", "residual"):
            values: Mapping[str, FloatArray] = getattr(self, part)
            tensors |= {f"{part}/{name}": np.ascontiguousarray(array) for name, array in values.items()}
        payload: bytes = save_tensors(tensors)
        return payload

    @classmethod
    def unpacked(cls, payload: bytes) -> PrivateState:
        """What `packed` wrote, without the packet."""
        parts: dict[str, dict[str, FloatArray]] = {"slm": {}, "domain": {}, "residual": {}}
        for name, array in load_tensors(payload).items():
            if name != "packet":
                part, _, rest = name.partition("/")
                parts[part][rest] = array
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class Device:
    """A party on this machine: DST, answers to its unlabelled inputs, SAML, upload (arXiv 2511.11678).

    Its state is in its `folder` and in the journal there; the object itself can be sent to another process.
    """

    device: DeviceConfig
    config: Config
    rows: PrivateRows
    proxy_dir: Path
    folder: Path
    seed: int
    bridge: BridgeBuilder | None = None

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    def local_round(self, shared: Adapter, round_number: int) -> Update:
        """The round's update; asked for again, the same bytes. A failure is told in full in the device's
        folder, and by its kind alone in the DeviceError that leaves it."""
        try:
            with self._journal() as journal:
                before = self._state(journal, round_number)
                entry = journal.once(_key(round_number), lambda: self._round(shared, before, round_number))
        except RunError:  # the folder itself: nothing can be recorded
            raise
        except FAILURES as error:
            self._keep_failure(error, round_number)
            raise DeviceError(
                kind_of_failure(error), where=self.name, hint=f"its {self._failures_log()} says more"
            ) from None
        packet = load_tensors(entry.payload)["packet"].tobytes()
        log = tuple(dict(row) for row in entry.rows) if self.config.tune.send_losses else ()
        return Update(self.name, round_number, packet, len(self.rows.train), log)

    def state(self) -> PrivateState | None:
        """The state after the last finished round; None before the first."""
        with self._journal() as journal:
            return self._state(journal, self.config.tune.rounds)

    def _journal(self) -> Journal:
        return Journal.open(self.folder, fingerprint=fingerprint(self.config), resume=True)

    def _failures_log(self) -> Path:
        """As `devices/bank/failures.log`: where the run's directory lies is the device's own affair."""
        return Path(*self.folder.parts[-2:]) / FAILURES_LOG

    def _keep_failure(self, error: BaseException, round_number: int) -> None:
        text = f"round {round_number + 1}\n{''.join(traceback.format_exception(error))}\n"
        with suppress(OSError), (self.folder / FAILURES_LOG).open("a", encoding="utf-8") as log:
            log.write(text)

    def _state(self, journal: Journal, round_number: int) -> PrivateState | None:
        """After the last round that was finished before this one."""
        for earlier in reversed(range(round_number)):
            if journal.done(_key(earlier)):
                return PrivateState.unpacked(journal.once(_key(earlier), _unreachable).payload)
        return None

    def _round(self, shared: Adapter, before: PrivateState | None, round_number: int) -> Entry:
        tune = self.config.tune
        proxy, slm = self._load(shared, before)
        # a proxy that has learned these rows' answers says little more of them than the answers do
        own: list[Example] = []
        if tune.labelled_teacher != "specialised":
            use_adapters(proxy, [SHARED] if tune.labelled_teacher == "broadcast" else [])
            own = self._taught(proxy, self.rows.train)
        log = self._specialise(proxy, round_number)
        speak_for_device(proxy, self.config.proxy)
        own = own or self._taught(proxy, self.rows.train)
        further = self._taught(proxy, self._further_rows(proxy, slm, round_number))
        share = tune.answers_share if further else 0.0
        log += self._learn_mutually(proxy, slm, [Pool(own, 1 - share), Pool(further, share)], round_number)
        # upload the shared adapter's change; what rounding loses is owed to the next round
        owed = before.residual if before else {}
        packet, residual = encode_adapter(
            change(read_adapter(proxy, SHARED), shared),
            bits=tune.update_bits,
            residual=Adapter(owed, shared.scaling, shared.base_sha256) if owed else None,
        )
        state = PrivateState(
            read_parameters(slm.parameters),
            read_parameters(lora_parameters(proxy, DOMAIN)),
            residual.tensors if residual else {},
        )
        return Entry(state.packed(packet), {"num_examples": len(self.rows.train)}, tuple(log))

    def _load(self, shared: Adapter, before: PrivateState | None) -> tuple[LocalModel, Learner]:
        """The proxy under the broadcast and the device's own adapter, and the SLM, as the last round left
        them."""
        runtime, settings = self.config.runtime, self.device.slm
        proxy = load_proxy(self.proxy_dir, self.config.proxy, runtime, shared=shared, seed=self.config.seed)
        slm = load_model(
            settings.model, runtime=runtime, chat_template=settings.chat_template, name=self.name
        )
        learned = trainable_part(slm, settings, seed=self.seed)
        if before is not None:
            write_parameters(learned, before.slm, where=self.name)
            write_parameters(lora_parameters(proxy, DOMAIN), before.domain, where=self.name)
        kd_weight = self.config.tune.slm_kd_weight
        return proxy, Learner(slm, learned, settings.learning_rate, settings.max_tokens, kd_weight)

    def _specialise(self, proxy: LocalModel, round_number: int) -> list[LogRow]:
        """DST: the domain adapter learns the private rows over the frozen shared one."""
        steps = self.config.tune.domain_steps
        use_adapters(proxy, [SHARED, DOMAIN])
        rate, max_tokens = self.config.proxy.learning_rate, self.device.slm.max_tokens
        learner = Learner(proxy, lora_parameters(proxy, DOMAIN), rate, max_tokens)
        pools = [pool_of(self.rows.train)]
        return self._train([learner], pools, "domain", round_number, range(steps), steps, stream=_DST)

    def _further_rows(self, proxy: LocalModel, slm: Learner, round_number: int) -> list[Sample]:
        """This round's share of the further inputs, answered by the specialised proxy on the device."""
        tune = self.config.tune
        asked = self.rows.unlabelled[: tune.proxy_answers][round_number :: tune.rounds]
        with merged(proxy):
            return answered(
                proxy,
                asked,
                max_new_tokens=self.config.eval.max_new_tokens,
                readers=[(slm.model, slm.max_tokens), (proxy, slm.max_tokens)],
            )

    def _taught(self, proxy: LocalModel, rows: list[Sample]) -> list[Example]:
        """The rows with what the proxy, as it is now, says about each answer, computed once."""
        with merged(proxy):
            return knowledge_of(Learner(proxy, max_tokens=self.device.slm.max_tokens), rows, self.config.tune)

    def _learn_mutually(
        self, proxy: LocalModel, slm: Learner, pools: list[Pool], round_number: int
    ) -> list[LogRow]:
        """SAML: the SLM learns from what the proxy said; in the last steps, when it has something to say, it
        teaches the part that travels. That part learns without the domain adapter, as it will work
        without it in the cloud.
        """
        tune = self.config.tune
        both = round(tune.mutual_steps * tune.proxy_share)
        first = round_number * tune.mutual_steps
        steps = range(first, first + tune.mutual_steps)
        total = tune.rounds * tune.mutual_steps
        log: list[LogRow] = []
        if both < tune.mutual_steps:
            log += self._train(
                [slm], pools, "mutual", round_number, steps[: len(steps) - both], total, stream=_SLM_ALONE
            )
        if both:
            use_adapters(proxy, [SHARED])
            traveller = Learner(
                proxy,
                lora_parameters(proxy, SHARED),
                self.config.proxy.learning_rate,
                self.device.slm.max_tokens,
                tune.proxy_kd_weight,
                tune.prompt_weight,
            )
            log += self._train(
                [slm, traveller], pools, "mutual", round_number, steps[-both:], total, stream=_BOTH
            )
        return log

    def _train(
        self,
        learners: list[Learner],
        pools: list[Pool],
        phase: str,
        round_number: int,
        steps: range,
        total: int,
        *,
        stream: int,
    ) -> list[LogRow]:
        log = co_train(
            learners,
            pools,
            self.config.tune,
            steps=len(steps),
            seed=1000 * self.seed + 10 * round_number + stream,
            done=steps.start,
            total=total,
            bridge=self.bridge,
        )
        where: LogRow = {"phase": phase, "round": round_number, "party": self.name}
        return [where | row | {"step": steps.start + int(row["step"])} for row in log]


def kind_of_failure(error: BaseException) -> str:
    """All that may be said of a failure beyond its device: messages can quote rows."""
    name = type(error).__name__
    return f"{name} ({error.code})" if isinstance(error, ConsortError) else name


def _key(round_number: int) -> str:
    return f"round-{round_number}"


def _unreachable() -> Entry:
    raise ConsortError("a finished round is missing from the device's journal")
