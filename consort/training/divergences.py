"""Divergences of a student from a teacher over a few events, each with its gradient by the events' logits.

Forward KL (Hinton et al., arXiv 1503.02531), reverse KL (MiniLLM, arXiv 2306.08543) and Jensen-Shannon with
equal weights (GKD, arXiv 2306.13649, beta = 1/2), in nats. The last event of a row is the tail: all tokens
without an event of their own. An event that does not exist has teacher probability 0 and a student
log-probability so low that its exponential is 0; it contributes nothing. Does not average rows and knows no
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from consort.config import Divergence

REST_FLOOR = (
    1e-7  # reverse KL: a teacher's tail of 0 is read as float32's resolution of 1 - sum(probs), not log 0
)


def forward_kl(teacher_RE: Tensor, log_q_RE: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) [R, 1] and its gradient [R, E]."""
    terms_RE = torch.xlogy(teacher_RE, teacher_RE) - teacher_RE * log_q_RE
    gradient_RE = log_q_RE.exp() * teacher_RE.sum(1, keepdim=True) - teacher_RE
    return terms_RE.sum(1, keepdim=True), gradient_RE


def reverse_kl(teacher_RE: Tensor, log_q_RE: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) [R, 1] and its gradient [R, E]; the teacher's tail is at least REST_FLOOR."""
    q_RE, floored_RE = log_q_RE.exp(), teacher_RE.masked_fill(teacher_RE == 0, 1.0)
    floored_RE[:, -1:] = teacher_RE[:, -1:].clamp(min=REST_FLOOR)
    ratio_RE = log_q_RE - floored_RE.log()
    divergence_R1 = (q_RE * ratio_RE).sum(1, keepdim=True)
    return divergence_R1, q_RE * (ratio_RE - divergence_R1)


def jsd(teacher_RE: Tensor, log_q_RE: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || m) + KL(student || m)) / 2, m their mean, [R, 1], and its gradient [R, E]."""
    q_RE = log_q_RE.exp()
    log_middle_RE = torch.logaddexp(teacher_RE.log(), log_q_RE) - math.log(2)
    ratio_RE = log_q_RE - log_middle_RE
    student_R1 = (q_RE * ratio_RE).sum(1, keepdim=True)
    teacher_R1 = (torch.xlogy(teacher_RE, teacher_RE) - teacher_RE * log_middle_RE).sum(1, keepdim=True)
    return (student_R1 + teacher_R1) / 2, q_RE * (ratio_RE - student_R1) / 2


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}
