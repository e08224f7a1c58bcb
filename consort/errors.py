"""Every error a person can meet: what happened, where, and what to do. Programming mistakes stay `assert`."""

from __future__ import annotations

from functools import partial


class ConsortError(Exception):
    """A failure that is reported to a person, never as a traceback.

    `where` names the file, key, device or model concerned; `hint` is the next thing to try. `code` and
    `http_status` are how the same failure reads to a program.
    """

    code = "consort_error"
    http_status = 500

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel from the processes that compute a run's steps."""
        return partial(type(self), where=self.where, hint=self.hint), (self.what,)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  {self.hint}" if self.hint else "")


class ConfigError(ConsortError):
    """A configuration that cannot be meant: unknown key, wrong type, two devices of one name."""

    code = "invalid_config"
    http_status = 400


class DataError(ConsortError):
    """Training or evaluation data that cannot be read; `where` is file:line."""

    code = "invalid_data"
    http_status = 400


class ModelError(ConsortError):
    """A model, tokenizer or adapter that cannot be used as asked."""

    code = "unusable_model"
    http_status = 400


class ContextFullError(ModelError):
    """A text that would be longer than its model's context: an answer ends there."""

    code = "context_full"


class BusyError(ModelError):
    """A model that answers others just now, here or far away: it has not failed, and may be asked again."""

    code = "rate_limit_exceeded"
    http_status = 503
    retry_s = 1  # seconds until it is worth asking again


class PacketError(ConsortError):
    """Bytes from another party that are damaged, of another version, or for another tokenizer or adapter."""

    code = "invalid_packet"
    http_status = 400


class RunError(ConsortError):
    """A run directory that cannot be written, resumed or read."""

    code = "run_directory"


class DeviceError(ConsortError):
    """A device could not complete its round. Names the kind of failure and never a word of the device's rows:
    what happened stays in the device's own folder."""

    code = "device_failed"


class UpdateError(ConsortError):
    """An update from a device that must not enter the average: non-finite, wrong shape, too large."""

    code = "rejected_update"
    http_status = 422


class NoCloudError(ModelError):
    """What only a cloud model could answer, where none may be asked."""


class RequestError(ConsortError):
    """A request that no model here can answer as asked: malformed, or beyond what the model can do."""

    code = "invalid_request"
    http_status = 400


class ParameterError(RequestError):
    """A parameter of a request that cannot be meant, or not be honoured here; `where` is its name."""


class UnknownModelError(RequestError):
    """A model or strategy that is not served here."""

    code = "model_not_found"
    http_status = 404


class AccessError(ConsortError):
    """A key that is missing or wrong."""

    code = "invalid_api_key"
    http_status = 401


class LimitError(ConsortError):
    """More than a key or this gateway allows: requests a minute, money a month, requests at once."""

    code = "rate_limit_exceeded"
    http_status = 429
    retry_s = 1  # seconds until it is worth asking again


class UpstreamError(ConsortError):
    """A model that should have answered did not: refused, hung, broke off or sent what is no answer."""

    code = "upstream_failed"
    http_status = 502


class UnreachableError(UpstreamError):
    """An endpoint to which no connection came about: nothing of the request was sent."""


class DeadlineError(ConsortError):
    """The request's time was over before its answer."""

    code = "deadline_exceeded"
    http_status = 504


class MissingExtraError(ConsortError):
    """An optional dependency that this call needs is not installed."""

    code = "missing_extra"
    http_status = 501


__all__ = [
    "AccessError",
    "BusyError",
    "ConfigError",
    "ConsortError",
    "ContextFullError",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "LimitError",
    "MissingExtraError",
    "ModelError",
    "NoCloudError",
    "PacketError",
    "ParameterError",
    "RequestError",
    "RunError",
    "UnknownModelError",
    "UnreachableError",
    "UpdateError",
    "UpstreamError",
]
