from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import api.main
from tests.support import reference
from tests.support.api_app import ApiUnderTest, BuiltApp, settings_for


def test_importing_the_module_opens_and_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ORCHESTRA_DATABASE_URL=sqlite:///nowhere\n")
    script = (
        "import sys, api.main\n"
        "sys.addaudithook(lambda event, args: None)\n"
        "try:\n    api.main.app\nexcept Exception as exc:\n    print(type(exc).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ConfigurationError", done.stderr


def test_the_module_has_only_the_one_lazy_name() -> None:
    with pytest.raises(AttributeError, match="application"):
        _ = api.main.application


async def test_the_core_is_open_exactly_while_the_application_runs(tmp_path: Path) -> None:
    built = BuiltApp(settings_for(tmp_path))
    assert not built.core.is_open
    async with built.running() as running:
        assert running.core.is_open
    assert not running.core.is_open


class TestOpenApiDocument:
    async def test_every_endpoint_of_the_reference_is_in_it(self, api: ApiUnderTest) -> None:
        paths = (await api.client.get("/openapi.json")).json()["paths"]
        for endpoint in reference.endpoints():
            assert endpoint.method.lower() in paths[f"/api/v1{endpoint.path}"], endpoint.title

    async def test_everything_under_the_prefix_needs_the_key_and_names_its_errors(self, api: ApiUnderTest) -> None:
        document = (await api.client.get("/openapi.json")).json()
        scheme = document["components"]["securitySchemes"]["ApiKey"]
        assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")
        for path, operations in document["paths"].items():
            for operation in operations.values():
                open_to_all = not path.startswith("/api/v1")
                assert operation.get("security", []) == ([] if open_to_all else [{"ApiKey": []}]), path
                if not open_to_all:
                    error = operation["responses"]["401"]["content"]["application/json"]["schema"]
                    assert error == {"$ref": "#/components/schemas/Problem"}
        assert "HTTPValidationError" not in str(document)

    async def test_limits_and_choices_of_queries_are_named(self, api: ApiUnderTest) -> None:
        document = (await api.client.get("/openapi.json")).json()
        queries = {query["name"]: query["schema"] for query in document["paths"]["/api/v1/tasks"]["get"]["parameters"]}
        assert (queries["limit"]["minimum"], queries["limit"]["maximum"], queries["limit"]["default"]) == (1, 1000, 100)
        assert queries["offset"]["minimum"] == 0
        assert queries["status"]["enum"] == ["queued", "running", "completed", "failed", "cancelled"]
        assert queries["template"]["type"] == "string"

    async def test_creating_a_task_shows_the_references_example(self, api: ApiUnderTest) -> None:
        document = (await api.client.get("/openapi.json")).json()
        schema = document["paths"]["/api/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["examples"][0]["template"] == "ollama-inference"
        assert schema["additionalProperties"] is False
        assert sorted(schema["required"]) == ["parameters", "template"]
