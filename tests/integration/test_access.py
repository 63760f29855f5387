"""Who may call what, and what one tenant sees of another: nothing. Real gRPC, real SQLite."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from support.callers import Callers, stub_with
from support.issuer import AUDIENCE, issuing
from support.service import Service, service

from orchestrator.auth import token_file, tokens
from orchestrator.auth.authenticator import Authenticator
from orchestrator.auth.caller import Caller, Role
from orchestrator.auth.oidc import OidcIssuer
from orchestrator.errors import RoleForbidsError
from orchestrator.models.base import ModelReply, ModelRequest
from orchestrator.models.scripted import Scripted
from orchestrator.rpc.access import ROLES, check_role
from orchestrator.rpc.server import SERVICE
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.event_pb2 import DECISION_APPROVE

METHODS = {method.name: method for method in SERVICE.methods}
ABOUT_ONE = sorted(name for name, method in METHODS.items() if "id" in method.input_type.fields_by_name)
"""The RPCs about one instance; CreateInstance makes it."""
ABOUT_ONE.remove("CreateInstance")


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Callers:
    return Callers(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
async def running(callers: Callers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    path = tmp_path_factory.mktemp("access") / "log.db"
    async with service(path, Scripted(subtasks=1), authenticator=callers.authenticator()) as started:
        yield started


@pytest.fixture
async def channel(running: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address) as opened:
        yield opened


def request_for(name: str, instance_id: str) -> Message:
    """Build a request that is in order, about an instance where it can be."""
    request = GetMessageClass(METHODS[name].input_type)()
    if name in ("CreateInstance", "BatchCreateInstances"):
        created = pb.CreateInstanceRequest(prompt="p")
        return created if name == "CreateInstance" else pb.BatchCreateInstancesRequest(requests=[created])
    if "id" in request.DESCRIPTOR.fields_by_name:
        request.id = instance_id
    if isinstance(request, pb.StreamEventsRequest | pb.StreamAllEventsRequest):
        request.follow = False
    if isinstance(request, pb.WaitInstanceRequest):
        request.timeout.FromSeconds(5)
    if isinstance(request, pb.ForkInstanceRequest):
        request.stage = pb.STAGE_PLAN
    if isinstance(request, pb.ReviewPlanRequest):
        request.decision = DECISION_APPROVE
    if isinstance(request, pb.GetFileRequest):
        request.path = "a.py"
    return request


async def answers(stub: Any, name: str, request: Message) -> Sequence[Message]:
    """Call an RPC and return what it answers; of a stream all."""
    call = getattr(stub, name)(request)
    if not METHODS[name].server_streaming:
        return [await call]
    return [message async for message in call]


async def failure(stub: Any, name: str, request: Message) -> tuple[grpc.StatusCode, str, str]:
    """Call an RPC that fails; return its code, ErrorInfo's reason, and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers(stub, name, request)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "orchestrator"
    return caught.value.code(), info.reason, caught.value.details() or ""


async def finished(stub: Any, **fields: Any) -> str:
    created = await stub.CreateInstance(pb.CreateInstanceRequest(prompt="p", **fields))
    waited = await stub.WaitInstance(pb.WaitInstanceRequest(id=created.id))
    assert waited.instance.HasField("end_time")
    return str(created.id)


def test_every_rpc_has_its_roles() -> None:
    assert set(METHODS) == set(ROLES)
    for name, roles in ROLES.items():
        assert Role.ADMIN in roles
        assert (Role.METRICS in roles) == (name == "GetMetrics")
        assert name.startswith(("Get", "List", "Stream", "Wait")) == (
            Role.READ in roles or name == "GetMetrics"
        )
    assert ROLES["DeleteInstance"] == {Role.ADMIN}


@pytest.mark.parametrize("role", Role)
def test_an_rpc_without_roles_may_be_called_by_nobody(role: Role) -> None:
    with pytest.raises(RoleForbidsError, match="no role does"):
        check_role(Caller("ann", "acme", role), f"/{SERVICE.full_name}/Invented")


@pytest.mark.parametrize("name", METHODS)
async def test_without_a_token_no_rpc_is_answered(running: Service, name: str) -> None:
    code, reason, _ = await failure(running.stub, name, request_for(name, "x"))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


@pytest.mark.parametrize("name", METHODS)
async def test_with_a_wrong_token_no_rpc_is_answered(channel: grpc.aio.Channel, name: str) -> None:
    text = tokens.generate()
    code, reason, message = await failure(stub_with(channel, text), name, request_for(name, "x"))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert text not in message


