from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ai_task_orchestra.api_keys import generate_key
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.exposure import is_loopback
from ai_task_orchestra.stack.home import write_private
from api.documentation import docs_shown
from api.identity import Identity
from api.key_ring import KeyRing
from api.serve import listening
from api.startup import refuse_open_doors
from tests.support.api_app import running_api, settings_for
from tests.support.task_double import InMemoryKeys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_loopback_addresses_are_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "gpu-machine", "localhost.evil.example"])
def test_whatever_else_may_be_heard_by_others(host: str) -> None:
    assert not is_loopback(host)


LONG_KEY = "wq8Zk3-fVn2-xT7p-Lm5d"


class TestOpenDoors:
    async def test_on_loopback_no_key_is_needed_to_start(self, tmp_path: Path) -> None:
        settings = settings_for(tmp_path, api_key=None)
        await refuse_open_doors(settings, KeyRing(settings, InMemoryKeys()))

    async def test_elsewhere_starting_without_a_key_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="ORCHESTRA_API_KEY"):
            async with running_api(tmp_path, host="0.0.0.0", api_key=None):
                pass

    @pytest.mark.parametrize("where", ["setting", "file", "database"])
    async def test_any_kind_of_key_is_enough(self, tmp_path: Path, where: str) -> None:
        stored = InMemoryKeys()
        if where == "database":
            stored.by_hash["x"] = Identity("ci")
        if where == "file":
            write_private(tmp_path / "api-key", generate_key())
        settings = settings_for(tmp_path, host="0.0.0.0", api_key=LONG_KEY if where == "setting" else None)
        await refuse_open_doors(settings, KeyRing(settings, stored))

    async def test_a_key_that_others_can_guess_or_read_is_none(self, tmp_path: Path) -> None:
        for weak in ("your-api-key-here", "hunter2"):
            settings = settings_for(tmp_path, host="0.0.0.0", api_key=weak)
            with pytest.raises(ConfigurationError, match="ORCHESTRA_API_KEY"):
                await refuse_open_doors(settings, KeyRing(settings, InMemoryKeys()))
        (tmp_path / "api-key").write_text(generate_key())
        (tmp_path / "api-key").chmod(0o644)
        settings = settings_for(tmp_path)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            await refuse_open_doors(settings, KeyRing(settings, InMemoryKeys()))


class TestDocumentation:
    @pytest.mark.parametrize(
        ("host", "docs", "shown"),
        [
            ("127.0.0.1", None, True),
            ("0.0.0.0", None, False),
            ("0.0.0.0", True, True),
            ("127.0.0.1", False, False),
        ],
    )
    async def test_it_is_shown_on_loopback_or_as_set(
        self, tmp_path: Path, host: str, docs: bool | None, shown: bool
    ) -> None:
        async with running_api(tmp_path, host=host, docs=docs) as api:
            for path in ("/docs", "/openapi.json"):
                assert (await api.client.get(path)).status_code == (200 if shown else 404)
            assert docs_shown(settings_for(tmp_path, host=host, docs=docs)) is shown


class TestListening:
    def test_a_taken_port_is_told_with_its_mend(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(ConfigurationError, match="ORCHESTRA_PORT"),
            listening("127.0.0.1", taken.getsockname()[1]),
        ):
            pass

    def test_a_free_port_is_bound(self) -> None:
        with listening("127.0.0.1", 0) as listener:
            assert listener.getsockname()[1] > 0
