"""What `/metrics` says, under OpenTelemetry's names for generative AI wherever there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consort.gateway.labels import Label
from consort.gateway.ledger import Row
from consort.inference.metering import Gauge
from consort.telemetry import TOKENS, Counter, Histogram, prometheus_text

BY_REQUEST = ("gen_ai_operation_name", "gen_ai_request_model", "consort_strategy", "error_type")


@dataclass(frozen=True, slots=True)
class Meters:
    """The series of one endpoint."""

    duration: Histogram = field(
        default_factory=lambda: Histogram(
            "gen_ai_server_request_duration_seconds", "Time of a whole answer", BY_REQUEST
        )
    )
    first: Histogram = field(
        default_factory=lambda: Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time to the first token", BY_REQUEST[:3]
        )
    )
    tokens: Histogram = field(
        default_factory=lambda: Histogram(
            "gen_ai_client_token_usage",
            "Tokens of one answer",
            ("gen_ai_token_type", "gen_ai_response_model"),
            TOKENS,
        )
    )
    calls: Histogram = field(
        default_factory=lambda: Histogram(
            "gen_ai_client_operation_duration_seconds",
            "Time of one model's answer",
            ("gen_ai_operation_name", "gen_ai_response_model", "error_type"),
        )
    )
    answer_bytes: Counter = field(
        default_factory=lambda: Counter(
            "consort_answer_bytes_total", "Bytes of answers by author", ("author",)
        )
    )
    cloud_bytes: Counter = field(
        default_factory=lambda: Counter("consort_cloud_bytes_total", "Bytes of text sent to the cloud")
    )
    cost: Counter = field(
        default_factory=lambda: Counter("consort_cost_total", "Money spent, in the configured currency")
    )
    all_cloud: Counter = field(
        default_factory=lambda: Counter("consort_cost_all_cloud_total", "Money had the cloud answered all")
    )
    decisions: Counter = field(
        default_factory=lambda: Counter(
            "consort_decisions_total", "What strategies decided", ("strategy", "event")
        )
    )
    redactions: Counter = field(
        default_factory=lambda: Counter("consort_redactions_total", "Private spans hidden", ("kind",))
    )

    labels: Counter = field(
        default_factory=lambda: Counter(
            "consort_shadow_labels_total", "Requests answered by edge and cloud both", ("outcome",)
        )
    )
    shadow_cost: Counter = field(
        default_factory=lambda: Counter("consort_shadow_cost_total", "Money spent on labels")
    )
    drift: Counter = field(
        default_factory=lambda: Counter(
            "consort_drift_evidence", "How much likelier scores are under some drift", kind="gauge"
        )
    )
    ringing: Counter = field(
        default_factory=lambda: Counter("consort_drift_alarm", "1 once the drift alarm rings", kind="gauge")
    )

    def shadowed(self, label: Label) -> None:
        """A label, made or failed."""
        self.labels.add(1, label.outcome)
        self.shadow_cost.add(label.cost)

    def observe(self, row: Row) -> None:
        """A finished request."""
        labels = ("chat", row.model, row.strategy)
        self.duration.observe(row.latency_s, *labels, "" if row.outcome == "done" else row.outcome)
        if row.first_s is not None:
            self.first.observe(row.first_s, *labels)
        for call in row.calls:
            model, outcome = str(call["model"]), str(call["outcome"])
            self.tokens.observe(_number(call["prompt_tokens"]), "input", model)
            self.tokens.observe(_number(call["completion_tokens"]), "output", model)
            error = "" if outcome == "done" else outcome
            self.calls.observe(_number(call["answer_s"]), "chat", model, error)
        for author, size in row.spans:
            self.answer_bytes.add(size, author)
        self.cloud_bytes.add(row.cloud_bytes)
        self.cost.add(row.cost)
        self.all_cloud.add(row.cost_all_cloud)
        for note in row.notes:
            self.decisions.add(1, str(note["strategy"]), str(note["event"]))
        for kind, count in row.redactions.items():
            self.redactions.add(count, kind)

    def text(self, gauges: Mapping[str, Gauge], in_flight: int) -> str:
        """All series as Prometheus reads them."""
        active = Counter("gen_ai_server_active_requests", "Requests being answered", kind="gauge")
        active.set(in_flight)
        busy = Counter("consort_model_active_requests", "Calls of a model", ("model",), "gauge")
        for name, gauge in gauges.items():
            busy.set(gauge.in_flight, name)
        kept = (self.duration, self.first, self.tokens, self.calls)
        counters = (self.answer_bytes, self.cloud_bytes, self.cost, self.all_cloud, self.decisions)
        learning = (self.labels, self.shadow_cost, self.drift, self.ringing)
        return prometheus_text([*kept, *counters, self.redactions, *learning, active, busy])


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)
