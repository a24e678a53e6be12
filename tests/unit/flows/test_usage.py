"""What a task's `resource_usage` says."""

from __future__ import annotations

from flows.usage import ModelCall, ResourceUsage


def test_one_model_call_gives_the_names_of_the_reference() -> None:
    usage = ResourceUsage()
    usage.add_model(
        ModelCall(
            model="llama3.1:8b",
            evaluation_seconds=45.2004,
            load_seconds=1.5,
            prompt_tokens=20,
            output_tokens=300,
            memory_bytes=8_100_400_000,
            gpu_memory_bytes=0,
        )
    )
    assert usage.as_dict() == {
        "model_name": "llama3.1:8b",
        "inference_time_seconds": 45.2,
        "memory_used_gb": 8.1,
        "load_time_seconds": 1.5,
        "prompt_tokens": 20,
        "output_tokens": 300,
        "gpu_memory_used_gb": 0.0,
    }


def test_several_calls_add_up_and_the_busiest_model_gives_its_name_and_memory() -> None:
    usage = ResourceUsage()
    usage.add_model(ModelCall(model="small", evaluation_seconds=3, prompt_tokens=1, memory_bytes=9_000_000_000))
    usage.add_model(ModelCall(model="large", evaluation_seconds=2, prompt_tokens=2, memory_bytes=2_000_000_000))
    usage.add_model(ModelCall(model="large", evaluation_seconds=2, prompt_tokens=4, memory_bytes=3_000_000_000))

    said = usage.as_dict()
    assert (said["model_name"], said["memory_used_gb"]) == ("large", 3.0)
    assert (said["inference_time_seconds"], said["prompt_tokens"]) == (7, 7)


def test_a_memory_that_the_server_did_not_tell_is_left_out() -> None:
    usage = ResourceUsage()
    usage.add_model(ModelCall(model="m", evaluation_seconds=1))
    assert not {"memory_used_gb", "gpu_memory_used_gb"} & usage.as_dict().keys()


def test_processes_give_the_largest_size_and_the_sum_of_processor_time() -> None:
    usage = ResourceUsage()
    usage.add_process(peak_rss_bytes=50_000_000, cpu_seconds=1.25)
    usage.add_process(peak_rss_bytes=20_000_000, cpu_seconds=0.5)
    assert usage.as_dict() == {"memory_used_gb": 0.05, "cpu_time_seconds": 1.75}


def test_a_task_without_processes_reports_the_one_that_ran_it() -> None:
    said = ResourceUsage().as_dict()
    assert said.keys() == {"memory_used_gb", "cpu_time_seconds"}
    assert 0.01 < said["memory_used_gb"] < 100
    assert said["cpu_time_seconds"] >= 0


def test_the_lowest_isolation_level_of_all_programs_is_kept() -> None:
    usage = ResourceUsage()
    assert usage.isolation_level is None
    for level in (2, 1, 2):
        usage.add_isolation(level)
    assert usage.isolation_level == 1