@pytest.mark.parametrize(
    "header",
    [
        *(
            "",
            "Bearer",
            "Bearer ",
            "Basic YTpi",
            "bearer x",
            "Bearer x y",
            "Token {}",
            "{}",
            "Bearer {}x",
            "Bearer{}",
        ),
        "Bearer {},Bearer {}",
    ],
)
async def test_credentials_of_another_form_are_invalid(
    channel: grpc.aio.Channel, callers: Callers, header: str
) -> None:
    token = callers.token("acme")
    call = channel.unary_unary(f"/{SERVICE.full_name}/ListInstances")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=(("authorization", header.replace("{}", token)),))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert token not in str(caught.value)


async def test_two_credentials_are_invalid_and_the_scheme_may_be_in_any_case(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    call = channel.unary_unary(f"/{SERVICE.full_name}/ListInstances")
    good = ("authorization", f"Bearer {callers.token('acme')}")
    with pytest.raises(grpc.aio.AioRpcError, match="2 credentials"):
        await call(b"", metadata=(good, ("authorization", f"Bearer {callers.token('initech')}")))
    await call(b"", metadata=(("authorization", f"bEARER  {callers.token('acme')} "),))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", METHODS)
async def test_a_role_may_call_what_it_may_and_nothing_else(
    channel: grpc.aio.Channel, callers: Callers, name: str, role: Role
) -> None:
    stub = callers.stub(channel, "hooli", role)
    request = request_for(name, "none")
    if role not in ROLES[name]:
        code, reason, message = await failure(stub, name, request)
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_FORBIDS")
        assert f"the role {role.value} does not allow {name}" in message
    elif name in ABOUT_ONE:
        assert (await failure(stub, name, request))[1] == "INSTANCE_NOT_FOUND"
    elif name == "StreamServerSentEvents":
        call = stub.StreamServerSentEvents(request)
        assert (await call.read()).data
        call.cancel()
    else:
        await answers(stub, name, request)


async def test_health_is_for_all_and_reflection_for_those_who_are_known(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in stub.ServerReflectionInfo(iter([request]))]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", f"Bearer {callers.token('acme', Role.READ)}"),)
    found = [answer async for answer in stub.ServerReflectionInfo(iter([request]), metadata=metadata)]
    assert SERVICE.full_name in {each.name for each in found[0].list_services_response.service}


async def test_what_is_there_is_not_told_to_those_who_are_unknown(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/some.Other/Method")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("name", ABOUT_ONE)
@pytest.mark.parametrize("state", ["at work", "finished"])
async def test_anothers_instance_is_not_there_for_any_rpc(
    tmp_path: Path, callers: Callers, name: str, state: str
) -> None:
    """The answer is the same as for an id that nobody has, and nothing happens to the instance."""

    async def never(_: ModelRequest) -> ModelReply:
        await asyncio.Event().wait()
        raise AssertionError

    provider = Scripted(never) if state == "at work" else Scripted(subtasks=1)
    async with (
        service(tmp_path / "log.db", provider, authenticator=callers.authenticator()) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        owner = callers.stub(channel, "acme", Role.ADMIN)
        instance_id = (await owner.CreateInstance(pb.CreateInstanceRequest(prompt="p", id="secret"))).id
        if state == "finished":
            await owner.WaitInstance(pb.WaitInstanceRequest(id=instance_id))
        before = await owner.GetInstance(pb.GetInstanceRequest(id=instance_id))
        if Role.WRITE in ROLES[name]:
            stranger = callers.stub(channel, "initech", Role.WRITE)
            theirs = await failure(stranger, name, request_for(name, instance_id))
            nobodys = await failure(stranger, name, request_for(name, "other"))
            assert theirs[:2] == (grpc.StatusCode.NOT_FOUND, "INSTANCE_NOT_FOUND")
            assert theirs[2].replace("secret", "other") == nobodys[2]
        else:  # DeleteInstance is for admins, who see all
            await failure(callers.stub(channel, "initech", Role.WRITE), name, request_for(name, instance_id))
        after = await owner.GetInstance(pb.GetInstanceRequest(id=instance_id))
        if state == "finished":
            assert after == before
        assert after.instance.state == before.instance.state or state == "at work"
        assert not [event for event in await recorded(owner, instance_id) if event.actor == "initech-write"]


async def recorded(stub: Any, instance_id: str) -> Sequence[Any]:
    request = pb.StreamEventsRequest(id=instance_id, follow=False)
    return [event async for message in stub.StreamEvents(request) for event in message.batch.events]


async def test_lists_and_streams_of_all_hold_the_own_tenant_alone(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    acme, initech = callers.stub(channel, "acme"), callers.stub(channel, "initech")
    ours, theirs = {await finished(acme, labels={"a": "b"}), await finished(acme)}, {await finished(initech)}
    for stub, own, tenant in ((acme, ours, "acme"), (initech, theirs, "initech")):
        for request in (
            pb.ListInstancesRequest(page_size=1000),
            pb.ListInstancesRequest(page_size=1000, labels=["a=b"]),
            pb.ListInstancesRequest(page_size=1000, id_prefix=min(ours | theirs)[:1]),
        ):
            listed = await stub.ListInstances(request)
            assert {each.tenant for each in listed.instances} <= {tenant}
        assert own <= {
            each.id for each in (await stub.ListInstances(pb.ListInstancesRequest(page_size=1000))).instances
        }
        request = pb.StreamAllEventsRequest(follow=False)
        seen = {
            event.instance_id
            async for message in stub.StreamAllEvents(request)
            for event in message.batch.events
        }
        assert own <= seen
        assert not seen & ((ours | theirs) - own)
        data, call = b"", stub.StreamServerSentEvents(pb.StreamServerSentEventsRequest())
        while not all(each.encode() in data for each in own):
            data += (await call.read()).data
        call.cancel()
        assert not [each for each in (ours | theirs) - own if each.encode() in data]


async def test_a_page_goes_on_within_the_own_tenant(channel: grpc.aio.Channel, callers: Callers) -> None:
    acme, initech = callers.stub(channel, "acme"), callers.stub(channel, "initech")
    for _ in range(2):
        await finished(acme)
        await finished(initech)
    token, seen = "", []
    while token or not seen:
        page = await initech.ListInstances(pb.ListInstancesRequest(page_size=1, page_token=token))
        seen += page.instances
        token = page.next_page_token
    assert len(seen) >= 2
    assert {each.tenant for each in seen} == {"initech"}


async def test_a_live_stream_of_all_never_shows_another_tenant_nor_its_deletions(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    acme, initech = callers.stub(channel, "acme"), callers.stub(channel, "initech")
    call = initech.StreamAllEvents(pb.StreamAllEventsRequest())
    while not (await call.read()).HasField("caught_up"):
        pass
    others = await finished(acme)
    await callers.stub(channel, "acme", Role.ADMIN).DeleteInstance(pb.DeleteInstanceRequest(id=others))
    own = await finished(initech)
    seen: set[str] = set()
    while own not in seen:
        message = await call.read()
        seen |= {event.instance_id for event in message.batch.events} | {message.deleted.instance_id} - {""}
    call.cancel()
    assert seen == {own}


async def test_ids_and_request_ids_of_two_tenants_never_clash(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    created = [
        await callers.stub(channel, tenant).CreateInstance(
            pb.CreateInstanceRequest(prompt=tenant, id="same", request_id="key")
        )
        for tenant in ("acme", "initech")
    ]
    assert [each.instance.prompt for each in created] == ["acme", "initech"]
    assert [each.instance.tenant for each in created] == ["acme", "initech"]
    for tenant in ("acme", "initech"):
        found = await callers.stub(channel, tenant, Role.READ).GetInstance(pb.GetInstanceRequest(id="same"))
        assert (found.instance.prompt, found.instance.tenant) == (tenant, tenant)


async def test_nobody_continues_anothers_work(channel: grpc.aio.Channel, callers: Callers) -> None:
    acme, initech = callers.stub(channel, "acme"), callers.stub(channel, "initech")
    instance_id = await finished(acme)
    goes_on = pb.CreateInstanceRequest(prompt="and then?", continues=instance_id)
    batch = pb.BatchCreateInstancesRequest(requests=[pb.CreateInstanceRequest(prompt="p"), goes_on])
    for name, request in (("CreateInstance", goes_on), ("BatchCreateInstances", batch)):
        assert (await failure(initech, name, request))[1] == "INSTANCE_NOT_FOUND"
    created = await acme.CreateInstance(goes_on)
    assert (created.instance.continues, created.instance.tenant) == (instance_id, "acme")


async def test_an_admin_sees_all_tenants_and_may_delete(channel: grpc.aio.Channel, callers: Callers) -> None:
    admin, acme, initech = (
        callers.stub(channel, "hooli", Role.ADMIN),
        callers.stub(channel, "acme"),
        callers.stub(channel, "initech"),
    )
    first, second = await finished(acme), await finished(initech)
    listed = {
        each.id: each.tenant for each in (await admin.ListInstances(pb.ListInstancesRequest())).instances
    }
    assert (listed[first], listed[second]) == ("acme", "initech")
    shown = (await admin.GetInstance(pb.GetInstanceRequest(id=first))).instance
    assert (shown.id, shown.tenant) == (first, "acme")
    await admin.RestartInstance(pb.RestartInstanceRequest(id=first))
    await acme.WaitInstance(pb.WaitInstanceRequest(id=first))
    assert [event.actor for event in await recorded(acme, first) if event.actor] == [
        "acme-write",
        "hooli-admin",
    ]
    forked = (await admin.ForkInstance(pb.ForkInstanceRequest(id=second, stage=pb.STAGE_SYNTHESIS))).instance
    assert forked.tenant == "hooli"
    await admin.DeleteInstance(pb.DeleteInstanceRequest(id=first))
    assert (await failure(acme, "GetInstance", pb.GetInstanceRequest(id=first)))[1] == "INSTANCE_NOT_FOUND"


async def test_an_admin_gets_its_own_tenants_instance_where_several_have_an_id(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    for tenant in ("acme", "initech"):
        await finished(callers.stub(channel, tenant), id="twice")
    own = callers.stub(channel, "acme", Role.ADMIN)
    assert (await own.GetInstance(pb.GetInstanceRequest(id="twice"))).instance.tenant == "acme"
    code, reason, message = await failure(
        callers.stub(channel, "hooli", Role.ADMIN), "GetInstance", pb.GetInstanceRequest(id="twice")
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ID_INVALID")
    assert "the tenants 'acme', 'initech' each have an instance 'twice'" in message


async def test_what_a_caller_asks_for_is_recorded_under_its_name(
    channel: grpc.aio.Channel, callers: Callers
) -> None:
    stub = callers.stub(channel, "acme")
    instance_id = await finished(stub)
    await stub.RestartInstance(pb.RestartInstanceRequest(id=instance_id))
    asked = {
        event.WhichOneof("payload"): event.actor for event in await recorded(stub, instance_id) if event.actor
    }
    assert asked == {"instance_created": "acme-write", "instance_restarted": "acme-write"}


async def test_what_was_created_without_tokens_belongs_to_no_tenant(tmp_path: Path, callers: Callers) -> None:
    path = tmp_path / "log.db"
    async with service(path, Scripted(subtasks=1)) as running:
        instance_id = await finished(running.stub)
        assert await recorded(running.stub, instance_id)
    async with (
        service(path, Scripted(subtasks=1), authenticator=callers.authenticator()) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        request = pb.GetInstanceRequest(id=instance_id)
        assert (await failure(callers.stub(channel, "acme"), "GetInstance", request))[
            1
        ] == "INSTANCE_NOT_FOUND"
        found = await callers.stub(channel, "acme", Role.ADMIN).GetInstance(request)
        assert found.instance.tenant == ""


async def test_jwts_and_tokens_are_taken_side_by_side(tmp_path: Path, callers: Callers) -> None:
    async with issuing() as issuer:
        store = callers.authenticator()._store
        oidc = OidcIssuer(issuer.url, AUDIENCE, tenant_claim="tenant", role_claim="role")
        async with (
            service(
                tmp_path / "log.db", Scripted(subtasks=1), authenticator=Authenticator(store, oidc)
            ) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            by_jwt = stub_with(channel, issuer.sign())
            instance_id = await finished(by_jwt)
            found = await callers.stub(channel, "acme").GetInstance(pb.GetInstanceRequest(id=instance_id))
            assert found.instance.tenant == "acme"
            assert (await recorded(by_jwt, instance_id))[0].actor == "ann@example.com"
            reader = stub_with(channel, issuer.sign(role="read"))
            assert (await failure(reader, "CreateInstance", request_for("CreateInstance", "")))[
                1
            ] == "ROLE_FORBIDS"
            for wrong in (issuer.sign(exp=1), issuer.sign(aud="other"), tokens.generate(), "x.y.z"):
                found_reason = (
                    await failure(stub_with(channel, wrong), "GetServiceInfo", pb.GetServiceInfoRequest())
                )[1]
                assert found_reason == "TOKEN_INVALID"


async def test_a_revoked_token_ends_while_the_service_runs(tmp_path: Path) -> None:
    own = Callers(tmp_path)
    async with (
        service(tmp_path / "log.db", Scripted(subtasks=1), authenticator=own.authenticator()) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = own.stub(channel, "acme")
        await stub.GetServiceInfo(pb.GetServiceInfoRequest())
        token_file.remove(own.file, "acme-write")
        code = None
        while code is None:
            try:
                await stub.GetServiceInfo(pb.GetServiceInfoRequest())
            except grpc.aio.AioRpcError as error:
                code = error.code()
        assert code is grpc.StatusCode.UNAUTHENTICATED
