"""Who may ask, how often and for how much money. Keys are random, shown once, and kept only as hashes.

256 random bits need no slow hash: SHA-256 cannot be searched back. A wrong key takes as long as a right one.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from consort.errors import AccessError, ConfigError, LimitError
from consort.files import whole_file
from consort.problems import nearest

PREFIX = "ck-"
NOBODY = "0" * 64  # a hash that no key has
REREAD_S = 1.0  # a key that was revoked stops working within this
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Key:
    """One client. Without a limit: `budget` 0 (money a month) or `per_minute` 0 (requests; .5 is one in two
    minutes)."""

    name: str
    sha256: str = ""
    budget: float = 0.0
    per_minute: float = 0.0


LOCAL = Key("local")  # whoever asks where no key is required


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; none where there is no file."""
    try:
        keys = tuple(Key(**row) for row in orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (orjson.JSONDecodeError, TypeError):
        raise ConfigError(
            "holds no keys", where=str(path), hint="`consort keys add NAME` writes it"
        ) from None
    for key in keys:
        if not (type(key.name) is str and type(key.sha256) is str):
            raise ConfigError("name and sha256 of a key must be text", where=str(path))
        _check_limits(key, where=str(path))
    return keys


def add_key(path: Path, key: Key) -> str:
    """Store a new key; returns the key itself, which is nowhere else."""
    _check_limits(key, where=key.name)
    keys = read_keys(path)
    if any(each.name == key.name for each in keys):
        raise ConfigError(f'a key is named "{key.name}" already', where=str(path), hint="revoke it first")
    secret = PREFIX + secrets.token_urlsafe(32)
    _write(path, (*keys, replace(key, sha256=_hash(secret))))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Forget a key."""
    keys = read_keys(path)
    rest = tuple(key for key in keys if key.name != name)
    if len(rest) == len(keys):
        raise ConfigError(
            f'no key is named "{name}"', where=str(path), hint=nearest(name, [k.name for k in keys])
        )
    _write(path, rest)


def _check_limits(key: Key, *, where: str) -> None:
    for name, limit in (("budget", key.budget), ("per_minute", key.per_minute)):
        if type(limit) not in (int, float) or not (math.isfinite(limit) and limit >= 0):
            what = f'the {name} of "{key.name}" must be a number of at least 0, not {limit}'
            raise ConfigError(what, where=where, hint="0 is no limit")


@dataclass(slots=True)
class _Use:
    tokens: float  # of the bucket: requests allowed now
    at: float


@dataclass(slots=True)
class Door:
    """Lets requests in: checks the key, its rate and its budget. Reads the file again when it changed (one
    that holds no keys leaves those of before in force), and begins a month (UTC) with nothing spent."""

    path: Path
    required: bool = False
    spent: dict[str, float] = field(default_factory=dict)  # money this month, by key
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _keys: dict[str, Key] = field(default_factory=dict)
    _uses: dict[str, _Use] = field(default_factory=dict)
    _read_at: float = -REREAD_S
    _stamp: float = -1.0
    _month: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        now = self.now()
        self._month = now.year, now.month
        self._read()

    def is_open(self) -> bool:
        """Whether nobody needs a key."""
        self._reread()
        return not self._keys and not self.required

    def enter(self, authorization: bytes) -> Key:
        """The client of an Authorization header. AccessError, or LimitError beyond its limits."""
        if self.is_open():
            return LOCAL
        scheme, _, rest = authorization.partition(b" ")
        given = rest if scheme.lower() == b"bearer" else authorization
        digest = _hash(given.decode("latin-1").strip())
        key = self._keys.get(digest, LOCAL)
        if not hmac.compare_digest(digest, key.sha256 or NOBODY):
            hint = "send `Authorization: Bearer KEY`; `consort keys add NAME` makes one"
            raise AccessError("this key is not known here" if authorization else "a key is needed", hint=hint)
        self.check(key)
        return key

    def check(self, key: Key, *, counts: bool = True, owed: float = 0.0) -> None:
        """Whether a client who is in may ask for more, as a further request or within one; `owed` is not
        written down yet. AccessError where its key is not known any more, LimitError beyond its limits."""
        self._reread()
        if (self._keys or self.required) and key.sha256 not in self._keys:
            gone = "this key is not known here any more" if key.sha256 else "a key is needed here by now"
            raise AccessError(gone)
        self._check_budget(key, owed)
        if counts:
            self._count(key)

    def money_left(self, key: Key) -> float:
        """Of this month's budget."""
        return key.budget - self.spent.get(key.name, 0.0) if key.budget else float("inf")

    def _check_budget(self, key: Key, owed: float) -> None:
        now = self.now()
        if self._month != (now.year, now.month):
            self.spent.clear()
            self._month = now.year, now.month
        if self.money_left(key) <= owed:
            ends = _next_month(now)
            hint = f"raise it, or wait until {ends:%Y-%m-%d} (UTC)"
            error = LimitError("this key's budget for the month is spent", hint=hint)
            error.code, error.retry_s = "insufficient_quota", math.ceil((ends - now).total_seconds())
            raise error

    def _count(self, key: Key) -> None:
        if not key.per_minute:
            return
        now, room = self.clock(), max(1.0, key.per_minute)
        use = self._uses.setdefault(key.name, _Use(room, now))
        use.tokens = min(room, use.tokens + (now - use.at) * key.per_minute / 60)
        use.at = now
        if use.tokens < 1:
            wait_s = math.ceil(min(DAY_S, (1 - use.tokens) * 60 / key.per_minute))
            error = LimitError(f"more than {key.per_minute:g} requests a minute", hint=f"wait {wait_s} s")
            error.retry_s = wait_s
            raise error
        use.tokens -= 1

    def _reread(self) -> None:
        now = self.clock()
        if now - self._read_at < REREAD_S:
            return
        self._read_at = now
        self._read()

    def _read(self) -> None:
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.sha256: key for key in read_keys(self.path)}
        except (ConfigError, OSError) as error:  # for whoever edits the file, not for whoever asks
            what = error.what if isinstance(error, ConfigError) else error.strerror
            print(f"{self.path}: {what}; the keys of before stay in force", file=sys.stderr)


def _next_month(now: datetime) -> datetime:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, contended=True) as file:  # which nobody else can read
        file.write(orjson.dumps([asdict(key) for key in keys], option=orjson.OPT_INDENT_2))
