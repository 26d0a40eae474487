"""Failed attempt → wait or give up: which answers of an endpoint are worth another request, when, and how often.

In: HTTP statuses, headers and the failures of one call. Out: a tenacity retry loop with two budgets (transport and
unparsable), full-jitter exponential waits, and the waits that the server asks for. Sends nothing itself.
"""

from __future__ import annotations

import dataclasses
import email.utils
import math
from collections.abc import Awaitable, Callable, Mapping

import tenacity

from ditto_jax.types import Outcome

RETRIED_STATUSES = frozenset({408, 409, 425, 429})
MAX_BACKOFF_S = 60.0
_MAX_RETRY_AFTER_S = 86_400.0  # event loops refuse absurd timers; the deadline of the call ends any such wait anyway

Sleep = Callable[[float], Awaitable[None]]

_jitter = tenacity.wait_random_exponential(multiplier=1, max=MAX_BACKOFF_S)


class AttemptFailed(Exception):
    """One request did not yield a reply. `detail` says why, for people."""

    def __init__(self, detail: str):
        super().__init__(detail)
        self.detail = detail


class TransientFailure(AttemptFailed):
    """Worth another request, not before `retry_after_s` seconds if the server said so.

    is_outage: nobody answered, or only to say that the service is broken; an endpoint that is busy is not down.
    """

    def __init__(self, detail: str, retry_after_s: float | None = None, is_outage: bool = False):
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.is_outage = is_outage


class UnparsableFailure(AttemptFailed):
    """The endpoint answered, but not with a reply that satisfies the schema."""


class RefusedFailure(AttemptFailed):
    """The model or its content filter declined to answer."""


class PermanentFailure(AttemptFailed):
    """The same request can only fail again: wrong credentials, unknown model, rejected request."""


class UnauthorizedFailure(PermanentFailure):
    """The endpoint does not accept the key: it may have expired."""


class BudgetFailure(AttemptFailed):
    """The request was not sent: it could cost more than is left."""


@dataclasses.dataclass
class RetryBudget:
    """Retries that one call has left. `stop` is asked by tenacity after every failed attempt."""

    transient: int
    unparsable: int

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Returns whether the last failure's budget is spent; takes one from it otherwise."""
        unparsable = isinstance(_failure(state), UnparsableFailure)
        left = self.unparsable if unparsable else self.transient
        if left <= 0:
            return True
        if unparsable:
            self.unparsable -= 1
        else:
            self.transient -= 1
        return False


def retry_loop(budget: RetryBudget, sleep: Sleep) -> tenacity.AsyncRetrying:
    """Returns a loop that repeats transient and unparsable failures within `budget` and raises the last failure."""
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type((TransientFailure, UnparsableFailure)),
        stop=budget.stop,
        wait=_wait_s,
        sleep=sleep,
        reraise=True,
    )


def outcome_of(failure: AttemptFailed) -> Outcome:
    """Returns the outcome of a call that ended with this failure."""
    if isinstance(failure, RefusedFailure):
        return Outcome.REFUSED
    if isinstance(failure, BudgetFailure):
        return Outcome.OVER_BUDGET
    return Outcome.UNPARSABLE if isinstance(failure, UnparsableFailure) else Outcome.UNAVAILABLE


def is_retried(status: int) -> bool:
    """Returns whether a response with this status says that the same request may succeed later."""
    return status in RETRIED_STATUSES or status >= 500


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Returns the seconds that `retry-after-ms` or `Retry-After` (seconds or HTTP date) ask for, or None.

    now: Unix time in seconds, from which an HTTP date is counted. Dates in the past give 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _failure(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _wait_s(state: tenacity.RetryCallState) -> float:
    failure = _failure(state)
    if isinstance(failure, UnparsableFailure):
        return 0.0
    if isinstance(failure, TransientFailure) and failure.retry_after_s is not None:
        return min(failure.retry_after_s, _MAX_RETRY_AFTER_S)
    return _jitter(state)
