"""The one error type that effprof raises for a person to read; it carries its own exit code."""

from __future__ import annotations


class EffprofError(Exception):
    """What went wrong and what to do about it.

    Args:
        message: what happened and where, one sentence.
        hint: what to do next, one sentence; empty where nothing helps.
        exit_code: 1 a check that was asked for failed, 2 bad input or an honest refusal.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
