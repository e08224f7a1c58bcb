"""The `[serve]` part of `consort.toml`: who answers at the endpoint, by which strategy, within which bounds.

Data only, like `config`, which holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["gateway", "cloud"]
Goal: TypeAlias = Literal["balance", "quality", "latency", "cost"]
MixKind: TypeAlias = Literal["tuned", "product", "mean", "contrast"]
Finder: TypeAlias = Literal["builtin", "presidio", "gliner"]
MixSchedule: TypeAlias = Literal["fixed", "fading", "learned"]

CONFIDENCE, PROXY = SCORER_WORDS = ("confidence", "proxy")  # what judges answers without a file
TOKEN_SCORER_WORDS = ("doubt", "margin", "entropy")  # what judges tokens without a file


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model behind the endpoint: one that runs here, or any OpenAI-compatible endpoint."""

    name: str = ""  # how it is called here; empty: its model's last part
    # Hub id, directory, zoo:NAME or GGUF file; with base_url, its name over there, which only an endpoint
    # of several models must be told: not one that is drafted
    model: str = ""
    base_url: str = ""  # of an OpenAI-compatible endpoint, up to /v1; empty: the model runs here
    key_env: str = ""  # the environment variable that holds the endpoint's key; never the key itself
    adapter: str = ""  # a PEFT directory put on a model that runs here
    chat_template: str = ""  # a Jinja file, for a model that runs here and whose tokenizer brings none
    answers: int = 8  # a model that runs here writes at once; further requests wait
    context_tokens: int = 4096  # longest prompt + answer here; memory is taken for `answers` of them at start
    price_in: float = 0.0  # of a million tokens read, in serve.currency
    price_out: float = 0.0  # of a million tokens written
    logprobs: bool = True  # an endpoint gives log-probabilities where asked; the confidence scorer reads them
    drafted: bool = False  # the endpoint is a `consort serve --role cloud`, which verifies drafts
    silence_s: float = 60.0  # without a byte from the endpoint: it has failed

    @property
    def is_given(self) -> bool:
        """Whether this names a model, here or behind an endpoint."""
        return bool(self.model or self.base_url)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One endpoint for the whole consort. Without models here, the file's own cloud and devices answer."""

    role: Role = "gateway"  # cloud: serve the cloud's model alone, and verify the drafts of other gateways
    host: str = "127.0.0.1"  # anything but this machine alone requires a key: `consort keys add NAME`
    port: int = 8800
    # what the model name "consort" means; /v1/models lists those that can answer here. Empty: cascade where
    # there is an edge (route, where its answers cannot be judged), else cloud
    strategy: str = ""
    threshold: float = 0.5  # the score from which on the edge's answer is given
    optimistic: bool = False  # cascade: show the edge's answer at once, begin anew if it is refused
    share: float = 0.5  # vote: more than this share must agree
    alike: str = ""  # cache: a file of `consort calibrate --cache`: within it alike questions are the same
    # mix: (1 - a) llm + a guides in probabilities, or a product, or llm + a (proxy - its base), or a contrast
    mix_kind: MixKind = "mean"
    mix_weight: float = 0.9  # mix: the a above (experiments/results/mixture.md)
    mix_edge_share: float = 0.45  # mix: of that weight, the first edge's; the tuned proxy has the others
    mix_schedule: MixSchedule = "fixed"  # mix: the weight at every token; "learned" is the file's below
    mix_half_life: float = 16.0  # mix: tokens after which a fading weight is half as large
    mix_weights: str = ""  # mix: a file of learned weights, for mix_schedule = "learned"
    stall_s: float = 5.0  # takeover: without a word from the cloud for so long, the edge goes on
    llm_share: float = 0.15  # defer: of the tokens, the cloud's; kept over all answers together
    token_scorer: str = "doubt"  # defer: "doubt", "margin", "entropy", or a file of `inference.token_file`
    goal: Goal = "balance"  # of auto
    redact: bool = False  # hide private spans wherever the cloud may be asked; the answer has them again
    # what finds them: "builtin", "presidio" (pip install presidio-analyzer), "gliner" (pip install gliner)
    detectors: tuple[Finder, ...] = ("builtin",)
    gliner_model: str = ""  # directory or Hub id, for "gliner"
    # a file of `consort calibrate --out`, whose threshold replaces the one above; "confidence" or "proxy"; or
    # empty: the proxy where one is named, else the edge's confidence
    scorer: str = ""
    drift_alarm_rate: float = (
        0.01  # the chance that the alarm on the scorer's values ever rings without a change; 0: off
    )
    shadow_share: float = (
        0.0  # of requests, answered by edge and cloud both, afterwards, to learn from; 0: none
    )
    shadow_budget: float = 1.0  # money a month for that, in serve.currency; never more
    deadline_s: float = 120.0  # of a request, from its last byte to the answer's
    max_tokens: int = 512  # of an answer, where the request does not say
    temperature: float = 0.0  # where the request does not say; 0 takes the likeliest, and can be cached
    max_in_flight: int = 1000  # requests at once; more are told to come back
    max_body_kb: int = 4096  # of a request
    state: str = "consort-state"  # the folder of ledger and keys
    log_text: bool = False  # keep prompts and answers in the ledger too
    currency: str = "EUR"  # of prices and budgets
    allow_origin: str = ""  # a web page's origin that may call from a browser; empty: none
    tls_certificate: str = ""  # PEM file; with tls_key, the endpoint is https
    tls_key: str = ""  # PEM file
    edges: tuple[ServedModel, ...] = ()  # the devices' models, the preferred first
    cloud: ServedModel = field(default_factory=ServedModel)
    # the device's copy of the proxy, with its adapter: drafts for the cloud, judges answers for cascade, and
    # steers a mixture, together with the first edge
    proxy: ServedModel = field(default_factory=ServedModel)
    sessions: int = 4  # answers at once that read the models token by token; memory is taken for each
