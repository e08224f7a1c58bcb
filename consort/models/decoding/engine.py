"""One worker thread that computes for everybody: answers are written in one batch, sessions extended in one
pass, drafts grown level by level together.

Others only leave orders; what comes of them is handed back through callables that the worker calls. Orders
are obeyed between two steps. Does not know requests, text or event loops.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeAlias

from consort.errors import BusyError, ModelError
from consort.models.decoding.batch import Batch, Row, Token
from consort.models.decoding.drafting import Growing
from consort.models.decoding.sampling import Logits
from consort.types import Draft

PROMPT_TOKENS_ALONE = (
    512  # of waiting prompts read in a step when nobody writes: a cancelled prompt ends soon
)
PROMPT_TOKENS_BESIDE = 64  # when others write, who wait as long as this takes: a few steps of theirs

# Hears a token, or why there will be none; True ends the answer.
Listener: TypeAlias = "Callable[[Token | ModelError], bool]"


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """Ids to append to a row that holds its place."""

    row: Row
    ids: Sequence[int]
    logits: Future[Logits]  # [ids, V]


@dataclass(frozen=True, slots=True, eq=False)
class Drafting:
    """A draft that grows after a row that holds its place, once `ids` are appended to its text."""

    row: Row
    ids: Sequence[int]
    growing: Growing
    done: Future[Growing]


class Engine:
    """A batch and the thread that steps it, which calls `enter_thread` first, and `after_step` when a step's
    tokens have been heard."""

    def __init__(
        self,
        open_batch: Callable[[], Batch],
        *,
        answers: int,
        enter_thread: Callable[[], None],
        after_step: Callable[[], None],
    ) -> None:
        self._open_batch, self._enter_thread, self._after_step = open_batch, enter_thread, after_step
        self._answers = answers
        self._batch = open_batch()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Row] = deque()
        self._listeners: dict[Row, Listener] = {}
        self._held: dict[Row, Future[Logits]] = {}  # rows that hold their place; their prompts' last logits
        self._extensions: list[Extension] = []
        self._draftings: list[Drafting] = []
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def write(self, row: Row, listener: Listener) -> None:
        """Write the row as soon as a slot is free."""

        def order() -> None:
            self._listeners[row] = listener
            self._waiting.append(row)

        self._orders.put(order)

    def hold(self, row: Row) -> Future[Logits]:
        """Read the row's prompt and keep it until it is dropped: logits [V] after the prompt."""
        logits: Future[Logits] = Future()

        def order() -> None:
            if not logits.set_running_or_notify_cancel():  # nobody waits any more
                return
            if len(self._held) == self._batch.network.slots - self._answers:
                error = BusyError(
                    "all sessions are taken", hint="try again in a moment, or raise `serve.sessions`"
                )
                logits.set_exception(error)
            else:
                self._held[row] = logits
                self._batch.add(row)

        self._orders.put(order)
        return logits

    def extend(self, row: Row, ids: Sequence[int]) -> Future[Logits]:
        """Append ids to a row that holds its place: logits [ids, V] after each."""
        extension = Extension(row, ids, Future())

        def order() -> None:
            if not extension.logits.set_running_or_notify_cancel():
                return
            if row in self._held:
                self._extensions.append(extension)
            else:
                extension.logits.set_exception(ModelError("the session is closed"))

        self._orders.put(order)
        return extension.logits

    def take(self, row: Row, begins: int, draft: Draft) -> None:
        """Hand a row that writes a draft of what comes after `begins` tokens of its answer."""

        def order() -> None:
            if row in self._listeners:
                self._batch.draft(row, begins, draft)

        self._orders.put(order)

    def pause_at(self, row: Row, tokens: int | None) -> None:
        """Let a row that writes wait where its answer has so many tokens; None: nowhere."""

        def order() -> None:
            row.pause_at = tokens

        self._orders.put(order)

    def grow(self, row: Row, ids: Sequence[int], growing: Growing) -> Future[Growing]:
        """Append ids (at least one) to a row that holds its place, and grow a draft after them."""
        drafting = Drafting(row, ids, growing, Future())

        def order() -> None:
            if not drafting.done.set_running_or_notify_cancel():
                return
            if row in self._held:
                if not self._batch.network.branches:
                    growing.shape = replace(growing.shape, width=1)
                self._draftings.append(drafting)
            else:
                drafting.done.set_exception(ModelError("the session is closed"))

        self._orders.put(order)
        return drafting.done

    def drop(self, row: Row) -> None:
        """Free the row's slot, or its place in the queue; nothing is heard of it any more."""
        self._orders.put(lambda: self._drop(row))

    def close(self) -> None:
        """Stop the thread after its present step."""
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._enter_thread()
        while True:
            try:
                if not self._obey():
                    return
                self._step()
            except Exception as error:
                # whatever a module raises: nobody may wait for ever, and the next request may work
                self._fail(ModelError(f"the model failed while computing: {error}"))
                self._batch = self._open_batch()
            self._after_step()

    def _obey(self) -> bool:
        """Take all orders there are, and wait for one where nothing else is to be done; False to end."""
        while True:
            try:
                order = self._orders.get(block=not self._busy())
            except queue.Empty:
                return True
            if order is None:
                self._fail(ModelError("the model was closed"))
                self._after_step()
                return False
            order()

    def _busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._extensions or self._draftings or self._joins()) or not self._batch.idle

    def _joins(self) -> bool:
        """Whether an answer waits and there is a slot for it."""
        return bool(self._waiting) and len(self._batch.rows) - len(self._held) < self._answers

    def _step(self) -> None:
        batch = self._batch
        if self._extensions:
            self._extend()
        if self._draftings:
            self._grow()
        while self._joins():
            batch.add(self._waiting.popleft())
        written, read = batch.step(PROMPT_TOKENS_BESIDE if batch.writing else PROMPT_TOKENS_ALONE)
        for row, logits_V in read:
            self._held[row].set_result(logits_V)
        for one in written:
            listener = self._listeners.get(one.row)
            if listener is None:  # the answer ended before what its draft foresaw
                continue
            ended = listener(one)
            if one.finish:
                del self._listeners[one.row]
            elif ended:
                self._drop(one.row)

    def _extend(self) -> None:
        """All sessions that wait, in one pass; each once."""
        now = {extension.row: extension for extension in reversed(self._extensions)}
        found = self._batch.extend(list(now), [extension.ids for extension in now.values()])
        self._extensions = [
            extension for extension in self._extensions if now[extension.row] is not extension
        ]
        for extension, logits_TV in zip(now.values(), found, strict=True):
            extension.logits.set_result(logits_TV)

    def _grow(self) -> None:
        """Every draft by one level: those that begin in one pass, and those under way in another."""
        beginning = [each for each in self._draftings if not each.growing.levels]
        growing = [each for each in self._draftings if each.growing.levels]
        found: list[Logits] = []
        if beginning:
            read = self._batch.extend([each.row for each in beginning], [each.ids for each in beginning])
            found += [logits_TV[-1:] for logits_TV in read]
        if growing:
            found += self._batch.read_levels(
                [each.row for each in growing],
                [[each.growing.ids[node] for node in each.growing.level] for each in growing],
                [each.growing.parents for each in growing],
            )
        self._draftings = []
        for each, logits_LV in zip([*beginning, *growing], found, strict=True):
            if each.growing.grow(logits_LV):
                self._draftings.append(each)
            else:
                each.done.set_result(each.growing)

    def _drop(self, row: Row) -> None:
        self._listeners.pop(row, None)
        self._held.pop(row, None)
        for left in [each for each in self._extensions if each.row is row]:
            left.logits.set_exception(ModelError("the session is closed"))
            self._extensions.remove(left)
        for stopped in [each for each in self._draftings if each.row is row]:
            stopped.done.set_exception(ModelError("the session is closed"))
            self._draftings.remove(stopped)
        if row in self._waiting:
            self._waiting.remove(row)
        elif row in self._batch.rows:
            self._batch.remove(row)

    def _fail(self, error: ModelError) -> None:
        """Tell everybody."""
        for listener in self._listeners.values():
            listener(error)
        for logits in self._held.values():
            if not logits.done():
                logits.set_exception(error)
        for extension in self._extensions:
            if not extension.logits.done():
                extension.logits.set_exception(error)
        for drafting in self._draftings:
            if not drafting.done.done():
                drafting.done.set_exception(error)
        self._listeners, self._held, self._extensions, self._draftings = {}, {}, [], []
        self._waiting.clear()
