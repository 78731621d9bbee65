"""A process that tokenises chunks: ``python -m ltm_pyro.data.worker TOKENIZER FOLDER``.

Every line of its standard input is a `ChunkText`; it answers each with one line, when the chunk lies in the folder. It
ends when its input does, so also when the process that started it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ltm_pyro.data.chunks import ChunkStore, ChunkText
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError


def main() -> None:
    """Serves standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    os.nice(5)  # training goes first
    tokenizer, store = Tokenizer.load(sys.argv[1]), ChunkStore(Path(sys.argv[2]))
    for line in sys.stdin.buffer:
        wrong = None
        try:
            store.write(ChunkText.from_json(line), tokenizer)
        except LTMError as error:
            wrong = str(error)
        try:
            print(json.dumps({"error": wrong}), flush=True)
        except BrokenPipeError:  # the process that started this one is dead
            os._exit(1)


if __name__ == "__main__":
    main()
