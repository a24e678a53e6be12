"""`http_request`: one request to a server, chosen by whoever submits the task."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import httpx

from ai_task_orchestra.errors import StepError, StepInputError
from flows.clients.addresses import resolve
from flows.steps import fields as checked
from flows.steps.base import StepContext
from flows.text import decoded

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_RETRYABLE: Final = (429, 502, 503, 504)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
# What decides where the request goes and where it ends is ours.
_OUR_HEADERS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "expect",
        "accept-encoding",
    }
)
_MAX_URL: Final = 8192


class HttpRequest:
    """Sends one request. The address is looked up once, checked, and used; redirects are an answer like any other."""

    type: ClassVar[str] = "http_request"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: url, method, headers, json."""
        settings = context.settings
        url = _url(checked.text(fields, "url"))
        method = (checked.optional_text(fields, "method") or "GET").upper()
        if method not in _METHODS:
            raise StepInputError(f"method: one of {', '.join(_METHODS)} is needed")
        headers, body = _headers(fields), _body(fields)
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await resolve(
            url.host,
            port,
            allow_private=settings.http_allow_private,
            field="url",
            setting="ORCHESTRA_HTTP_ALLOW_PRIVATE",
        )
        timeout = httpx.Timeout(context.timeout_seconds, connect=settings.connect_timeout_seconds)
        verify = httpx.create_ssl_context()  # knows the operator's SSL_CERT_FILE; `trust_env` would bring proxies, too
        async with httpx.AsyncClient(timeout=timeout, verify=verify, trust_env=False) as client:
            status, output, truncated = await _send(
                client, method, url, addresses, headers, body, settings.max_output_bytes
            )
        context.log.info("http_answered", extra={"task_id": context.task_id, "status": status})
        if status >= 400:
            raise StepError(f"the server answered {status}", retryable=status in _RETRYABLE)
        return {"status": status, "output": output, "truncated": truncated}


async def _send(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    addresses: list[str],
    headers: dict[str, str],
    body: bytes | None,
    limit: int,
) -> tuple[int, str, bool]:
    """Status, text, and whether that was cut. The next address is tried only where none could be connected to."""
    own = {"host": url.netloc.decode("ascii"), "accept-encoding": "identity"}
    for last, address in ((address is addresses[-1], address) for address in addresses):
        request = client.build_request(
            method,
            url.copy_with(host=address),
            headers=headers | own,
            content=body,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        try:
            response = await client.send(request, stream=True)
            try:
                return response.status_code, *await _read(response, limit)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            if "CERTIFICATE_VERIFY_FAILED" in str(exc):
                raise StepError("the server's certificate can't be verified") from exc
            if last:
                raise StepError("the server can't be reached", retryable=True) from exc
        except httpx.TimeoutException as exc:
            raise StepError("the server did not answer in time", retryable=True) from exc
        except httpx.TransportError as exc:
            raise StepError(f"the exchange with the server broke off ({type(exc).__name__})", retryable=True) from exc
    raise StepError("the host has no address")


async def _read(response: httpx.Response, limit: int) -> tuple[str, bool]:
    """The body up to `limit` bytes. It is read as it was sent: unpacking could make anything of a few bytes."""
    if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise StepError("the server packed its answer though it was asked not to")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > limit:
            break
    cut = len(data) > limit
    text, cut_again = decoded(bytes(data[:limit]), limit, complete=not cut)
    return text, cut or cut_again


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as exc:
        raise StepInputError("url: it is no URL") from exc
    if len(text) > _MAX_URL or not text.isprintable() or " " in text or "\\" in text:
        raise StepInputError("url: it holds characters that a URL can't have, or too many")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise StepInputError("url: it must be http://host or https://host")
    if url.userinfo:
        raise StepInputError("url: credentials in the address are not accepted; use a header")
    return url.copy_with(fragment=None)


def _headers(fields: Mapping[str, Any]) -> dict[str, str]:
    value = fields.get("headers", {})
    if not isinstance(value, Mapping):
        raise StepInputError("headers: an object is needed")
    headers: dict[str, str] = {}
    for name, content in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _OUR_HEADERS:
            raise StepInputError("headers: a name that is not allowed")
        if not isinstance(content, str) or not _HEADER_VALUE.fullmatch(content):
            raise StepInputError(f"headers.{name}: a text of printable ASCII characters is needed")
        headers[name.lower()] = content
    return headers | (
        {"content-type": "application/json"} if "json" in fields and "content-type" not in headers else {}
    )


def _body(fields: Mapping[str, Any]) -> bytes | None:
    if "json" not in fields:
        return None
    try:
        return json.dumps(fields["json"], allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise StepInputError("json: the value can't be written as JSON") from exc
