"""How long finding the files of a result takes, of usual texts and of hostile ones: the same time a megabyte.

python benchmarks/files.py [megabytes]
"""

import sys
from collections.abc import Callable
from time import perf_counter

from markdown_it import MarkdownIt

from orchestrator.core.files import find_files

PROSE = "Some words that say what the file below is for, and why.\n\n" * 3
CODE = "".join(f"    value_{number} = compute(value_{number - 1})\n" for number in range(1, 151))
TEXTS = {
    "a coding task": f"{PROSE}### `src/module.py`\n\n```python\n{CODE}```\n\n",
    "in a list": "1. Make it:\n\n   ```python path=a.py\n   x = 1\n   ```\n\n",
    "in quotes": "> > a.py\n> > ```\n> > x = 1\n> > ```\n",
    "open blocks of Markdown": "```md path=a.md\n```sh\n",
    "nested Markdown": "```md path=a.md\n```sh\n```\n```\n",
    "markers of lists": "- " * 500 + "\n",
    "markers of quotes": "> " * 500 + "\n",
    "blank lines in deep lists": "- " * 40 + "x\n" + "\n" * 1000,
    "one long line": "a.py ",
    "white space": " ",
    "fences": "~~~a\n~~~~\n",
    "long fences": "`" * 5000 + " a.py\n",
}


def seconds(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    for name, unit in TEXTS.items():
        text = unit * round(megabytes * 1e6 / len(unit))
        half = text[: len(text) // 2]
        whole_s = seconds(lambda text=text: find_files(text))
        half_s = seconds(lambda half=half: find_files(half))
        print(f"{name:28} {megabytes:g} MB in {whole_s:6.2f} s, half of it in {half_s:6.2f} s")
    usual = TEXTS["a coding task"]
    text = usual * round(megabytes * 1e6 / len(usual))
    parsed_s = seconds(lambda: MarkdownIt().parse(text))
    print(f"{'markdown-it-py':28} {megabytes:g} MB in {parsed_s:6.2f} s, of a coding task")


if __name__ == "__main__":
    main()
