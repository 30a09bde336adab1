"""Failures in OpenAI's form: {"error": {"message", "type", "param", "code"}} and a status."""

import logging
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse

from hetero.errors import ConfigError, HeteroError, NodeLostError, PeerError, PlanError

logger = logging.getLogger(__name__)

# When a node may be ready, or a slot free, again; clients wait this long before they retry.
RETRY_AFTER_S = 2

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

# By whose fault it is, most specific first. What is left (a model, codec or engine that failed at
# its own job) is an internal error, but its message is fit for users all the same.
_STATUS: tuple[tuple[type[HeteroError], int], ...] = (
    (ConfigError, 400),
    (PlanError, 503),
    (NodeLostError, 503),
    (PeerError, 502),
    (HeteroError, 500),
)


class RequestError(ConfigError):
    """A request that can't be served as it is, with the field that is to blame."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Failure:
    status: int
    message: str
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": INVALID_REQUEST if self.status < 500 else SERVER_ERROR,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else None
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def failure_of(error: Exception) -> Failure:
    if isinstance(error, RequestError):
        return Failure(status=error.status, message=str(error), param=error.param, code=error.code)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Failure(status=status, message=str(error))
    # A bug: its text may hold anything, so it stays in the log.
    return Failure(status=500, message="internal error; the router's log has the details")


def log_failure(error: Exception, request_id: str | None) -> None:
    """Ours are logged, a bug with its traceback; the client's own mistakes are not news."""
    if not isinstance(error, HeteroError):
        logger.error("request %s: a bug", request_id, exc_info=error)
    elif failure_of(error).status >= 500:
        logger.warning("request %s: %s", request_id, error)
