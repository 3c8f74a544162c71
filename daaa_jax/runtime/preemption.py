"""Preemption: on SIGTERM, the notice that a machine will be taken away, a run saves and ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was preempted and has saved; the message says how far it came."""


_listening: list["Notice"] = []  # the outermost notice that is listening, if any


class Notice:
    """Whether the run is preempted."""

    def __init__(self):
        """Not preempted; `listening` has to be entered."""
        self._heard, self._calls = False, 0

    @contextlib.contextmanager
    def listening(self) -> Iterator["Notice"]:
        """Listens for SIGTERM within the block; a second signal ends the process, as usual.

        Within the block of another notice, that one is returned instead.

        Only the main thread can listen; in others signals are not heard. With several processes
        JAX itself listens, and notifies all of them of a signal to one.
        """
        main = threading.current_thread() is threading.main_thread()
        if jax.process_count() > 1 or not main:
            yield self
            return

        if _listening:
            yield _listening[-1]
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
        """Whether to save and end now; every process must call it after every update.

        With several processes it is true on all of them after the same update: the first that none
        of them had made when one received the signal.
        """
        if jax.process_count() == 1:
            return self.heard()
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def heard(self) -> bool:
        """Whether this process, if it is the only one, is preempted; False with several."""
        return self._heard
