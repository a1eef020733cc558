"""A .gguf model behind llama.cpp's OpenAI-compatible server, for as long as a command runs.

    python scripts/serve_gguf.py MODEL [--port 8123] [--threads 2] -- potstill run recipes/served_labels.yaml

MODEL is a file or package:NAME/FILE. Without a command it serves until standard input closes. It listens on the
loopback interface alone and prints its address.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import xllamacpp

from potstill.models.locate import locate

llama: Any = xllamacpp


def serve(model: str, *, port: int, slots: int, context: int, threads: int) -> Any:
    """A running server; it stops when the object goes. Port 0: one that is free."""
    settings = llama.CommonParams()
    settings.model.path = str(locate(model).path)
    settings.n_parallel = slots
    settings.n_ctx = slots * context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.port, settings.verbosity = port, -1  # on the loopback interface, unless told otherwise
    return llama.Server(settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--slots", type=int, default=4, help="requests at once")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a request")
    parser.add_argument("--threads", type=int, default=2)
    options, command = parser.parse_known_args()
    server = serve(
        options.model, port=options.port, slots=options.slots, context=options.context, threads=options.threads
    )
    print(f"{server.listening_address}/v1", flush=True)
    command = command[command.index("--") + 1 :] if "--" in command else command
    if command:
        return subprocess.run(command, check=False).returncode
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
