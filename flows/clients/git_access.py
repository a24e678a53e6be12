"""How a repository's server may be reached: at which addresses, and as whom."""

from __future__ import annotations

import netrc
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from ai_task_orchestra.errors import GitError
from ai_task_orchestra.redaction import remember
from ai_task_orchestra.settings import Settings
from flows.clients.addresses import resolve

_PORTS: Final = {"https": 443, "http": 80}
_ALL: Final = "*"
# git runs this itself when a server asks; the values come by the environment, which no other program sees.
_HELPER: Final = (
    "!f() { test \\\"$1\\\" = get && printf 'username=%s\\\\npassword=%s\\\\n' "
    '\\"$GIT_LOGIN\\" \\"$GIT_PASSWORD\\"; }; f'
)


@dataclass(frozen=True)
class Access:
    """Additions to git's configuration and environment."""

    configuration: str = ""
    environment: tuple[tuple[str, str], ...] = ()


async def access_to(url: str, settings: Settings) -> Access:
    """For an address of `http` or `https`.

    The name is looked up once: git connects to these addresses, so that no second answer can differ. Where the
    operator has set a proxy, that one decides.

    Raises:
        StepInputError: the host has an address that is not on the public internet, and the operator did not name it.
        GitError: the operator's credentials can't be used.
        StepError: the name can't be resolved; retryable.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    login = _login(host, settings.git_credentials_file) if parts.scheme == "https" else None
    configuration = ""
    if not _proxied(parts.scheme, host):
        private = login is not None or _is_named(host, settings.git_private_hosts)
        configuration += await _pinned(parts, host, private)
    if login is None:
        return Access(configuration)
    configuration += f'[credential "https://{parts.netloc}"]\n\thelper =\n\thelper = "{_HELPER}"\n'
    return Access(configuration, (("GIT_LOGIN", login[0]), ("GIT_PASSWORD", login[1])))


async def _pinned(parts: SplitResult, host: str, private: bool) -> str:
    port = parts.port or _PORTS[parts.scheme]
    addresses = await resolve(host, port, allow_private=private, field="repo", setting="ORCHESTRA_GIT_PRIVATE_HOSTS")
    shown = ",".join(f"[{each}]" if ip_address(each).version == 6 else each for each in addresses)
    return f'[http]\n\tcurloptResolve = "{host}:{port}:{shown}"\n'


def _proxied(scheme: str, host: str) -> bool:
    proxies = getproxies_environment()
    return bool((proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host))


def _is_named(host: str, names: Collection[str]) -> bool:
    return _ALL in names or host in {name.lower() for name in names}


def _login(host: str, path: Path) -> tuple[str, str] | None:
    """Name and password for exactly this host; a `default` entry of the file is not for strangers' addresses."""
    try:
        info = path.stat()
    except OSError:
        return None
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or info.st_uid != os.geteuid():
        raise GitError("the operator's git credentials can be read by others: chmod 600 and its owner must be ours")
    try:
        entries = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as exc:
        raise GitError("the operator's git credentials can't be read: lines as in a .netrc file are expected") from exc
    if host == "default" or host not in entries:
        return None
    name, _, password = entries[host]
    remember(password)
    return name, password
