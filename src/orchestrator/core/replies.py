"""What a model replied, and what that means for the work it was called for.

A provider tells how a reply finished. Whether that completes its work, is a part of it, or fails, is decided
here, and nowhere else.
"""

from enum import Enum
from typing import Final, NamedTuple

from orchestrator.core import continuation, joining, references
from orchestrator.core.continuation import Part
from orchestrator.core.instance import PLANNING, RESULT_INVALID, SYNTHESIS, TRUNCATED, Instance, WorkKey
from orchestrator.core.plan import Plan, PlanError
from orchestrator.core.prompts import Profile, Prompt
from orchestrator.core.references import Synthesis, SynthesisError
from orchestrator.errors import ModelError

_MEND: Final = "allow more max_output_tokens, or choose a model that takes more"


class Finish(Enum):
    """Why a model stopped."""

    NORMAL = "normal"
    """It has said what it had to say."""
    CUT = "cut"
    """A limit of tokens was reached."""
    FILTERED = "filtered"
    """It refused, or a filter stopped it."""
    FAILED = "failed"
    """Anything else, unknown reasons among it: what there is of the answer is no answer."""


class ModelReply(NamedTuple):
    """What a model answered, and what it used by the endpoint's own count (0 where it gave none)."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    finish: Finish = Finish.NORMAL
    response_id: str = ""
    """The provider's own name for it; empty: it gave none."""
    explanation: str = ""
    """What the endpoint said of a finish that is not normal, as a sentence fit to show; may be empty."""
    token_limit: int = 0
    """How many tokens it was allowed; 0: unknown."""
    has_thoughts: bool = False
    """Whether the model thought aloud before the text, or in place of it."""
    endpoint: str = ""
    """Who answered, for messages."""


def read(
    profile: Profile, instance: Instance, key: WorkKey, prompt: Prompt, reply: ModelReply, model: str
) -> Plan | str | Synthesis | Part:
    """Return what a reply to a prompt completes its work with: a plan, the text of an output, or a result.

    A Part: it was cut off, and is to be continued. `model` is the provider's own name for it. Raise
    ModelError where the reply brings nothing.
    """
    if reply.finish is Finish.CUT and not prompt.may_be_cut:
        return _read_part(profile, instance, key, reply, model)
    before = instance.work(key).text
    if failure := find_failure(reply, prompt, model, has_text=bool(before)):
        raise failure
    text = reply.text
    if before:
        added, replaces = joining.join(before, text)
        text = added if replaces else before + added
    if key == SYNTHESIS:
        try:
            return profile.read_synthesis(instance, text)
        except SynthesisError as fault:
            raise _failed(RESULT_INVALID, f"{model}: {fault}", reply) from None
    if key != PLANNING:
        return text
    try:
        return profile.read_plan(instance, text)
    except PlanError as fault:
        raise plan_invalid(fault, reply) from None


def _read_part(profile: Profile, instance: Instance, key: WorkKey, reply: ModelReply, model: str) -> Part:
    work = instance.work(key)
    if not reply.text.strip():
        raise _thought_only(instance, key, reply, model)
    if key == PLANNING and not work.text and profile.plan_reader(instance) is None:
        raise _truncated(reply, model)  # nothing of it is in use: it is asked for as a whole
    added, replaces = joining.join(work.text, reply.text)
    if not added.strip():
        what = f"{model} only repeated what it had written{_at_limit(reply)}"
        raise _failed(TRUNCATED, f"{what}: {_MEND}", reply, retryable=key == PLANNING)
    part = Part(added, replaces)
    return references.with_shown(instance, part) if key == SYNTHESIS else part


def _thought_only(instance: Instance, key: WorkKey, reply: ModelReply, model: str) -> ModelError:
    """Return the failure of a model that wrote nothing: it is asked once more, with twice the limit."""
    work = instance.work(key)
    can_be_raised = not reply.token_limit or reply.token_limit >= continuation.token_limit(instance, work)
    what = f"{model} used up its limit{_of_tokens(reply)} for thinking and wrote no answer"
    retryable = not work.raised_limits and can_be_raised
    return _failed(TRUNCATED, f"{what}: {_MEND}", reply, retryable=retryable)


def find_failure(
    reply: ModelReply, prompt: Prompt, model: str, *, has_text: bool = False
) -> ModelError | None:
    """Return why a reply is no answer to a prompt; None: it is one.

    `has_text`: it goes on behind text that is there already, to which it need not add anything.
    """
    has_text = has_text or bool(reply.text.strip())
    match reply.finish:
        case Finish.FILTERED:
            why = _said(reply) or " (content filter)"
            return _failed("MODEL_REFUSED", f"{model} refused to answer{why}", reply, retryable=False)
        case Finish.FAILED:
            problem = f"{model} stopped before its answer was complete{_said(reply)}"
            return _failed("OUTPUT_INCOMPLETE", problem, reply)
        case Finish.CUT if not (has_text and prompt.may_be_cut):
            return _truncated(reply, model)
    if not has_text:
        what = "nothing but thoughts" if reply.has_thoughts else "an empty answer"
        return _failed("OUTPUT_INVALID", f"{reply.endpoint or model} sent {what}", reply)
    return None


def plan_invalid(fault: PlanError, reply: ModelReply) -> ModelError:
    """Return the failure of a planner whose reply is no plan: the next attempt's prompt says what to mend."""
    return _failed("PLAN_INVALID", str(fault), reply)


def parts_used_up(parts: int, response_id: str) -> ModelError:
    """Return the failure of an attempt whose answer was cut off after its last part."""
    how_often = "" if parts == 1 else f" {parts} times"
    return ModelError(
        TRUNCATED,
        f"the answer was cut off at the token limit{how_often}: what there is of it can be read. Allow more "
        "max_output_tokens or max_continuations and retry: it goes on from there",
        retryable=False,
        response_id=response_id,
    )


def _truncated(reply: ModelReply, model: str) -> ModelError:
    return _failed(TRUNCATED, f"{model} was cut off{_at_limit(reply)}: {_MEND}", reply)


def _at_limit(reply: ModelReply) -> str:
    return f" at {reply.token_limit} tokens" if reply.token_limit else ""


def _of_tokens(reply: ModelReply) -> str:
    return f" of {reply.token_limit} tokens" if reply.token_limit else ""


def _said(reply: ModelReply) -> str:
    return f". {reply.explanation}" if reply.explanation else ""


def _failed(reason: str, message: str, reply: ModelReply, *, retryable: bool = True) -> ModelError:
    return ModelError(
        reason,
        message,
        retryable=retryable,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        response_id=reply.response_id,
    )
