"""Data at scale: tokenising by several processes, peak memory, what a kill costs, and the loader beside `ltm-s`."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, table, write_result
from benchmarks.workload import Workload
from ltm_pyro.data import Tokenizer, train_tokenizer
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import FablesCorpus, FileCorpus
from ltm_pyro.data.prefetch import Prefetched
from ltm_pyro.data.streaming import StreamingDataset
from ltm_pyro.data.supply import ChunkSupply

SMOKE = {"megabytes": 0.5, "workers": [0, 1], "preset": "tiny", "fast_steps": 1, "steps": 2, "batches": 20}

# What is measured runs in a process of its own, so that its peak of memory is its own; it tells every chunk.
TOKENISE = """
import json, resource, sys, time
from pathlib import Path
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.prepare import prepare_chunks
from ltm_pyro.data.tokenizer import Tokenizer

text, tokenizer, folder, workers, characters = sys.argv[1:]
tokenizer = Tokenizer.load(tokenizer)
began = time.perf_counter()
with FileLock(Path(folder) / "lock") as lock:
    done = prepare_chunks(
        ChunkStore(Path(folder)), FileCorpus(Path(text)), tokenizer, workers=int(workers), lock=lock,
        characters=int(characters), progress=lambda state: print(state.chunks, flush=True),
    )
seconds = time.perf_counter() - began
# Not getrusage of the process itself, which keeps the peak of the one that it was forked from.
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
kib = [own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
print(json.dumps({
    "seconds": seconds, "characters": done.characters, "tokens": done.tokens, "documents": done.documents,
    "chunks": done.chunks, "found_characters": done.found, "peak_mib": kib[0] / 1024, "peak_worker_mib": kib[1] / 1024,
}))
"""


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/data.json and data.md."""
    parser = argparse.ArgumentParser(prog="just bench data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", help="a text to repeat, .jsonl or .txt (default: generated fables)")
    parser.add_argument("--tokenizer", help="path or hub name (default: a byte-level BPE of 2048 trained on the text)")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of text to tokenise")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of processes")
    parser.add_argument("--preset", default="ltm-s", help="the model that is trained beside the loader")
    parser.add_argument("--fast-steps", type=int, default=16, help="T_fast")
    parser.add_argument("--steps", type=int, default=3, help="slow steps of it")
    parser.add_argument("--batches", type=int, default=2000, help="to time the loader by")
    parser.add_argument("--out", default="data", help="name of the files under benchmarks/results/ (default: data)")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works; writes to runs/bench/")
    if parser.parse_args(arguments).smoke:
        parser.set_defaults(**SMOKE)
    options = parser.parse_args(arguments)
    folder = Path("runs") / "bench" if options.smoke else Path(__file__).parent / "results"
    work = Path("runs") / "bench" / "data-at-scale"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    text = write_text(work / "text.jsonl", options.source, options.megabytes)
    tokenizer = tokenizer_of(options.tokenizer, text, work)
    characters = 100_000 if options.smoke else 4_000_000
    runs = [tokenise(text, work, n, characters) for n in options.workers]
    resumed = after_a_kill(text, work, options.workers[-1], characters)
    loader = loader_of(text, tokenizer, work, options, characters)
    result = {
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "text_bytes": text.stat().st_size,
        "vocabulary": tokenizer.vocab_size,
        "tokenising": runs,
        "after_a_kill": resumed,
        "loader": loader,
    }
    path = write_result(options.out, result, folder)
    page = report(result)
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    shutil.rmtree(work)
    print(page)
    print(f"written to {path}")


def write_text(path: Path, source: str | None, megabytes: float) -> Path:
    """So many megabytes of documents, again and again, each with a number of its own so that no two are the same."""
    corpus = FablesCorpus(2000) if source is None else FileCorpus(Path(source))
    texts = [document.text for document in islice(corpus.documents(), 20_000)]
    left = megabytes * 1e6
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(cycle(texts)):
            line = json.dumps({"text": f"{number}. {text}"}, ensure_ascii=False) + "\n"
            file.write(line)
            left -= len(line.encode())
            if left <= 0:
                break
    return path


def tokenizer_of(name: str | None, text: Path, work: Path) -> Tokenizer:
    """The named tokenizer, or one trained on the text; kept for the processes that are measured."""
    tokenizer = train_tokenizer(FileCorpus(text), 2048, work / "cache") if name is None else Tokenizer.load(name)
    tokenizer.save(work / "tokenizer.json")
    return tokenizer


def tokenise(text: Path, work: Path, workers: int, characters: int, folder: str | None = None) -> dict[str, Any]:
    """Tokenises in a process of its own; what it took."""
    command = _command(text, work, workers, characters, folder or f"chunks-{workers}")
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = {"workers": workers, **json.loads(shown.splitlines()[-1])}
    new = found["characters"] - found["found_characters"]
    found["characters_per_s"] = new / found["seconds"]
    found["tokens_per_s"] = found["tokens"] * new / found["characters"] / found["seconds"]
    # Every worker as large as the largest, and pages that they share counted for each: an upper bound of the sum.
    found["peak_mib_together"] = found["peak_mib"] + workers * found["peak_worker_mib"]
    return found


