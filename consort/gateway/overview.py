"""What the dashboard shows: totals since the start, the last answers as spans by author, each model's state.

No text: spans are authors and sizes, redactions kinds and numbers.
"""

from __future__ import annotations

from typing import Any

from consort.gateway.ledger import Row
from consort.gateway.service import Service


def overview(service: Service) -> dict[str, Any]:
    """One JSON object, cheap enough to be asked for every second."""
    meters = service.meters
    written = {author[0]: size for author, size in meters.answer_bytes.values.items()}
    edges = {lm.name for lm in service.edges}
    total = sum(written.values())
    recent = list(service.recent)
    latencies = sorted(row.latency_s for row in recent)
    return {
        "strategy": service.config.strategy,
        "currency": service.config.currency,
        "started": service.started_s,
        "requests": sum(sum(counts) for counts in meters.duration.counts.values()),
        "in_flight": service.in_flight,
        "edge_share": sum(size for name, size in written.items() if name in edges) / total if total else None,
        "p50_s": _quantile(latencies, 0.5),
        "p95_s": _quantile(latencies, 0.95),
        "cost": meters.cost.values.get((), 0.0),
        "cost_all_cloud": meters.all_cloud.values.get((), 0.0),
        "cloud_bytes": meters.cloud_bytes.values.get((), 0.0),
        "redactions": {kind[0]: int(count) for kind, count in meters.redactions.values.items()},
        "drift": _drift(service),
        "shadow": _shadow(service),
        "models": [_model(service, name, name in edges) for name in (lm.name for lm in service.models)],
        "recent": [_answer(row) for row in reversed(recent)],
    }


def _drift(service: Service) -> dict[str, Any] | None:
    watch = service.watch
    if watch is None:
        return None
    alarm = watch.alarm
    return {"ringing": alarm.ringing, "evidence": alarm.evidence, "requests": watch.observed}


def _shadow(service: Service) -> dict[str, Any] | None:
    shadow = service.shadow
    if shadow is None:
        return None
    return {"labels": shadow.labels, "spent": shadow.spent, "budget": shadow.budget}


def _model(service: Service, name: str, at_edge: bool) -> dict[str, Any]:
    gauge = service.gauges.get(name)
    state = "idle"
    if gauge is not None and gauge.failures_in_row:
        state = "failing"
    elif gauge is not None and gauge.in_flight:
        state = "answering"
    return {
        "name": name,
        "side": "edge" if at_edge else "cloud",
        "state": state,
        "in_flight": gauge.in_flight if gauge else 0,
        "requests": gauge.requests if gauge else 0,
        "failures": gauge.failures if gauge else 0,
        "first_s": gauge.first_s if gauge else None,
        "answer_s": gauge.answer_s if gauge else None,
    }


def _answer(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at,
        "strategy": row.strategy,
        "outcome": row.outcome,
        "latency_s": row.latency_s,
        "cost": row.cost,
        "spans": row.spans,
        "cloud_bytes": row.cloud_bytes,
        "redactions": row.redactions,
        "notes": row.notes,
    }


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
