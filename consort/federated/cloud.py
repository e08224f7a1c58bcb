"""The cloud's side of a round: average the devices' adapters, let proxy and LLM teach each other, broadcast
again.

It holds the LLM, the public rows and what the devices let out; it never sees a device's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from consort.config import Config
from consort.errors import ModelError
from consort.federated.aggregate import average_adapters
from consort.federated.journal import Entry
from consort.federated.packets import decode_adapter, encode_adapter
from consort.models.local import LocalModel, load_model
from consort.training.adapters import (
    SHARED,
    base_sha256,
    lora_parameters,
    merged,
    read_adapter,
    read_parameters,
    trainable_part,
    use_adapters,
    write_parameters,
)
from consort.training.answers import answered, made_up
from consort.training.data import Sample
from consort.training.lessons import BridgeBuilder, Example, Learner
from consort.training.loop import LogRow
from consort.training.mutual import Pool, co_train, knowledge_of, pool_of
from consort.training.proxy import load_proxy
from consort.types import Adapter, FloatArray

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Contribution:
    """One device's adapter after its round, and the rows it stands for."""

    party: str
    adapter: Adapter
    num_examples: int


@dataclass(frozen=True, slots=True)
class CloudState:
    """After a round: the LLM's learned weights, and the broadcast of the shared adapter as bytes."""

    llm: Mapping[str, FloatArray]
    broadcast: bytes

    def packed(self) -> bytes:
        """As safetensors."""
        tensors = {f"llm/{name}": np.ascontiguousarray(array) for name, array in self.llm.items()}
        payload: bytes = save_tensors(tensors | {"broadcast": np.frombuffer(self.broadcast, dtype=np.uint8)})
        return payload

    @classmethod
    def unpacked(cls, payload: bytes) -> CloudState:
        """What `packed` wrote."""
        tensors = load_tensors(payload)
        broadcast = tensors.pop("broadcast").tobytes()
        return cls({name.removeprefix("llm/"): array for name, array in tensors.items()}, broadcast)


