"""The text of a synthesis on its way to readers: expanded, whatever it is restarted or replaced by."""

from orchestrator.core.files import File, write_block
from orchestrator.core.references import References
from orchestrator.engine.expanded_text import ExpandedText

A = File("a.py", "x\n", "python")
BLOCK = write_block(A)
KEEP = "<keep-file>t1:a.py</keep-file>"


class Reader:
    """What readers have been given of an attempt."""

    def __init__(self) -> None:
        self.recorded = ""
        self.text = ""

    def writer(self, recorded: str) -> "Reader":
        self.recorded = self.text = recorded
        return self

    def __call__(self, piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
        if replaces:
            self.recorded = self.text = ""
        elif is_restart:
            self.text = self.recorded
        self.text += piece


def _expanded(recorded: str = "") -> tuple[ExpandedText, Reader]:
    reader = Reader()
    files = {"t1:a.py": A}
    return ExpandedText(References(files, files), recorded, reader.writer), reader


def test_text_is_expanded_and_what_was_held_back_follows_at_the_end() -> None:
    expanded, reader = _expanded()
    for character in f"See:\n{KEEP}\n- ":
        expanded(character)
    assert reader.text == f"See:\n{BLOCK}\n"
    expanded.finish("added")
    assert reader.text == f"See:\n{BLOCK}\n- added"


def test_text_goes_on_behind_what_is_recorded() -> None:
    expanded, reader = _expanded(f"See:\n{KEEP[:9]}")
    assert reader.text == "See:\n"
    expanded(KEEP[9:])
    expanded.finish("")
    assert reader.text == f"See:\n{BLOCK}"


def test_a_restart_begins_behind_what_is_recorded_once_there_is_something_to_see() -> None:
    expanded, reader = _expanded("One\n")
    expanded("wrong\n")
    expanded(KEEP, is_restart=True)
    assert reader.text == "One\nwrong\n"
    expanded("\n")
    assert reader.text == f"One\n{BLOCK}\n"


def test_what_replaces_the_answer_takes_the_place_of_what_is_recorded_too() -> None:
    expanded, reader = _expanded("One\n")
    expanded(KEEP, replaces=True)
    expanded("\n")
    assert reader.text == f"{BLOCK}\n"


def test_an_answer_that_was_not_streamed_is_not_finished_live() -> None:
    expanded, reader = _expanded("One\n")
    expanded.finish("added")
    assert reader.text == "One\n"
