from __future__ import annotations

from pathlib import Path

from ai_task_orchestra import __version__
from tests.support.api_app import BROKEN_TEMPLATE, ApiUnderTest, running_api, write_templates


class TestHealth:
    async def test_it_needs_no_key_and_asks_nobody(self, api: ApiUnderTest) -> None:
        api.tasks.broken = ConnectionRefusedError()
        answer = await api.client.get("/health", headers={"X-API-Key": ""})
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": __version__})


class TestReady:
    async def test_it_needs_no_key_and_counts_templates(self, api: ApiUnderTest) -> None:
        del api.client.headers["X-API-Key"]
        answer = await api.client.get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "templates": 2, "broken_templates": []})

    async def test_what_is_missing_is_named(self, api: ApiUnderTest) -> None:
        api.tasks.missing = {"prefect": "does not answer", "database": "refuses connections"}
        answer = await api.client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["code"] == "not_ready"
        assert answer.json()["detail"] == "Not ready: database: refuses connections; prefect: does not answer"
        assert answer.json()["missing"] == api.tasks.missing

    async def test_a_broken_template_file_is_listed_and_leaves_the_rest_working(self, tmp_path: Path) -> None:
        (write_templates(tmp_path / "templates") / "broken.yaml").write_text(BROKEN_TEMPLATE)
        async with running_api(tmp_path) as api:
            answer = await api.client.get("/ready")
            assert answer.status_code == 200
            (broken,) = answer.json()["broken_templates"]
            assert broken["file"] == "broken.yaml"
            assert broken["reason"]
            assert str(tmp_path) not in answer.text
            await api.submit()
