"""The words the whole project speaks: messages and answers, token distributions, and what a model can be
asked.

Nothing here computes, and nothing here imports a framework: a model is whatever keeps one of these protocols.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

# as strings: importing consort does not import numpy
IntArray: TypeAlias = "NDArray[np.integer[Any]]"
FloatArray: TypeAlias = "NDArray[np.floating[Any]]"
BoolArray: TypeAlias = "NDArray[np.bool_]"
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
Capability: TypeAlias = Literal[
    "logprobs", "tools", "text_completion", "drafts"
]  # what not every model can do


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model wants called. In a stream, pieces with one `index` are one call: their
    `arguments` (JSON text) are joined."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""  # of a tool's turn: the call it answers


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to be called; `parameters` is a JSON Schema as text."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model or of the whole consort: a conversation, or a text to be continued."""

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_logprobs: int | None = None  # alternatives a token; None: no log-probabilities at all
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # "auto", "none", "required", or a tool's name
    prompt: str | None = None  # text to continue as it is; then there are no messages
    # when nobody waits for the answer any more, by time.monotonic; the same question asked later is the same
    until_s: float | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written for one answer by one model."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One written token, its log-probability in nats, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer, and who wrote it. The last chunk of an answer carries the `finish_reason`, and
    `usage` where the model counts."""

    text: str
    model: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    anew: bool = False  # the answer begins anew here: what was streamed before is withdrawn
    struck: str = ""  # what was drafted after this piece, and is not in the answer


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    model: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TopK:
    """A next-token distribution cut to its K most likely tokens; `rest` is the probability mass that was cut
    off. `state` [D] is what the model's head made it from; None where the model does not show it."""

    ids: IntArray
    logprobs: FloatArray
    rest: float
    state: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that an answer may go on with: a tree, depth first or breadth first.

    `parents` are indices into `ids`, smaller than the node's own; -1 is the answer so far. Siblings differ.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DraftShape:
    """How far a draft goes. `spread` is how much the model's scores differ from the drafter's (the scale, in
    nats, of a logistic error): the larger, the less the drafter trusts its first choice."""

    depth: int = 4  # tokens
    width: int = 1  # nodes a level; 1: a chain
    nodes: int = 64
    least: float = 0.1  # chance of a path from which on it is followed
    spread: float = 0.7


class Drafting(Protocol):
    """One answer's drafts."""

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        """What may come after the answer's tokens so far, and each node's chance to be part of it."""
        ...

    def stop(self) -> None:
        """End the draft under way with what there is: the answer went another way."""
        ...

    def close(self) -> None:
        """No more drafts are wanted."""
        ...


class Drafter(Protocol):
    """Whoever can say what a model will probably write, in that model's tokens, quicker than the model."""

    name: str

    async def open(self, request: Request) -> Drafting:
        """Read the request."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, with the bytes each id covers."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special tokens added, none recognised inside it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...


class LM(Protocol):
    """A black box that answers: any endpoint."""

    name: str
    capabilities: frozenset[Capability]

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer piece by piece; joined, the pieces are the whole answer."""
        ...


class Session(Protocol):
    """A key-value cache from outside: draft is `extend` by one id, verify by many, reject is `rewind`."""

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        """Append ids; returns the next-token distribution after each of them."""
        ...

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` ids."""
        ...

    def close(self) -> None:
        """Release the cache."""
        ...


class TokenLM(LM, Protocol):
    """A white box: a model whose next-token distributions can be read."""

    tokenizer: Tokenizer

    def open(self, request: Request) -> tuple[Session, TopK]:
        """Read the request; returns the session and the distribution of the first token of the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens that an answer goes on with, in one piece because one pass of the model gave them. The last
    piece carries the `finish_reason`; the token that ends an answer is not among the ids. An empty piece
    before says that the drafts so far are forgotten."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


class Writing(Protocol):
    """An answer while its model writes it, token by token. Drafts let tokens come sooner, and change none."""

    @property
    def prompt_tokens(self) -> int:
        """Of the request; 0 until the model has taken it."""
        ...

    @property
    def rtt_s(self) -> float:
        """To the model and back, in seconds; 0 on this machine."""
        ...

    def written(self) -> AsyncIterator[Written]:
        """The answer's tokens as they are written; stop sequences are the reader's to find."""
        ...

    def draft(self, begins: int, draft: Draft) -> None:
        """Say what may come after the answer's first `begins` tokens. One that begins beyond what is written
        continues the first path of the draft before it."""
        ...

    def pause_at(self, tokens: int | None) -> bool:
        """Write until the answer has so many tokens, then wait for the next such word; None: write on.
        False where the model never waits, because it is far away."""
        ...

    async def close(self) -> None:
        """Write no further."""
        ...


class DraftedLM(LM, Protocol):
    """A model that takes drafts of its answer, and verifies many of their tokens in one pass."""

    tokenizer: Tokenizer

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        """Begin to answer, or go on after an answer's first tokens, which are not written again."""
        ...


@dataclass(frozen=True, slots=True)
class Note:
    """What a strategy did and why, for the receipt: never text of a request or an answer."""

    strategy: str
    event: str  # a word, as "deferred"
    values: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Consort:
    """Who may answer one request: the devices' models, the first preferred, and the cloud's; and where a
    strategy notes what it did."""

    edges: tuple[LM, ...]
    cloud: LM | None
    note: Callable[[Note], None] = lambda note: None


# Every way of answering together is a function; one that takes strategies returns a strategy.
Strategy: TypeAlias = Callable[[Request, Consort], AsyncIterator[Chunk]]
# The probability that the edge's answer suffices: before it is written (None), or after.
Scorer: TypeAlias = Callable[[Request, "Answer | None"], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a model learned on top of a frozen base, as arrays: it travels, is averaged and is stored.

    LoRA tensors come in pairs `<module>.lora_A` [rank, in] and `<module>.lora_B` [out, rank]; the update of
    the module is `scaling * B @ A`. `base_sha256` names the base it belongs to: applied to another it means
    nothing.
    """

    tensors: Mapping[str, FloatArray]
    scaling: float
    base_sha256: str
