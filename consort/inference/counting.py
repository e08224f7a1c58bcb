"""How many tokens a request has for a model that is read token by token: what its session says, else what its
tokenizer makes of the texts. Does not know the chat template of a model that is far away.
"""

from __future__ import annotations

from consort.types import Request, Session, TokenLM


def request_tokens(lm: TokenLM, session: Session, request: Request) -> tuple[int, bool]:
    """Tokens of the request, and whether they are counted: a session says so by `prompt_tokens`."""
    told = getattr(session, "prompt_tokens", None)
    if told is not None:
        return int(told), True
    texts = [message.content for message in request.messages] if request.prompt is None else [request.prompt]
    return sum(len(lm.tokenizer.encode(text)) for text in texts), False
