"""Answers that are none: a status, a code for programs, a message for people. Nothing of what was sent is repeated."""

from __future__ import annotations

from patchform.serving.jobs import Kind, Refusal

STATUS: dict[Kind, int] = {"picture": 400, "memory": 503, "fault": 500, "busy": 503, "late": 503, "away": 503}
CODES: dict[Kind, str] = {
    "picture": "bad_picture",
    "memory": "no_memory",
    "fault": "model_failed",
    "busy": "busy",
    "late": "late",
    "away": "restarting",
}
RETRY = {"busy", "late", "restarting", "stopping"}
"""Codes after which the same may be tried again soon."""


class RequestError(Exception):
    """A request that is not answered as it wished.

    Args:
        status: of HTTP.
        code: a word for programs, part of the interface.
        message: what is wrong and what to do.
        close: end the connection, since more comes that nobody wants.
    """

    def __init__(self, status: int, code: str, message: str, *, close: bool = False) -> None:
        self.status, self.code, self.message, self.close = status, code, message, close
        super().__init__(message)

    @staticmethod
    def of(refusal: Refusal) -> RequestError:
        """What a refusal is in HTTP."""
        return RequestError(STATUS[refusal.kind], CODES[refusal.kind], refusal.message)

    def record(self) -> dict[str, str]:
        """For JSON."""
        return {"code": self.code, "message": self.message}
