"""The embedded model's process: `python -m orchestrator.models.llama_server`, started by models/llama.py.

It reads its settings, one line of JSON, from stdin, serves on a free port of 127.0.0.1, and writes one line
of JSON to stdout, `{"url"}`, once it answers. What llama.cpp itself prints goes to stderr. The end of stdin
is the end of the process: a parent closes it, however it dies.
"""

import json
import os
import signal
import sys
import threading
from typing import Any, Final

_ERRORS_ONLY: Final = 1


def main() -> None:
    """Serve until stdin ends."""
    # Ctrl-C in a terminal reaches every process there, but the parent wants to finish its calls first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever llama.cpp prints to stdout must not be taken for our one line.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        server = _serve(settings)
    except RuntimeError as error:  # its cause has been printed
        sys.exit(str(error))
    json.dump({"url": server.listening_address}, answers)
    answers.write("\n")
    answers.flush()
    threading.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp  # noqa: PLC0415  100 MB, needed in this process only

    params = xllamacpp.CommonParams()
    params.model.path = settings["weights"]
    params.model_alias = {settings["model"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["parallel"] * settings["context_tokens"]
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = settings["threads"]
        threads.poll = 0  # waiting for work costs nothing
    params.n_threads_http = 2 * settings["parallel"] + 2
    # Prompts share little: a slot's own cache is enough, and 8 GiB for others would be the default.
    params.cache_ram_mib = 0
    params.fit_params = False
    params.ui = params.endpoint_slots = False
    params.verbosity = _ERRORS_ONLY
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
