"""SIGTERM, the notice that a machine is about to be taken away: the run saves, then ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was told to end, and has saved; says where it stands."""


_listening: list["Notice"] = []  # the outermost of those that listen now


class Notice:
    """Whether the run has been told to end."""

    def __init__(self):
        """Has heard nothing yet."""
        self._heard, self._calls = False, 0
        self._outer: Notice | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["Notice"]:
        """Hears SIGTERM from here on; a second one ends the process at once, as without this.

        Within another one that listens it has heard what that one has.

        Only a process's main thread can; elsewhere nothing is heard. With several processes JAX
        listens itself, and tells all of them what one has heard.
        """
        main = threading.current_thread() is threading.main_thread()
        if jax.process_count() > 1 or not main:
            yield self
            return

        if _listening:
            self._outer = _listening[-1]
            yield self
            return

        def hear(number, frame):
            self._heard = True
            signal.signal(signal.SIGTERM, before)

        before = signal.signal(signal.SIGTERM, hear)
        _listening.append(self)
        try:
            yield self
        finally:
            _listening.pop()
            signal.signal(signal.SIGTERM, before)

    def after_update(self) -> bool:
        """Whether to save and end now; every process asks after every update.

        With several processes it is true on all of them after the same update, the first that
        none of them had made when one heard the signal.
        """
        if jax.process_count() == 1:
            return self.heard()
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def heard(self) -> bool:
        """Whether this process, the only one, has been told to end; False among several."""
        return self._heard or (self._outer is not None and self._outer.heard())
