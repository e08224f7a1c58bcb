"""The configuration of a run: `consort.toml` as frozen dataclasses. Every field has a default, a unit and a
reason.

Reading, overriding (`--set a.b=c`) and checking live in `config_file`; nothing here touches a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from consort.config_serve import ServeConfig

Trainable: TypeAlias = Literal["lora", "full"]
Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A language model and the part of it that may learn."""

    model: str = ""  # Hub id, local directory or zoo:NAME; empty is an error for cloud and devices
    trainable: Trainable = "lora"  # small models (< 100M) tune better in full: docs/LOG.md
    lora_rank: int = 8  # of trainable = "lora"
    lora_alpha: float = 16.0  # update = alpha / rank * B A
    lora_targets: str = "all-linear"  # or module names, separated by commas
    learning_rate: float = 2e-4  # peak; linear warm-up over 5 % of the steps, cosine down to 10 %
    max_tokens: int = 512  # longest prompt + answer, tokens; longer prompts lose their beginning
    chat_template: str = ""  # a Jinja file, for a model whose tokenizer brings none


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The distilled proxy: small, with the cloud's tokenizer, one copy on every device."""

    model: str = (
        ""  # Hub id, directory or zoo:NAME with the cloud's tokenizer; empty: pruned from the cloud model
    )
    layers: int = 0  # layers kept when pruned from the cloud model; 0 keeps half
    width: float = 1.0  # share of the feed-forward width kept when pruned
    distil_steps: int = 300  # steps of CE + KL to the cloud on the public set; 0 takes the proxy as it is
    distil_learning_rate: float = 1e-3  # peak, as every learning rate here
    distil_prompt_weight: float = (
        0.3  # of cross-entropy on prompts: without it the proxy cannot make up prompts (docs/LOG.md)
    )
    learning_rate: float = 1e-3  # of both adapters on a device
    cloud_learning_rate: float = (
        1e-3  # of the shared adapter in the cloud: lower, or it forgets the public rows
    )
    shared_rank: int = 8  # the LoRA that travels
    domain_rank: int = 8  # the LoRA that never leaves its device
    domain_share: float = 0.6  # of what that LoRA learned, when the proxy answers and teaches on its device


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One owner of private data, with its own small model."""

    name: str = ""
    data: str = ""  # a directory with train/valid/test.jsonl, or one JSONL file of training rows
    unlabelled: str = ""  # further inputs without answers, which the proxy answers on the device
    memory_gb: float = 0.0  # what the device has, refused as this machine's memory is; 0 does not check
    slm: ModelConfig = field(default_factory=lambda: ModelConfig(trainable="full", learning_rate=1e-3))


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """The co-tuning round (Co-PLMs, arXiv 2511.11678); docs/paper_index.md says what of it is our choice."""

    rounds: int = 2  # broadcast, local tuning, average, cloud: so often
    domain_steps: int = 60  # DST a round: the domain adapter learns the private rows
    mutual_steps: int = 150  # SAML a round on the device: proxy and SLM teach each other
    cloud_steps: int = 60  # SAML a round in the cloud: the aggregated proxy and the LLM
    batch_rows: int = 16  # rows a step
    divergence: Divergence = "forward_kl"
    temperature: float = 1.0  # of teacher and student inside the divergence
    slm_kd_weight: float = (
        1.0  # of the divergence from the proxy, beside the SLM's cross-entropy; 0: the proxy does not teach
    )
    proxy_kd_weight: float = 0.1  # of the divergence from the weaker SLM; 0: the SLM does not teach
    proxy_share: float = 0.3  # of the device's SAML steps in which the proxy learns too: the last ones
    cloud_kd_weight: float = (
        1.0  # of the divergence from the devices' proxies, beside the LLM's cross-entropy
    )
    prompt_weight: float = (
        0.1  # of the shared adapter's cross-entropy on prompts: it learns what is asked, not only answers
    )
    doubt: float = (
        1.0  # an answer's lesson counts as the teacher's mean probability of its tokens, to this power
    )
    # who speaks about labelled rows: the proxy as distilled, as it came this round, or after DST on them
    labelled_teacher: Literal["distilled", "broadcast", "specialised"] = "broadcast"
    top_k: int = 24  # a teacher's tokens kept a position; the rest is one tail bucket
    condition_in_token: bool = True  # teach also at student cuts inside a teacher's token
    proxy_answers: int = 1500  # unlabelled inputs the proxy answers a device; 0: labelled rows only
    answers_share: float = 0.5  # of a batch, once there are answers
    participation: float = 1.0  # share of the devices drawn for a round
    update_bits: Literal[8, 32] = (
        8  # bits a parameter on the wire; 8 keeps its rounding error for the next round
    )
    max_update_norm: float = 0.0  # a larger update is refused; 0 accepts any finite one
    # times the median of a round's three or more updates: a larger one is refused, one of more rows counts as
    # one of that many; 0 does not compare
    outlier_ratio: float = 10.0
    send_losses: bool = (
        True  # each logged step's losses leave the device with its update, for the report's curves
    )
    cloud_teachers: Literal["each", "mean"] = (
        "each"  # who makes up prompts: every device's proxy, or their average
    )
    public_samples: int = (
        0  # prompts a device's proxy makes up in the cloud each round, beside the public rows
    )
    samples_share: float = 0.25  # of a batch in the cloud, once there are made-up prompts
    # after the last round a copy of the proxy that travels learns how the LLM answers public prompts, so that
    # more of its drafts are accepted; 0: the proxy drafts as it travelled
    drafter_steps: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and how the arithmetic runs."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    precision: Literal["float32", "bfloat16"] = (
        "float32"  # of the arithmetic; weights that learn stay float32
    )
    threads: int = 1  # torch threads; two collapse as soon as another process computes (docs/footguns.md)
    workers: int = (
        1  # processes that tune and measure this machine's devices at once, each with its own models
    )


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """How answers are measured."""

    rows: int = 200  # test rows a device; 0 takes all
    max_new_tokens: int = 64  # longest answer, measured or given as further data
    public_rows: int = 200  # held-out public rows for "did the cloud forget?"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole run."""

    name: str = "consort"  # of the run directory
    seed: int = 0  # decides everything random
    public: str = (
        ""  # the data every party may see: a directory with train/valid/test.jsonl, or one JSONL file
    )
    cloud: ModelConfig = field(default_factory=ModelConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    devices: tuple[DeviceConfig, ...] = ()
    tune: TuneConfig = field(default_factory=TuneConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
