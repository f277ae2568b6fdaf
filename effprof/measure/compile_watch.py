"""Books time in torch.compile to the phase `compile`, whichever phase of the step set it off."""

from __future__ import annotations

import sys
from typing import Any

from effprof.measure.clock import COMPILE, PhaseClock

_DYNAMO = "torch._dynamo.callback"
_COUNTERS = "torch._dynamo.utils"
# A compilation in a later step than these is a recompilation: shapes or a branch that were not seen before.
_FIRST_STEPS = 2


class CompileWatch:
    """Listens to the start and end of compilations, recompilations and lazily compiled backwards.

    Never imports the compiler itself, which takes a second: where it was not loaded nothing was compiled.
    """

    def __init__(self, clock: PhaseClock) -> None:
        self._clock: PhaseClock | None = clock
        self._handler: Any = None
        self._outer: list[int] = []
        self._missed = False
        self._count = 0
        self._late = 0  # after the second step
        self._last_step = 0

    def install(self) -> None:
        """Start to listen, once the compiler is loaded. Safe to call again."""
        module = sys.modules.get(_DYNAMO)
        if self._handler is not None or module is None:
            return
        handler = getattr(module, "callback_handler", None)
        if handler is None or not hasattr(handler, "register_start_callback"):
            return
        handler.register_start_callback(self._started)
        handler.register_end_callback(self._ended)
        self._handler = handler

    @property
    def is_complete(self) -> bool:
        """Whether every compilation so far was seen, so that a `compile` of 0 s means that there was none."""
        return not self._missed and (self._handler is not None or _DYNAMO not in sys.modules)

    def note_late_load(self) -> None:
        """Called after a step: a compiler loaded since the last `install` may have compiled unseen."""
        if self._handler is None and _DYNAMO in sys.modules:
            self._missed = True
            self.install()

    def facts(self) -> dict[str, Any]:
        """How often the compiler ran so far, and where it gave up."""
        facts: dict[str, Any] = {"compile_is_measured": self.is_complete}
        if _DYNAMO not in sys.modules:
            return facts | {"compilations": 0, "compilations_late": 0}
        if self._handler is not None:
            facts |= {"compilations": self._count, "compilations_late": self._late}
            facts |= {"compile_last_step": self._last_step} if self._count else {}
        counters = getattr(sys.modules.get(_COUNTERS), "counters", None)
        return facts if counters is None else facts | {"graph_breaks": sum(counters["graph_break"].values())}

    def remove(self) -> None:
        """Stop listening."""
        handler, self._handler, self._clock = self._handler, None, None
        if handler is not None:
            handler.remove_start_callback(self._started)
            handler.remove_end_callback(self._ended)

    def _started(self, *_: Any) -> None:
        if self._clock is not None:
            self._outer.append(self._clock.phase)
            self._count += 1
            self._last_step = self._clock.head
            self._late += self._last_step >= _FIRST_STEPS
            self._clock.switch(COMPILE)

    def _ended(self, *_: Any) -> None:
        clock = self._clock
        if clock is not None and self._outer:
            outer = self._outer.pop()
            if clock.phase == COMPILE:
                clock.switch(outer)
