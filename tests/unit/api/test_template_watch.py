from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ai_task_orchestra.errors import DispatchError
from ai_task_orchestra.library import TemplateLibrary
from api.template_watch import TemplateWatch, bootstrap_environment, run_bootstrap
from tests.support.api_app import TEMPLATES, settings_for, write_templates
from tests.support.waiting import wait_until


@pytest.fixture
def library(tmp_path: Path) -> TemplateLibrary:
    library = TemplateLibrary(write_templates(tmp_path / "templates"))
    library.refresh()
    return library


def add_template(library_dir: Path, name: str) -> None:
    (library_dir / f"{name}.yaml").write_text(TEMPLATES["every-type.yaml"].replace("every-type", name))


class Deploy:
    """Counts deployments, the first `failing` of which fail."""

    def __init__(self, failing: int = 0) -> None:
        self.count, self.failing = 0, failing

    async def __call__(self) -> None:
        self.count += 1
        if self.count <= self.failing:
            raise DispatchError("Prefect does not answer")


class TestTemplateWatch:
    async def test_a_change_is_read_and_deployed_once(self, library: TemplateLibrary, tmp_path: Path) -> None:
        deploy = Deploy()
        async with TemplateWatch(library, deploy, interval_seconds=0.01).running():
            add_template(tmp_path / "templates", "first")
            await wait_until(lambda: "first" in library.templates, description="the change is read")
            await wait_until(lambda: deploy.count == 1, description="it is deployed")
            add_template(tmp_path / "templates", "second")
            await wait_until(lambda: deploy.count == 2, description="the next change is deployed")

    async def test_without_a_change_nothing_is_deployed(self, library: TemplateLibrary) -> None:
        deploy, looks = Deploy(), 0
        real = library.refresh

        def counted() -> bool:
            nonlocal looks
            looks += 1
            return real()

        library.refresh = counted  # type: ignore[method-assign]
        async with TemplateWatch(library, deploy, interval_seconds=0.01).running():
            await wait_until(lambda: looks > 5, description="several looks at the folder")
        assert deploy.count == 0

    async def test_a_failed_deployment_is_logged_and_tried_again(
        self, library: TemplateLibrary, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "api")
        deploy = Deploy(failing=2)
        watch = TemplateWatch(library, deploy, interval_seconds=0.01, first_backoff_seconds=0.02)
        async with watch.running():
            add_template(tmp_path / "templates", "added")
            await wait_until(lambda: deploy.count == 3, description="two failures and a success")
            await wait_until(lambda: "deployments_registered" in caplog.messages, description="the success is logged")
        delays = [vars(line)["retry_seconds"] for line in caplog.records if hasattr(line, "retry_seconds")]
        assert delays == [0.02, 0.04]

    async def test_a_folder_that_can_not_be_read_does_not_end_the_watch(
        self, library: TemplateLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = []

        def unreadable() -> bool:
            failed.append(True)
            raise PermissionError

        async with TemplateWatch(library, Deploy(), interval_seconds=0.01).running():
            with monkeypatch.context() as patched:
                patched.setattr(library, "refresh", unreadable)
                await wait_until(lambda: failed, description="a look that failed")
            add_template(tmp_path / "templates", "added")
            await wait_until(lambda: "added" in library.templates, description="the change is read afterwards")


class TestRunBootstrap:
    async def test_a_process_that_fails_is_told_with_its_last_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "failing_bootstrap.py").write_text("raise SystemExit('no Prefect server')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(DispatchError, match="exit code 1: no Prefect server"):
            await run_bootstrap(settings_for(tmp_path), module="failing_bootstrap")

    async def test_the_process_gets_our_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = "import os, pathlib; pathlib.Path(os.environ['ORCHESTRA_HOME'], 'seen').write_text(repr(os.environ))"
        (tmp_path / "noting_bootstrap.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        settings = settings_for(tmp_path, prefect_port=4711)
        await run_bootstrap(settings, module="noting_bootstrap")
        seen = (tmp_path / "seen").read_text()
        assert "http://127.0.0.1:4711/api" in seen
        assert str(settings.templates_dir) in seen

    def test_prefects_password_comes_from_the_setting_or_the_file(self, tmp_path: Path) -> None:
        settings = settings_for(tmp_path)
        assert "PREFECT_API_AUTH_STRING" not in bootstrap_environment(settings)
        settings.prefect_auth_file.write_text("admin:from-file\n")
        assert bootstrap_environment(settings)["PREFECT_API_AUTH_STRING"] == "admin:from-file"
        chosen = settings_for(tmp_path, prefect_auth_string="admin:chosen")
        assert bootstrap_environment(chosen)["PREFECT_API_AUTH_STRING"] == "admin:chosen"

    def test_our_own_secrets_stay_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ORCHESTRA_API_KEY", "hunter2")
        monkeypatch.setenv("ORCHESTRA_DATABASE_URL", "postgresql://u:hunter2@h/d")
        assert "hunter2" not in repr(bootstrap_environment(settings_for(tmp_path)))
