from __future__ import annotations

from pathlib import Path

import pytest

from ai_task_orchestra.settings import Settings
from tests.support import reference
from tests.support.api_app import INFERENCE, TEMPLATES, ApiUnderTest, problem, running_api
from tests.support.waiting import wait_until

EXAMPLES = {endpoint.title: endpoint for endpoint in reference.endpoints()}


class TestListTemplates:
    async def test_templates_come_sorted_with_the_references_fields(self, api: ApiUnderTest) -> None:
        found = (await api.client.get("/api/v1/templates")).json()
        assert [template["name"] for template in found] == ["every-type", "ollama-inference"]
        assert found[1] == EXAMPLES["List Templates"].response[1]

    async def test_a_file_added_while_running_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deployed = []

        async def deploy(settings: Settings) -> None:
            deployed.append(settings)

        monkeypatch.setattr("api.main.run_bootstrap", deploy)
        async with running_api(tmp_path) as api:
            text = TEMPLATES["every-type.yaml"].replace("every-type", "added")
            (api.templates_dir / "added.yaml").write_text(text)

            async def found() -> bool:
                return (await api.client.get("/api/v1/templates/added")).status_code == 200

            await wait_until(found, description="the added template is served")
            await wait_until(lambda: deployed, description="its deployment is registered")


class TestGetTemplate:
    async def test_the_answer_is_the_references_with_steps_as_written(self, api: ApiUnderTest) -> None:
        answer = await api.client.get("/api/v1/templates/ollama-inference")
        assert answer.json() == EXAMPLES["Get Template"].response

    @pytest.mark.parametrize("name", ["nope", "%00", "..%2fetc%2fpasswd", "x" * 9000, "validate", "%ED%A0%80"])
    async def test_an_unknown_name_is_not_found(self, api: ApiUnderTest, name: str) -> None:
        assert problem(await api.client.get(f"/api/v1/templates/{name}")) == (404, "not_found")
        await api.still_serves()


class TestValidateParameters:
    async def test_fitting_parameters_give_the_references_answer(self, api: ApiUnderTest) -> None:
        example = EXAMPLES["Validate Template Parameters"]
        query = {"template_name": "ollama-inference"}
        answer = await api.client.post("/api/v1/templates/validate", params=query, json=example.request)
        assert (answer.status_code, answer.json()) == (200, example.response)
        assert api.tasks.tasks == {}

    async def test_missing_and_wrong_names_are_listed_sorted_with_reasons(self, api: ApiUnderTest) -> None:
        body = {"zeta": "secret-value", "count": True, "flag": None, "items": {}}
        query = {"template_name": "every-type"}
        answer = await api.client.post("/api/v1/templates/validate", params=query, json=body)
        found = answer.json()
        assert answer.status_code == 200
        assert found["valid"] is False
        assert found["missing_parameters"] == ["seconds"]
        assert found["invalid_parameters"] == ["count", "flag", "items", "zeta"]
        assert sorted(found["errors"]) == ["count", "flag", "items", "seconds", "zeta"]
        assert "secret-value" not in answer.text

    async def test_an_unknown_template_is_not_found(self, api: ApiUnderTest) -> None:
        answer = await api.client.post("/api/v1/templates/validate?template_name=nope", json={})
        assert problem(answer) == (404, "not_found")

    async def test_the_template_must_be_named(self, api: ApiUnderTest) -> None:
        answer = await api.client.post("/api/v1/templates/validate", json=INFERENCE)
        assert problem(answer) == (422, "validation_error")

    @pytest.mark.parametrize("body", ["[]", "null", '"text"', "5"])
    async def test_a_body_that_is_no_object_is_refused(self, api: ApiUnderTest, body: str) -> None:
        answer = await api.raw(body.encode(), "/api/v1/templates/validate?template_name=ollama-inference")
        assert problem(answer) == (422, "validation_error")