def after_a_kill(text: Path, work: Path, workers: int, characters: int) -> dict[str, Any]:
    """Kills a process that tokenises when half is done, and starts it again: what is done twice, and what comes out."""
    folder = work / "chunks-killed"
    store, whole = ChunkStore(folder), ChunkStore(work / f"chunks-{workers}")
    half = (whole.count() or 0) // 2
    with subprocess.Popen(_command(text, work, workers, characters, folder.name), stdout=subprocess.PIPE) as process:
        while sum(number in store for number in range(half)) < half:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in folder.glob("[0-9]*/tokens.bin")}
    again = tokenise(text, work, workers, characters, folder.name)
    numbers = range(whole.count() or 0)
    digests = [[each.manifest(number).tokens_sha256 for number in numbers] for each in (store, whole)]
    return {
        "chunks": len(numbers),
        "chunks_before_the_kill": len(done),
        "made_twice": sum(path.stat().st_mtime_ns != when for path, when in done.items()),
        "same_bytes": digests[0] == digests[1],
        **{name: again[name] for name in ("seconds", "characters_per_s", "found_characters")},
    }


def loader_of(
    text: Path, tokenizer: Tokenizer, work: Path, options: argparse.Namespace, characters: int
) -> dict[str, Any]:
    """Tokens a second of batches, beside training that begins before anything is tokenised."""
    ready = _stream(work / f"chunks-{options.workers[-1]}", text, tokenizer, characters)
    sampler = ready.sampler(8)
    tokens, seconds = 0, []
    for _ in range(options.batches):
        before = time.perf_counter()
        tokens += int(ready.batch(next(sampler)).lengths.sum())
        seconds.append(time.perf_counter() - before)
    ready.close()

    work_load = Workload.of(
        preset=options.preset, vocabulary=tokenizer.vocab_size, batch=8, tokens=256, fast_steps=options.fast_steps
    )
    work_load.warm_up()
    cold = _stream(work / "chunks-cold", text, tokenizer, characters)
    sampler = cold.sampler(8)
    batches = Prefetched(sampler, cold.batch, 2)
    waits, steps, trained = [], [], 0
    for _ in range(1 + options.steps):
        before = time.perf_counter()
        batch = batches(next(sampler))
        waits.append(time.perf_counter() - before)
        before = time.perf_counter()
        work_load.svi.step(batch, seed=0)
        steps.append(time.perf_counter() - before)
        trained += int(batch.num_scored.sum())
    chunks = sum(1 for _ in chain((work / "chunks-cold").glob("[0-9]*")))
    cold.close()
    return {
        "tokens_per_s": tokens / sum(seconds),
        "seconds_of_the_slowest_batch": max(seconds),
        "training_tokens_per_s": trained / sum(steps),
        "seconds_to_the_first_batch": waits[0],
        "waits": waits[1:],
        "steps": steps,
        "chunks_tokenised_meanwhile": chunks,
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [
            str(run["workers"]),
            f"{run['characters_per_s'] / 1e6:.2f}",
            f"{run['tokens_per_s'] / 1e3:,.0f}",
            f"{run['seconds']:.1f}",
            f"{run['peak_mib']:.0f}",
            f"{run['peak_worker_mib']:.0f}" if run["workers"] else "",
            f"{run['peak_mib_together']:.0f}",
        ]
        for run in result["tokenising"]
    ]
    head = ["workers", "M characters/s", "k tokens/s", "seconds", "MiB", "MiB of a worker", "MiB together, at most"]
    killed, loader, options, about = result["after_a_kill"], result["loader"], result["options"], machine()
    what = "generated fables" if options["source"] is None else Path(options["source"]).name
    ratio = loader["tokens_per_s"] / loader["training_tokens_per_s"]
    same = "the same" if killed["same_bytes"] else "NOT the same"
    step, wait = sorted(loader["steps"])[len(loader["steps"]) // 2], 1e3 * max(loader["waits"])
    return f"""# Data at scale

{result["text_bytes"] / 1e6:.0f} MB of .jsonl ({what}, repeated and numbered), a vocabulary of {result["vocabulary"]:,};
{about["processor"]}, {about["threads"]} threads. One run each.

```
{table(head, rows)}
```

With 0 workers the text is tokenised in the process itself, on all cores. Memory is the peak of resident memory;
"together" takes every worker for as large as the largest and counts shared pages for each.

Killed (SIGKILL) with {killed["chunks_before_the_kill"]} of {killed["chunks"]} chunks done and started again:
{killed["made_twice"]} chunks were made twice, the rest took {killed["seconds"]:.1f} seconds, and the tokens are {same}
as without the kill.

The loader gives {loader["tokens_per_s"]:,.0f} tokens/s in batches of 8 sequences of 256; the slowest batch, one that
opens a window of chunks, took {loader["seconds_of_the_slowest_batch"]:.2f} seconds, and is made ahead like any other.
`{options["preset"]}` trains on {loader["training_tokens_per_s"]:,.0f} tokens/s (T_fast = {options["fast_steps"]}),
{ratio:,.0f} times fewer. Training that began with nothing tokenised had its first batch after
{loader["seconds_to_the_first_batch"]:.1f} seconds. From then on it waited {wait:.1f} ms at most before a step of
{step:.1f} seconds, while the text was tokenised beside it ({loader["chunks_tokenised_meanwhile"]} chunks by the end).
"""


def _command(text: Path, work: Path, workers: int, characters: int, folder: str) -> list[str]:
    arguments = [text, work / "tokenizer.json", work / folder, workers, characters]
    return [sys.executable, "-c", TOKENISE, *map(str, arguments)]


def _stream(folder: Path, text: Path, tokenizer: Tokenizer, characters: int) -> StreamingDataset:
    supply = ChunkSupply(
        ChunkStore(folder), FileCorpus(text, hashed=False), tokenizer, workers=1, characters=characters
    )
    return StreamingDataset(supply, tokenizer, "packed", 256)
