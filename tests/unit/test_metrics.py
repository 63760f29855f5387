from support.histories import History
from support.prometheus import Samples

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.engine.observer import ObservedCall
from orchestrator.telemetry.metrics import Metrics, write
from orchestrator.v1.event_pb2 import Event

REF = InstanceRef(InstanceKey("", "i1"), 1)
DAY_S = 86400.0


def samples(metrics: Metrics) -> Samples:
    return Samples(write(metrics.collect()).decode())


def call(model: str) -> ObservedCall:
    return ObservedCall("subtask", model, "completed", 2.0, 0.5)


def completed(model: str, tokens: int) -> Event:
    event = Event()
    event.subtask_completed.attempt = 1
    event.subtask_completed.model = model
    event.subtask_completed.usage.output_tokens = tokens
    return event


def test_clients_cannot_make_any_number_of_series() -> None:
    metrics = Metrics(max_models=2)
    for number in range(100):
        metrics.on_call_ended(call(f"openai/m{number}"))
        metrics.on_gate_closed(f"openai/m{number}", 1.0, is_refusal=True)
        metrics.on_recorded(REF, History("i1").instance, [completed(f"openai/m{number}", 5)])
    found = samples(metrics)
    for name in ("orchestrator_model_calls_total", "orchestrator_tokens_total"):
        assert found.values(name, "model") == {"m0", "m1", "other"}
    assert found("orchestrator_model_calls_total", model="other") == 98
    assert found("orchestrator_tokens_total", model="other", direction="output") == 490
    assert len(found.values("orchestrator_gate_closings_total", "gate")) == 5


def test_a_model_that_is_called_as_its_tail_is_another_one() -> None:
    metrics = Metrics()
    metrics.on_call_ended(call("openrouter/openai/gpt-5"))
    metrics.on_call_ended(call("openai/gpt-5"))
    found = samples(metrics)
    for provider, model in (("openrouter", "openai/gpt-5"), ("openai", "gpt-5")):
        assert found("orchestrator_model_calls_total", provider=provider, model=model) == 1


def test_the_usage_of_today_begins_anew_at_midnight() -> None:
    now_s = 20_000 * DAY_S + 80_000
    metrics = Metrics(now_s=lambda: now_s)
    metrics.on_recorded(REF, History("i1").instance, [completed("openai/m", 5)])
    assert samples(metrics)("orchestrator_usage_today_start_timestamp_seconds") == now_s
    now_s = 20_001 * DAY_S + 10
    metrics.start_day()
    metrics.on_recorded(REF, History("i1").instance, [completed("openai/m", 7)])
    found = samples(metrics)
    assert found("orchestrator_tokens_today", direction="output") == 7
    assert found("orchestrator_tokens_total", direction="output") == 12
    assert found("orchestrator_usage_today_start_timestamp_seconds") == 20_001 * DAY_S


def test_two_services_in_a_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.on_call_ended(call("openai/m"))
    assert not samples(second).values("orchestrator_model_calls_total", "model")