class Cloud:
    """The owner of the LLM. Stateless between calls: a round's state goes in and comes out, and the journal
    keeps it."""

    def __init__(
        self,
        config: Config,
        public: Sequence[Sample],
        *,
        proxy_dir: Path,
        bridge: BridgeBuilder | None = None,
    ) -> None:
        self.config, self.public = config, public
        self._proxy_dir, self._bridge = proxy_dir, bridge
        self.base_sha256 = base_sha256(load_model(proxy_dir, runtime=config.runtime, name="proxy"))

    def load_llm(self, state: CloudState | None) -> tuple[LocalModel, dict[str, nn.Parameter]]:
        """The LLM as it stands after a round, and the parameters it may learn."""
        cloud = self.config.cloud
        llm = load_model(
            cloud.model, runtime=self.config.runtime, chat_template=cloud.chat_template, name="cloud"
        )
        learned = trainable_part(llm, cloud, seed=self.config.seed)
        if state is not None and state.llm:
            write_parameters(learned, state.llm, where="cloud")
        return llm, learned

    def first_broadcast(self) -> bytes:
        """The fresh shared adapter, which changes nothing yet."""
        proxy = self._proxy(None)
        return encode_adapter(read_adapter(proxy, SHARED), bits=self.config.tune.update_bits, residual=None)[
            0
        ]

    def decode(self, packet: bytes) -> Adapter:
        """A broadcast as an adapter."""
        return decode_adapter(packet, base_sha256=self.base_sha256)

    def absorb(self, contributions: Sequence[Contribution], state: CloudState, round_number: int) -> Entry:
        """Average, co-train the LLM with the proxy, and the state that goes on from here."""
        tune, seed = self.config.tune, self.config.seed + 1000 * round_number + 500
        # 1) the exact average of the products, weighted by examples
        average = average_adapters(
            [each.adapter for each in contributions],
            [each.num_examples for each in contributions],
            previous=self.decode(state.broadcast),
        )
        llm, learned = self.load_llm(state)
        proxy = self._proxy(average.adapter)
        log: list[LogRow] = []
        if tune.cloud_steps > 0:
            # 2) what the proxies make up and answer: each device's own, before averaging could blur it
            pools = [pool_of(self.public)]
            if tune.public_samples > 0:
                mean = Contribution(
                    "proxy", average.adapter, sum(each.num_examples for each in contributions)
                )
                teachers = contributions if tune.cloud_teachers == "each" else [mean]
                lessons = [
                    lesson
                    for number, each in enumerate(teachers)
                    for lesson in self._lessons(each, seed + number)  # other noise for each, or all ask alike
                ]
                pools = [Pool(pools[0].examples, 1 - tune.samples_share), Pool(lessons, tune.samples_share)]
            # 3) SAML in the cloud
            learners = [
                Learner(
                    llm,
                    learned,
                    self.config.cloud.learning_rate,
                    self.config.cloud.max_tokens,
                    kd_weight=tune.cloud_kd_weight,
                ),
                Learner(
                    proxy,
                    lora_parameters(proxy, SHARED),
                    self.config.proxy.cloud_learning_rate,
                    self.config.cloud.max_tokens,
                    prompt_weight=tune.prompt_weight,
                ),
            ]
            log = co_train(learners, pools, tune, steps=tune.cloud_steps, seed=seed, bridge=self._bridge)
        # 4) broadcast
        packet, _ = encode_adapter(read_adapter(proxy, SHARED), bits=tune.update_bits, residual=None)
        after = CloudState(read_parameters(learned), packet)
        rows = tuple({"phase": "cloud", "round": round_number, "party": "cloud", **row} for row in log)
        return Entry(after.packed(), {"truncation_error": average.relative_error}, rows)

    def teach_drafter(self, state: CloudState) -> Entry:
        """The shared adapter as a packet, after it has learned the LLM's distributions over the LLM's own
        greedy answers to public prompts: the text that it will draft (DistillSpec, arXiv 2310.08461).

        It forgets some of what the devices taught it, so it is a copy that drafts; the broadcast stays.
        """
        tune, seed, window = self.config.tune, self.config.seed + 700, self.config.cloud.max_tokens
        llm, _ = self.load_llm(state)
        proxy = self._proxy(self.decode(state.broadcast), name="drafter")
        order = np.random.default_rng(seed).permutation(len(self.public))
        asked = [self.public[index] for index in order[: tune.drafter_steps * tune.batch_rows]]
        replies = answered(
            llm, asked, max_new_tokens=self.config.eval.max_new_tokens, readers=[(proxy, window)]
        )
        if not replies:
            raise ModelError(
                "the LLM leaves every public prompt unanswered, so nothing teaches the drafter",
                where="cloud",
                hint="set tune.drafter_steps = 0",
            )
        log = co_train(
            [
                Learner(proxy, lora_parameters(proxy, SHARED), self.config.proxy.learning_rate, window),
                Learner(llm, max_tokens=window),
            ],
            [pool_of(replies)],
            tune,
            steps=tune.drafter_steps,
            seed=seed,
        )
        packet, _ = encode_adapter(read_adapter(proxy, SHARED), bits=tune.update_bits, residual=None)
        last = {"phase": "drafter", "round": tune.rounds, "party": "cloud"}
        return Entry(packet, {}, tuple({**last, **row} for row in log))

    def _lessons(self, contribution: Contribution, seed: int) -> list[Example]:
        tune, tokens = self.config.tune, self.config.eval.max_new_tokens
        proxy = self._proxy(contribution.adapter, name=contribution.party)
        window = self.config.cloud.max_tokens
        with merged(proxy):
            asked = made_up(proxy, count=tune.public_samples, max_new_tokens=2 * tokens, seed=seed)
            replies = answered(proxy, asked, max_new_tokens=tokens, readers=[(proxy, window)])
            return knowledge_of(Learner(proxy, max_tokens=window), replies, tune)

    def _proxy(self, shared: Adapter | None, *, name: str = "proxy") -> LocalModel:
        proxy = load_proxy(
            self._proxy_dir,
            self.config.proxy,
            self.config.runtime,
            shared=shared,
            seed=self.config.seed,
            name=name,
        )
        use_adapters(proxy, [SHARED])  # domain adapters stay on their devices
        return proxy
