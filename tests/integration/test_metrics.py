"""GetMetrics of a real service: over gRPC, through Envoy, and as real Prometheus reads it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from support.endpoint import Answer, Call, Endpoint, WorkerGate, completion, failing
from support.process import free_port, on_endpoint, process
from support.prometheus import Samples, program

from orchestrator.client import Client, ServiceError
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.instance_pb2 import InstanceConfig
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

TOML = '[prices]\n"openai/big" = {input_usd = 10, output_usd = 20}\n'


def fast() -> InstanceConfig:
    config = InstanceConfig(retry={"max_attempts": 2})
    config.retry.initial_delay.FromMilliseconds(10)
    config.retry.max_delay.FromMilliseconds(10)
    return config


async def test_what_happened_is_counted(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        match call.subtask_id, call.attempt:
            case "t1", 1:
                return failing(503)
            case "t2", 1:
                return completion("half of the", "length")
        return None

    (tmp_path / "orchestrator.toml").write_text(TOML)
    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("p", instance_id="i1", config=fast())
        await client.wait("i1")
        with pytest.raises(ServiceError):
            await client.create("", instance_id="i2")
        found = Samples(await client.metrics())
    assert found("orchestrator_instances_created_total") == 1
    assert found("orchestrator_instances_finished_total", state="complete") == 1
    assert found("orchestrator_instance_duration_seconds_count", state="complete") == 1
    assert found("orchestrator_instances", state="complete") == 1
    assert found("orchestrator_instances", state="running") == 0
    assert found("orchestrator_queue_wait_seconds_count") == 1
    calls = "orchestrator_model_calls_total"
    assert found(calls, provider="openai", model="big", stage="planning", outcome="completed") == 1
    assert found(calls, model="small", stage="subtask", outcome="completed") == 2
    assert found(calls, model="small", stage="subtask", outcome="OVERLOADED") == 1
    assert found(calls, model="small", stage="subtask", outcome="continued") == 1
    assert found("orchestrator_model_call_duration_seconds_count", stage="subtask") == 4
    assert found("orchestrator_model_first_text_seconds_count", stage="subtask") == 3
    assert found("orchestrator_attempts_total", stage="subtask", outcome="completed") == 2
    assert found("orchestrator_attempts_total", stage="subtask", outcome="OVERLOADED") == 1
    assert found("orchestrator_continuations_total", stage="subtask", model="small") == 1
    assert found("orchestrator_tokens_total", model="small", direction="input") == 300
    assert found("orchestrator_tokens_total", model="small", direction="output") == 60
    assert found("orchestrator_cost_usd_total", model="big") == pytest.approx(2 * (1000 + 400) / 1e6)
    assert found("orchestrator_cost_usd_today", model="big") == pytest.approx(2 * (1000 + 400) / 1e6)
    assert found("orchestrator_commit_duration_seconds_count") > 3
    assert found("orchestrator_commit_entries_sum") >= found("orchestrator_commit_entries_count")
    assert found("orchestrator_log_size_bytes") > 4096
    assert found("orchestrator_log_writable") == 1
    rpcs = "orchestrator_rpc_duration_seconds_count"
    assert found(rpcs, method="CreateInstance", code="OK") == 1
    assert found(rpcs, method="CreateInstance", code="INVALID_ARGUMENT") == 1
    assert found("process_resident_memory_bytes") > 1e6
    assert found("process_cpu_seconds_total") > 0
    assert found.values("orchestrator_build_info", "version") == {"0.1.0"}


async def test_what_goes_on_is_told(tmp_path: Path) -> None:
    gate = WorkerGate()
    async with (
        Endpoint(gate, subtasks=2) as endpoint,
        process(tmp_path, ORCHESTRATOR_MAX_ACTIVE_INSTANCES="1", **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        await client.create("p", instance_id="i1")
        await client.create("p", instance_id="i2")
        await endpoint.wait_for_calls(3)
        # Read to its status: our client leaves once the instance has ended.
        stream = aiter(OrchestratorStub(channel).StreamEvents(pb.StreamEventsRequest(id="i1")))
        await anext(stream)
        found = Samples(await client.metrics())
        assert found("orchestrator_instances_active") == 1
        assert found("orchestrator_queue_length") == 1
        assert found("orchestrator_instances", state="running") == 1
        assert found("orchestrator_instances", state="queued") == 1
        assert found("orchestrator_gate_open_calls", gate="openai/small") == 2
        assert found("orchestrator_gate_open_calls", gate="openai") == 2
        assert found("orchestrator_gate_closed", gate="openai") == 0
        assert found("orchestrator_gate_limit", gate="openai/small") >= 2
        assert found("orchestrator_subscribers", of="instance") == 1
        assert found("orchestrator_stream_lag_seconds") < 10
        gate.opened.set()
        async for _ in stream:
            pass
        await client.wait("i2")
        found = Samples(await client.metrics())
    assert found("orchestrator_queue_length") == found("orchestrator_instances_active") == 0
    assert found("orchestrator_subscribers", of="instance") == 0
    assert found("orchestrator_streams_ended_total", method="StreamEvents", code="OK") == 1


async def test_a_throttled_endpoint_is_told(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return failing(429, Retry_After="60") if call.role == "work" else None

    async with (
        Endpoint(script, subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("p", instance_id="i1")
        async for event in client.stream_events("i1"):
            if event.HasField("subtask_failed"):
                break
        found = Samples(await client.metrics())
    assert found("orchestrator_gate_closed", gate="openai/small") == 1
    assert found("orchestrator_gate_closed", gate="openai") == 0, "other models of it go on"
    assert found("orchestrator_gate_closings_total", gate="openai/small", cause="refusal") == 1


async def test_promtool_finds_no_fault_with_names_types_and_help(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("p", instance_id="i1")
        await client.wait("i1")
        text = await client.metrics()
    check = await asyncio.create_subprocess_exec(
        *(program("promtool"), "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await check.communicate(text.encode())
    assert (check.returncode, said) == (0, b"")


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run Prometheus, which scrapes a service's REST address and holds the project's rules."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "orchestrator",
                "metrics_path": "/-/metrics",
                "static_configs": [{"targets": [target]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    running = await asyncio.create_subprocess_exec(
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://{address}", transport=httpx.AsyncHTTPTransport(retries=10), trust_env=False
        ) as client:
            yield client
    finally:
        running.terminate()
        await running.wait()


async def test_prometheus_scrapes_the_service_through_envoy(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
        prometheus(tmp_path, service.rest_address) as scraper,
    ):
        await client.create("p", instance_id="i1")
        await client.wait("i1")
        query = "orchestrator_instances_finished_total{state='complete'}"
        found: list[dict[str, list[object]]] = []
        while not found:  # it scrapes once a second
            await asyncio.sleep(0.1)
            answer = await scraper.get("/api/v1/query", params={"query": query})
            found = answer.json()["data"]["result"]
        targets = (await scraper.get("/api/v1/targets")).json()["data"]["activeTargets"]
    assert found[0]["value"][1] == "1"
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")]
