"""The one border where what can go wrong with a model server becomes an error of ours.

Messages are one line, carry at most `MAX_QUOTED` characters of what the server said, and no credentials.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

import httpx
import ollama

from ai_task_orchestra.errors import ModelError, ModelNotFoundError, ModelOutputError
from flows.clients.ollama_transport import BoundedTransport

MAX_QUOTED: Final = 200

# Worth another try at once: the server is full, limits the rate, or what stands behind it does not answer.
_PASSING: Final = frozenset({429, 502, 503, 504})
_MISMATCH: Final = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


class ModelUnavailableError(ModelError):
    """The model server is not there or takes no request now.

    `retry_after_seconds` is what the server asked for, None if it did not.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message, retryable=True)


@contextmanager
def translated(model: str, transport: BoundedTransport) -> Iterator[None]:
    """Turn every error of the official client, httpx and the answer's shape into one of the ModelError family.

    The official client loses the status where an error's body is no JSON object: the transport still knows it.
    """
    try:
        yield
    except ollama.ResponseError as exc:
        # Status -1 is an `error` line in the middle of an answer that began with 200.
        raise _refused(model, exc.status_code, str(exc.error), transport.retry_after) from exc
    except (httpx.ConnectError, httpx.ConnectTimeout, OSError) as exc:
        raise ModelUnavailableError("the model server can't be reached") from exc
    except httpx.HTTPError as exc:
        raise _broken_off(exc, transport) from exc
    except ollama.RequestError as exc:
        raise ModelError(f"the model server's client refused the request: {quoted(str(exc))}") from exc
    except _MISMATCH as exc:
        status = transport.status or 0
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _refused(model, status, "", transport.retry_after) from exc
        if transport.status is None:  # nothing was sent yet: the fields did not fit the client's own types
            raise ModelError("the model server's client refused the request") from exc
        raise ModelOutputError("the model server's answer is not in Ollama's form", retryable=True) from exc


def _refused(model: str, status: int, text: str, retry_after: str | None) -> ModelError:
    said = f": {quoted(text)}" if text.strip() else ""
    if status == HTTPStatus.NOT_FOUND:
        # Words that name no model come from something else that answers at this address.
        return ModelNotFoundError(f"the model server has no model {model}{'' if 'model' in text else said}")
    if status in _PASSING:
        return ModelUnavailableError(
            f"the model server is busy ({status}){said}", retry_after_seconds=seconds_to_wait(retry_after)
        )
    if status < 0:
        return ModelError(f"the model server gave up in the middle of its answer{said}", retryable=True)
    # A model that does not fit will not fit next time either; other failures of the server may pass.
    return ModelError(
        f"the model server refused the request ({status}){said}",
        retryable=status >= HTTPStatus.INTERNAL_SERVER_ERROR and "memory" not in text,
    )


def _broken_off(exc: httpx.HTTPError, transport: BoundedTransport) -> ModelError:
    if transport.status is None:
        return ModelError(f"the model server closed the connection ({type(exc).__name__})", retryable=True)
    return ModelOutputError(f"the model server's answer broke off ({type(exc).__name__})", retryable=True)


def quoted(text: str) -> str:
    """What the server said, fit for a message: one line, no more than `MAX_QUOTED` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTED else f"{line[: MAX_QUOTED - 1]}…"


def seconds_to_wait(retry_after: str | None) -> float | None:
    """The header's value: seconds or a date (RFC 9110). None where it is absent or unreadable."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
