"""The profile of a very small model: SmolLM2-135M and its like.

Such a model cannot fill in the plan's schema. Shown two worked examples and held by a grammar to three or
four short titles, each beginning with a verb, it plans sensibly; ids and instructions are filled in here. It
writes a short text on one title. It cannot put texts together: the final result is an opening of its own,
then every output as it is.

Whatever the client sends, a prompt fits into `CONTEXT_TOKENS`: texts are cut by their UTF-8 bytes, and a
token is never less than a byte.
"""

import json
import re
from typing import Final

from orchestrator.core import plan
from orchestrator.core.instance import COMPLETED, Instance, Subtask, Work
from orchestrator.core.plan import Plan
from orchestrator.core.plan_text import PlanReader, outlines
from orchestrator.core.prompts import Message, Prompt, version_of

CONTEXT_TOKENS: Final = 2048
"""How much context a call needs: its prompt and its answer."""

_MAX_SUBTASKS: Final = 4
_TITLE_CHARACTERS: Final = 70
_VERBS: Final = (
    *("Add", "Build", "Choose", "Collect", "Compare", "Configure", "Create", "Define", "Describe", "Design"),
    *("Document", "Explain", "Implement", "List", "Plan", "Prepare", "Research", "Set up", "Test", "Write"),
)
# Without commas, or a title becomes a list of everything, and without quotes, or it breaks off after one.
_TITLE: Final = rf"^({'|'.join(_VERBS)}) [A-Za-z][A-Za-z0-9 -]{{6,{_TITLE_CHARACTERS - 12}}}$"
_PLAN_TOKENS: Final = 320  # four titles of the worst tokens there are
_WORK_TOKENS: Final = 220
_INTRODUCTION_TOKENS: Final = 90

_PLANNER: Final = "You split a task into a few short subtasks that different people do. Answer with JSON."
_EXAMPLES: Final = (
    (
        "Build a Java REST API for hotel bookings, with tests and a Dockerfile",
        (
            "Design the data model of rooms and bookings",
            "Write the REST API endpoints in Java",
            "Write tests for the endpoints",
            "Write the Dockerfile and explain how to run it",
        ),
    ),
    (
        "Explain how volcanoes work to students",
        (
            "Explain what a volcano is and where volcanoes are",
            "Describe how and why a volcano erupts",
            "List famous eruptions and what they changed",
        ),
    ),
)
_SYNTHESISER: Final = "You write short introductions in plain English."
_DANGLING: Final = frozenset(
    {
        *("a", "an", "and", "as", "at", "based", "be", "by", "called", "can", "for", "from", "has", "have"),
        *("how", "in", "include", "including", "into", "is", "its", "named", "no", "of", "on", "or"),
        *("specified", "such", "than", "that", "the", "their", "to", "using", "what", "when", "where"),
        *("which", "who", "will", "with", "your"),
    }
)
"""Words that no title ends in."""


