"""What Pyro costs: `FastSlowSVI.step` against a hand-written torch loop that does the same arithmetic."""

from __future__ import annotations

from benchmarks.by_hand import HandWritten
from benchmarks.measure import compare, write_result
from benchmarks.workload import GPT2_VOCABULARY, Workload, options_of, parser_of, plain

SMOKE = {"preset": "tiny", "vocabulary": 300, "batch": 2, "tokens": 32, "fast_steps": 2, "rounds": 2}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/pyro-overhead.json."""
    work = {"preset": "ltm-m", "vocabulary": GPT2_VOCABULARY, "batch": 2, "tokens": 512, "fast_steps": 16}
    parser = parser_of("pyro-overhead", __doc__, rounds=5, **work, dtype="float32")
    options = options_of(parser, arguments, SMOKE)
    through_pyro = Workload.of(**plain(options))
    by_hand = HandWritten(through_pyro.svi, through_pyro.settings.inference.init_log_var)

    compared = compare(
        {"FastSlowSVI.step": through_pyro.step, "by hand": lambda: by_hand.step(through_pyro.batch)},
        rounds=options.rounds,
        reference="by hand",
    )
    path = write_result(options.out, {"options": plain(options), **compared.summary()}, options.folder)
    print(compared.table())
    print(f"written to {path}")
