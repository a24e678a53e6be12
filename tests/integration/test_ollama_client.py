"""The model client against a scripted server: every way an answer can go wrong, and that leaving ends the work."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator

import pytest

from ai_task_orchestra.errors import ModelError, ModelNotFoundError, ModelOutputError
from ai_task_orchestra.testing.scripted_ollama import ScriptedModel, ScriptedOllama
from flows.clients import ollama as client_module
from tests.support.ollama import client_for
from tests.support.servers import free_port
from tests.support.waiting import wait_until

MODEL = "smollm2:135m"
TEXT = "The capital of France is Paris."


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOllama]:
    models = [ScriptedModel(name=MODEL, text=TEXT, size_bytes=270_000_000, vram_bytes=70_000_000)]
    async with ScriptedOllama(models=models) as running:
        yield running


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_SECONDS", 0.01)


async def failure(server: ScriptedOllama | str, **overrides: float) -> ModelError:
    """The error of a generation that must fail."""
    async with client_for(server, **overrides) as client:
        with pytest.raises(ModelError) as caught:
            await client.generate(model=MODEL, prompt="hi")
    assert len(caught.value.message) < 400
    return caught.value


def asked(server: ScriptedOllama, endpoint: str) -> int:
    return sum(request.endpoint == endpoint for request in server.requests)


async def test_a_whole_answer_comes_with_the_engines_counts_and_the_loaded_size(server: ScriptedOllama) -> None:
    server.script(load_seconds=0.05, tokens_per_second=500)
    async with client_for(server) as client:
        answer = await client.generate(model=MODEL, prompt="What is the capital of France?", system="Be brief.")

    assert (answer.text, answer.truncated, answer.done_reason) == (TEXT, False, "stop")
    assert answer.call.memory_bytes == 270_000_000
    assert answer.call.gpu_memory_bytes == 70_000_000
    assert answer.call.prompt_tokens == 8
    assert answer.call.output_tokens == 6
    assert 0.05 <= answer.call.load_seconds < 2
    assert 0.01 <= answer.call.evaluation_seconds < 2


async def test_the_size_is_known_even_if_the_model_is_unloaded_with_the_answer(server: ScriptedOllama) -> None:
    server.script(tokens_per_second=20)
    async with client_for(server) as client:
        answer = await client.generate(model=MODEL, prompt="hi", keep_alive=0)

    assert answer.call.memory_bytes == 270_000_000
    await wait_until(lambda: server.statistics.unloads == 1, description="the model is unloaded")


async def test_a_chat_keeps_thinking_and_tool_calls_beside_the_text(server: ScriptedOllama) -> None:
    server.script(thinking="Hmm.", tool_calls=[{"function": {"name": "look", "arguments": {"at": "map"}}}])
    async with client_for(server) as client:
        answer = await client.chat(model=MODEL, messages=[{"role": "user", "content": "hi"}])

    assert answer.message == {
        "role": "assistant",
        "content": TEXT,
        "thinking": "Hmm.",
        "tool_calls": [{"function": {"name": "look", "arguments": {"at": "map"}}}],
    }


async def test_embeddings_come_in_order_with_their_usage(server: ScriptedOllama) -> None:
    async with client_for(server) as client:
        both, call = await client.embed(model=MODEL, texts=["one", "two"])
        second, _ = await client.embed(model=MODEL, texts="two")

    assert both[1] == second[0]
    assert both[0] != both[1]
    assert call.prompt_tokens == 2
    assert call.memory_bytes == 270_000_000


async def test_an_answer_cut_at_the_token_limit_says_so(server: ScriptedOllama) -> None:
    async with client_for(server) as client:
        answer = await client.generate(model=MODEL, prompt="hi", options={"num_predict": 2})

    assert (answer.text, answer.truncated, answer.done_reason) == ("The capital", True, "length")


async def test_an_answer_larger_than_the_limit_is_cut_and_its_generation_ended(server: ScriptedOllama) -> None:
    server.script(text="ä " * 100_000, tokens_per_second=20_000)
    async with client_for(server, max_output_bytes=1000) as client:
        answer = await client.generate(model=MODEL, prompt="hi")

    assert answer.truncated
    assert 990 <= len(answer.text.encode()) <= 1000
    assert set(answer.text) == {"ä", " "}
    await wait_until(lambda: server.statistics.cancelled == 1, description="the generation was ended")


async def test_line_separators_inside_the_text_do_not_tear_the_stream(server: ScriptedOllama) -> None:
    text = "next\x85line sep\u2028para\u2029end é\u2027"
    server.script(text=text)
    async with client_for(server) as client:
        assert (await client.generate(model=MODEL, prompt="hi")).text == text


async def test_a_server_that_says_nothing_runs_into_the_first_token_time_out(server: ScriptedOllama) -> None:
    server.script(fault="hang")
    began = time.monotonic()
    error = await failure(server, first_token_timeout_seconds=0.2)

    assert time.monotonic() - began < 3
    assert error.retryable
    assert "first token" in error.message
    await wait_until(lambda: server.requests[0].outcome == "cancelled", description="the connection was closed")


async def test_a_server_that_falls_silent_runs_into_the_shorter_time_out_between_tokens(server: ScriptedOllama) -> None:
    server.script(fault="hang", after_tokens=2)
    error = await failure(server, first_token_timeout_seconds=60, token_idle_timeout_seconds=0.2)

    assert error.retryable
    assert "further token" in error.message
    await wait_until(lambda: server.statistics.cancelled == 1, description="the generation was ended")


async def test_a_slow_first_token_and_slow_tokens_are_waited_for(server: ScriptedOllama) -> None:
    server.script(fault="drip", seconds=0.05, load_seconds=0.4)
    limits = {"first_token_timeout_seconds": 5.0, "token_idle_timeout_seconds": 0.3}
    async with client_for(server, **limits) as client:
        assert (await client.generate(model=MODEL, prompt="hi")).text == TEXT


async def test_embeddings_that_never_come_run_into_the_time_out(server: ScriptedOllama) -> None:
    server.script(endpoint="embed", fault="hang")
    async with client_for(server, first_token_timeout_seconds=0.2) as client:
        with pytest.raises(ModelError, match="no embeddings"):
            await client.embed(model=MODEL, texts="one")
    await wait_until(lambda: server.statistics.cancelled == 1, description="the connection was closed")


@pytest.mark.parametrize("status", [429, 502, 503])
@pytest.mark.usefixtures("quick_retries")
async def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: ScriptedOllama, status: int) -> None:
    server.script(fault="status", status=status, error="server busy", times=2)
    async with client_for(server) as client:
        assert (await client.generate(model=MODEL, prompt="hi")).text == TEXT

    assert asked(server, "generate") == 3


@pytest.mark.usefixtures("quick_retries")
async def test_a_server_that_stays_busy_is_given_up_on_as_retryable(server: ScriptedOllama) -> None:
    server.script(fault="status", status=503, error="server busy, please try again.")
    error = await failure(server)

    assert error.retryable
    assert "server busy, please try again." in error.message
    assert asked(server, "generate") == client_module.MAX_TRIES


async def test_what_the_server_asks_to_wait_is_waited(server: ScriptedOllama) -> None:
    server.script(fault="status", status=503, retry_after="1", times=1)
    began = time.monotonic()
    async with client_for(server) as client:
        await client.generate(model=MODEL, prompt="hi")

    assert time.monotonic() - began >= 1


async def test_no_retry_is_begun_that_the_deadline_would_end(server: ScriptedOllama) -> None:
    server.script(fault="status", status=503, retry_after="20")
    began = time.monotonic()
    error = await failure(server, deadline_seconds=2)

    assert time.monotonic() - began < 2
    assert error.retryable
    assert asked(server, "generate") == 1


async def test_a_model_that_is_not_there_is_named_and_never_pulled(server: ScriptedOllama) -> None:
    async with client_for(server) as client:
        with pytest.raises(ModelNotFoundError, match="no-such:7b") as caught:
            await client.generate(model="no-such:7b", prompt="hi")

    assert not caught.value.retryable
    assert asked(server, "pull") == 0
    assert asked(server, "generate") == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403])
async def test_a_refusal_is_final_and_quotes_the_servers_words(server: ScriptedOllama, status: int) -> None:
    server.script(fault="status", status=status, error='"smollm2" does not support\nthinking')
    error = await failure(server)

    assert type(error) is ModelError
    assert not error.retryable
    assert '"smollm2" does not support thinking' in error.message
    assert asked(server, "generate") == 1


async def test_a_failed_runner_may_be_tried_again_but_not_at_once(server: ScriptedOllama) -> None:
    server.script(fault="status", status=500, error="llama runner process has terminated: exit status 2")
    error = await failure(server)

    assert error.retryable
    assert asked(server, "generate") == 1


async def test_a_model_too_large_for_the_machine_is_not_tried_again(server: ScriptedOllama) -> None:
    server.script(fault="status", status=500, error="model requires more system memory (48.2 GiB) than is available")
    assert not (await failure(server)).retryable


@pytest.mark.parametrize("body", ["[1, 2]", '"busy"', "{}", "", '{"error": {"code": 7}}', "<html>", "\x00"])
@pytest.mark.usefixtures("quick_retries")
async def test_the_status_counts_whatever_the_error_body_is(server: ScriptedOllama, body: str) -> None:
    server.script(fault="status", status=503, body=body, times=client_module.MAX_TRIES)
    error = await failure(server)

    assert error.retryable
    assert "503" in error.message


async def test_long_words_of_the_server_are_cut(server: ScriptedOllama) -> None:
    server.script(fault="status", status=400, error="x" * 1_000_000)
    assert len((await failure(server)).message) < 300


@pytest.mark.parametrize("fault", ["cut", "cut_line", "reset", "no_done", "garbage"])
@pytest.mark.parametrize("after_tokens", [1, 3])
async def test_an_answer_that_breaks_off_is_no_answer(server: ScriptedOllama, fault: str, after_tokens: int) -> None:
    server.script(fault=fault, after_tokens=after_tokens)
    error = await failure(server)

    assert isinstance(error, ModelOutputError)
    assert error.retryable


async def test_an_error_in_the_middle_of_an_answer_is_told(server: ScriptedOllama) -> None:
    server.script(fault="error_line", after_tokens=2, error="an error was encountered: unexpected EOF")
    error = await failure(server)

    assert error.retryable
    assert "unexpected EOF" in error.message


@pytest.mark.parametrize("body", [b"[]\n", b"7\n", b"null\n", b'"text"\n', b'{"error": {"a": 1}}\n', b"[" * 100_000])
async def test_lines_that_are_no_objects_are_no_answer(server: ScriptedOllama, body: bytes) -> None:
    server.script(fault="body", body=body)
    assert (await failure(server)).retryable


async def test_a_page_instead_of_an_answer_is_bad_output(server: ScriptedOllama) -> None:
    server.script(fault="html", status=200)
    assert isinstance(await failure(server), ModelOutputError)


async def test_one_endless_line_is_cut_short(server: ScriptedOllama) -> None:
    server.script(fault="huge_line", after_tokens=1, size_bytes=1_000_000_000)
    began = time.monotonic()
    error = await failure(server, max_output_bytes=10_000)

    assert isinstance(error, ModelOutputError)
    assert time.monotonic() - began < 5
    await wait_until(lambda: server.statistics.cancelled == 1, description="the generation was ended")


@pytest.mark.parametrize("fault", ["close", "reset"])
async def test_a_connection_broken_before_any_answer_may_be_tried_again(server: ScriptedOllama, fault: str) -> None:
    server.script(fault=fault)
    error = await failure(server)

    assert error.retryable
    assert not isinstance(error, ModelOutputError)


@pytest.mark.usefixtures("quick_retries")
async def test_nobody_at_the_address_is_retryable() -> None:
    error = await failure(f"http://127.0.0.1:{free_port()}")
    assert error.retryable
    assert "can't be reached" in error.message


async def test_a_server_that_restarts_is_found_again(server: ScriptedOllama) -> None:
    await server.refuse(seconds=0.4)
    async with client_for(server) as client:
        assert (await client.generate(model=MODEL, prompt="hi")).text == TEXT


async def test_a_cut_body_of_embeddings_is_no_answer(server: ScriptedOllama) -> None:
    server.script(endpoint="embed", fault="cut")
    async with client_for(server) as client:
        with pytest.raises(ModelOutputError):
            await client.embed(model=MODEL, texts="one")


async def test_fewer_embeddings_than_texts_are_no_answer(server: ScriptedOllama) -> None:
    server.script(endpoint="embed", fault="body", body='{"model": "m", "embeddings": [[0.1]]}')
    async with client_for(server) as client:
        with pytest.raises(ModelOutputError, match="2 embeddings"):
            await client.embed(model=MODEL, texts=["one", "two"])


async def test_cancelling_closes_the_connection_and_frees_the_slot(server: ScriptedOllama) -> None:
    server.script(text="word " * 10_000, tokens_per_second=50, times=1)
    async with client_for(server) as client:
        story = asyncio.create_task(client.generate(model=MODEL, prompt="Tell a story."))
        await wait_until(lambda: server.statistics.running == 1, description="the generation runs")
        story.cancel()
        with pytest.raises(asyncio.CancelledError):
            await story
        await wait_until(lambda: server.statistics.cancelled == 1, description="the server saw it")

        assert server.statistics.running == 0
        assert (await client.generate(model=MODEL, prompt="hi")).text == TEXT


async def test_a_list_of_loaded_models_that_does_not_come_fails_no_step(server: ScriptedOllama) -> None:
    server.script(endpoint="ps", fault="status", status=500)
    async with client_for(server) as client:
        answer = await client.generate(model=MODEL, prompt="hi")

    assert answer.text == TEXT
    assert answer.call.memory_bytes is None


async def test_a_redirect_is_not_followed(server: ScriptedOllama) -> None:
    async with ScriptedOllama(models=[ScriptedModel(name=MODEL)]) as elsewhere:
        server.script(fault="status", status=307, location=f"{elsewhere.url}/api/generate")
        error = await failure(server)

        assert not error.retryable
        assert elsewhere.requests == []


async def test_the_proxy_of_the_environment_is_not_used(
    server: ScriptedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    async with client_for(server) as client:
        assert (await client.generate(model=MODEL, prompt="hi")).text == TEXT


async def test_a_compressed_answer_is_refused_before_it_can_unfold() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = gzip.compress(b" " * 10_000_000)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        error = await failure(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    assert "compressed" in error.message
