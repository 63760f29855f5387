"""Whether a refusal or a fault concerns one model, or all models of an endpoint: only its words tell."""

import re
from http import HTTPStatus
from typing import Final

_URL: Final = re.compile(r"https?://\S+")
_ALL_MODELS: Final = re.compile(r"\b(?:all|across|every|any) (?:the |your |of your )?models?\b|\bglobal rate")
_ONE_MODEL: Final = re.compile(r"\bmodel\b|permodel|\bdeployment\b")
_OWNER: Final = re.compile(
    r"\b(?:organi[sz]ation|account|project|workspace|team|subscription|tenant)(?:'s)?\b"
    r"|\b(?:api|your|this) key\b|\bper[ -]key\b"
)
_LIMIT: Final = re.compile(r"limit|quota|exceed|too many|allocation|throttl")
_ADVICE: Final = re.compile(r"\b(?:upgrade|contact|visit|increase|raise|add your|check your|see your)\b")
_SENTENCE_END: Final = re.compile(r"[.!?](?:\s|$)|\n")
_HOST_FAULTS: Final = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)


def is_shared_limit(words: str, model: str) -> bool:
    """Return whether a limit is of the account, say, whatever model is called.

    `words`: what the answer says, in lower case. One that names a model is that model's, and so is one that
    says nothing of its scope. Advice, as to upgrade the account, names no scope.
    """
    text = _URL.sub("", words)
    if _ALL_MODELS.search(text):
        return True
    return not _names_model(text, model) and any(
        _OWNER.search(it) and _LIMIT.search(it) and not _ADVICE.search(it) for it in _SENTENCE_END.split(text)
    )


def is_shared_fault(status: int, words: str, model: str) -> bool:
    """Return whether a fault is the host's, or that of a proxy before it, and not a model's."""
    text = _URL.sub("", words)
    if _ALL_MODELS.search(text):
        return True
    return status in _HOST_FAULTS and not _names_model(text, model)


def _names_model(text: str, model: str) -> bool:
    return bool(_ONE_MODEL.search(text)) or model.lower() in text