class Tiny:
    """For a model that can fill in a few short strings and write a short text."""

    version: Final = version_of("tiny", _PLANNER, repr(_EXAMPLES), _TITLE, _SYNTHESISER)

    def plan(self, instance: Instance) -> Prompt:
        """Ask for the titles of one to four subtasks."""
        messages = [Message("system", _PLANNER)]
        for task, titles in _EXAMPLES:
            answer = json.dumps({"subtasks": titles[: instance.config.max_subtasks]})
            messages += [Message("user", f"Task: {task}"), Message("assistant", answer)]
        guidance = " ".join(filter(None, (instance.feedback, instance.config.instructions)))
        task = f"Task: {_truncate(instance.prompt, 800)}{_format_guidance(guidance)}"
        return Prompt(
            "planning",
            (*messages, Message("user", task)),
            schema=_schema(min(instance.config.max_subtasks, _MAX_SUBTASKS)),
            # The likeliest titles are the most sensible ones.
            sampling=_sampling(0.0, instance.planning),
            max_output_tokens=_PLAN_TOKENS,
        )

    def plan_reader(self, instance: Instance) -> PlanReader | None:  # noqa: ARG002  other profiles need it
        """Return no reader: repeated titles are one subtask, which needs the whole answer."""
        return None

    def read_plan(self, instance: Instance, text: str) -> Plan:
        """Build subtasks from the distinct titles; raise PlanError where there is none."""
        cleaned: dict[str, str] = {}
        for title in filter(None, map(_clean_title, outlines(text)[0].entries)):
            cleaned.setdefault(title.lower(), title)
        subtasks = [
            Subtask(id=f"t{number}", title=title, instructions=f"{title}.")
            for number, title in enumerate(list(cleaned.values())[: instance.config.max_subtasks], 1)
        ]
        summary = "The parts: " + "; ".join(subtask.title for subtask in subtasks) + "."
        return Plan(summary, plan.validate(subtasks, instance.config.max_subtasks))

    def work(self, instance: Instance, subtask: Subtask) -> Prompt:
        """Ask for a short text on one subtask; it may end at the token limit."""
        needed = [instance.subtasks[name] for name in subtask.depends_on]
        outputs = " ".join(f"{each.title}: {_truncate(each.output, 300 // len(needed))}" for each in needed)
        guidance = _format_guidance(instance.config.instructions)
        parts = [
            f"For this project: {_truncate(instance.prompt, 500)}{guidance}",
            _truncate(outputs, 400),
            _truncate(subtask.instructions, 500),
        ]
        return Prompt(
            "work",
            # No system message: told that it is an expert, the model greets and offers help.
            (Message("user", "\n\n".join(filter(None, parts))),),
            sampling=_sampling(0.2, subtask.work),
            max_output_tokens=_WORK_TOKENS,
            may_be_cut=True,
            subtask_id=subtask.id,
        )

    def synthesize(self, instance: Instance) -> Prompt:
        """Ask for an opening of two sentences."""
        titles = ", ".join(_truncate(subtask.title, 80) for subtask in list(instance.subtasks.values())[:8])
        task = f"{_truncate(instance.prompt, 500)}{_format_guidance(instance.config.instructions)}"
        asked = (
            f"A document answers this task: {task}\n"
            f"It has these parts: {titles}.\nWrite two sentences that introduce the document."
        )
        return Prompt(
            "synthesis",
            (Message("system", _SYNTHESISER), Message("user", asked)),
            sampling=_sampling(0.2, instance.synthesis),
            max_output_tokens=_INTRODUCTION_TOKENS,
            may_be_cut=True,
        )

    def read_synthesis(self, instance: Instance, text: str) -> str:
        """Return the opening, then each subtask's output verbatim under its title, then what is missing."""
        sections = [_complete_sentences(text)]
        missing = []
        for subtask in instance.subtasks.values():
            if subtask.work.state == COMPLETED:
                sections.append(f"## {subtask.title}\n\n{_close_code_fence(subtask.output.strip())}")
            else:
                why = subtask.work.error.message if subtask.work.error else "it did not run"
                missing.append(f"- {subtask.title}: {why}")
        if missing:
            sections.append("## Missing\n\n" + "\n".join(missing))
        return "\n\n".join(filter(None, sections))


TINY: Final = Tiny()


def _sampling(temperature: float, work: Work) -> dict[str, float]:
    """Warmer with each failure, for at the same temperature such a model tends to fail in the same way."""
    return {"temperature": min(temperature + 0.2 * work.failures, 1.0), "repeat_penalty": 1.1}


def _schema(most: int) -> dict[str, object]:
    titles = {
        "type": "array",
        "minItems": min(3, most),
        "maxItems": most,
        "items": {"type": "string", "pattern": _TITLE},
    }
    return {
        "type": "object",
        "properties": {"subtasks": titles},
        "required": ["subtasks"],
        "additionalProperties": False,
    }


def _clean_title(title: object) -> str:
    """Return a title in one line that ends where a phrase may end; empty where there is none."""
    words = title.split() if isinstance(title, str) else []
    if len(" ".join(words)) >= _TITLE_CHARACTERS - len("Configure"):  # the grammar may have cut the last word
        words.pop()
    while words and words[-1].lower() in _DANGLING:
        words.pop()
    return " ".join(words).rstrip(" .,;:")[: plan.MAX_TITLE_CHARACTERS]


def _truncate(text: str, limit_bytes: int) -> str:
    """Truncate a text to a limit in bytes, in one paragraph and without chat template tokens."""
    text = " ".join(text[: 2 * limit_bytes].replace("<|", "< |").split())
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - len("…".encode())].decode(errors="ignore") + "…"


def _format_guidance(guidance: str) -> str:
    return f"\nMind this: {_truncate(guidance, 200)}" if guidance else ""


def _complete_sentences(text: str) -> str:
    """Truncate a text after its last complete sentence, if it has one."""
    text = text.strip()
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def _close_code_fence(text: str) -> str:
    """Close the last code fence of a Markdown text, so that what follows is not code."""
    fences = sum(line.lstrip().startswith("```") for line in text.splitlines())
    return f"{text}\n```" if fences % 2 else text
