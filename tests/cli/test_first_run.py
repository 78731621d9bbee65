"""The README's first command as a user types it: trains, prints texts, and names a next command that works."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.slow
def test_the_readmes_first_command_trains_writes_texts_and_names_a_next_command_that_works(tmp_path):
    block = re.search(r"<!-- train -->\s*```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    install, train = block.group(1).strip().split(" && ")
    assert install == "python -m pip install -e ."
    environment = os.environ | {"LTM_PYRO_CACHE": str(tmp_path / "cache")}

    def run(command: str) -> str:
        program, *arguments = shlex.split(command)
        assert program == "ltm-pyro"
        done = subprocess.run(
            [sys.executable, "-m", "ltm_pyro.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = run(train)
    assert "Texts of its own" in printed
    rows = [json.loads(line) for line in (tmp_path / "runs/tiny-fables/metrics.jsonl").read_text().splitlines()]
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation[-1]["elbo"] < 0.75 * validation[0]["elbo"]
    following = re.findall(r"^ {4}(ltm-pyro .*)$", printed, re.MULTILINE)
    assert len(following) == 1
    assert len(run(following[0]).split()) > 100
