"""The benchmarks of speed: what they compute from times, that they compare equal things, and a run of each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plot)")

from benchmarks import attention, fast_loop, floor, loss, priors_guides, pyro_overhead, ranks, scaling
from benchmarks.floor import Floor
from benchmarks.measure import compare, peak_bytes, show, spread, table
from benchmarks.workload import Workload, options_of, parser_of, plain
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import DecoderSize, slow_step_flops

BENCHMARKS = {
    "attention": attention,
    "fast-loop": fast_loop,
    "floor": floor,
    "loss": loss,
    "priors-guides": priors_guides,
    "pyro-overhead": pyro_overhead,
    "ranks": ranks,
    "scaling": scaling,
}


class Clock:
    """Time that passes while a function runs, and not otherwise."""

    def __init__(self):
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, *seconds: float):
        left = iter(seconds)

        def run() -> None:
            self.now += next(left)
            self.order.append(name)

        return run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs a benchmark's smoke run once, in a folder of its own; gives that folder and the result."""
    done: dict[str, tuple[Path, dict]] = {}

    def run(name: str) -> tuple[Path, dict]:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                patch.setattr("sys.argv", ["benchmarks", name, "--smoke"])
                BENCHMARKS[name].main(["--smoke", "--device", "cpu", "--threads", "1"])
            folder = root / "runs" / "bench"
            done[name] = folder, json.loads((folder / f"{name}.json").read_text())
        return done[name]

    return run


def test_every_function_runs_once_a_round_and_another_goes_first_each_time():
    clock = Clock()
    functions = {name: clock.function(name, *[1.0] * 5) for name in "abc"}
    compare(functions, rounds=4, warmup=1, clock=clock)
    assert ["".join(clock.order[i : i + 3]) for i in range(0, 15, 3)] == ["abc", "abc", "bca", "cab", "abc"]


def test_ratios_are_taken_within_a_round_and_medians_over_rounds():
    clock = Clock()
    functions = {
        "slow": clock.function("slow", 100.0, 4.0, 9.0, 2.0),
        "fast": clock.function("fast", 100.0, 1.0, 3.0, 4.0),
        "other": clock.function("other", 100.0, 8.0, 8.0, 8.0),
    }
    compared = compare(functions, rounds=3, reference="fast", clock=clock)
    summary = compared.summary()
    assert summary["reference"] == "fast"
    slow = summary["functions"]["slow"]
    assert slow["seconds"] == {"median": 4.0, "min": 2.0, "max": 9.0, "all": [4.0, 9.0, 2.0]}  # no warm-up in it
    assert slow["ratio"] == {"median": 3.0, "min": 0.5, "max": 4.0, "all": [4.0, 3.0, 0.5]}  # not 4 / 3
    assert compared.ratios("slow", "other") == [4 / 8, 9 / 8, 2 / 8]
    assert summary["functions"]["fast"]["ratio"]["all"] == [1.0, 1.0, 1.0]


def test_reference_is_the_last_function_where_none_is_named():
    clock = Clock()
    compared = compare({name: clock.function(name, 2.0) for name in "ab"}, rounds=1, warmup=0, clock=clock)
    assert compared.reference == "b"


def test_tables_line_up_and_a_single_value_has_no_spread():
    assert show(spread([0.5])) == "0.500"
    assert show(spread([2.0, 1.0, 4.0]), 1e3) == "2000 (1000 … 4000)"
    lines = table(["", "seconds"], [["first", "1.0"], ["the second", "10.0"]]).splitlines()
    assert lines == ["            seconds", "first           1.0", "the second     10.0"]


def test_peak_is_what_stands_at_a_time_and_not_what_was_there_before():
    standing = torch.ones(1000)

    def run() -> torch.Tensor:
        first = standing + 1  # 4000 bytes
        second = first.double()  # 8000 more
        del first
        return second.float()  # 4000, after 4000 have gone

    assert peak_bytes(run) == 12_000


def test_floor_takes_the_greater_of_products_and_memory():
    machine = Floor({torch.float32: 100.0, torch.bfloat16: 400.0}, 10.0)
    assert machine.seconds(1000) == 10.0
    assert machine.seconds(1000, torch.bfloat16) == 2.5
    assert machine.seconds(1000, torch.bfloat16, moved=50) == 5.0


def test_floor_of_a_type_is_its_fastest_product():
    found = Floor.measure(quick=True).to_dict()
    for dtype, peak in found["flops_per_s"].items():
        assert peak == max(p["flops_per_s"] for p in found["products"] if p["dtype"] == dtype)
    assert found["bytes_per_s"] > 0


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN")
def test_both_libraries_of_the_floor_multiply_the_same():
    x, w = torch.randn(8, 16), torch.randn(4, 16)
    for _, product in floor._ways(x, w):
        torch.testing.assert_close(product(), x @ w.T)


def test_options_given_stand_in_a_smoke_run():
    work = {"preset": "ltm-s", "batch": 4, "dtype": ["float32", "bfloat16"]}
    parser = parser_of("some", "Some.", rounds=5, **work)
    options = options_of(parser, ["--smoke", "--batch", "3", "--threads", "1"], {"batch": 2, "rounds": 1})
    assert (options.batch, options.rounds, options.dtype) == (3, 1, ["float32", "bfloat16"])
    assert options.folder == Path("runs") / "bench"
    assert options_of(parser, ["--threads", "1"], {"batch": 2}).folder is None
    assert "out" not in plain(options)


@pytest.mark.parametrize("weights", [False, True], ids=["hidden states", "and weights"])
def test_losses_that_are_compared_have_the_same_value_and_gradients(weights):
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(40, 8, requires_grad=weights)
    targets = torch.randint(40, (5,))
    log_probs = (hidden.double() @ weight.double().T).log_softmax(-1)
    value = -log_probs[torch.arange(5), targets].sum()
    expected = [value, *torch.autograd.grad(value, [hidden, weight] if weights else [hidden])]
    for ours in loss.losses().values():
        for got, want in zip(loss._value_and_gradient(ours, hidden, weight, targets), expected, strict=True):
            torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-4, atol=1e-5)


def test_library_attention_and_dense_mask_see_the_same_window():
    q, k, v = attention._inputs((2, 24, 3 * 16), 2, torch.float32, "cpu")
    distance = torch.arange(24)[:, None] - torch.arange(24)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < 8))
    for way in ("library", "dense mask"):
        torch.testing.assert_close(attention._attend(way, 24, 8, "cpu")(q, k, v), expected)
    unbounded = attention._attend("causal, no window", 24, 8, "cpu")(q, k, v)
    torch.testing.assert_close(unbounded[:, :, :8], expected[:, :, :8])
    assert not torch.allclose(unbounded[:, :, 8:], expected[:, :, 8:])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_smoke_run_writes_machine_and_command_and_no_path_of_the_machine(name, smoke):
    folder, result = smoke(name)
    assert result["command"] == f"just bench {name} --smoke"
    assert result["machine"]["torch"] == str(torch.__version__)
    text = (folder / f"{name}.json").read_text()
    assert not re.search(r'["\s(`=]/(?:home|root|tmp|work|usr|Users)/', text)


def test_attention_rows_hold_every_way_and_length_with_ratios_round_by_round(smoke):
    _, result = smoke("attention")
    rows = {(row["way"], row["tokens"]): row for row in result["rows"]}
    assert set(rows) == {(way, tokens) for way in attention.WAYS for tokens in (16, 32)}
    assert result["base_tokens"] == 16
    long, short = rows["library", 32], rows["library", 16]
    seconds = zip(long["seconds"]["all"], short["seconds"]["all"], strict=True)
    assert long["ratio_per_token_to_16"]["all"] == pytest.approx([a / 32 / (b / 16) for a, b in seconds])
    dense = rows["dense mask", 32]["seconds"]["all"]
    assert long["ratio_to_dense_mask"]["all"] == pytest.approx(
        [a / b for a, b in zip(long["seconds"]["all"], dense, strict=True)]
    )
    assert long["seconds_per_token"] == pytest.approx(long["seconds"]["median"] / (2 * 32))
    # 14 operations per seen pair and channel: 32 queries, all but the first 15 of which see 16 keys.
    assert long["flops_per_token"] == 14 * 16 * (sum(range(1, 16)) + 17 * 16) / 32


def test_loss_rows_hold_every_way_against_its_own_floor(smoke):
    _, result = smoke("loss")
    assert len(result["rows"]) == 2 * 2 * 2 * len(loss.losses())
    for row in result["rows"]:
        products = 3 if "weights" in row["way"] else 2
        assert row["floor_flops"] == products * 2 * 8 * 16 * row["vocabulary"]
        peak = result["floor"]["flops_per_s"][row["dtype"]]
        assert row["times_floor"]["all"] == pytest.approx(
            [s * peak / row["floor_flops"] for s in row["seconds"]["all"]]
        )
        assert row["peak_bytes"] > 0
        assert row["way"] != result["reference"] or set(row["ratio"]["all"]) == {1.0}


def test_scaling_rows_are_per_token_beside_the_shared_point(smoke):
    folder, result = smoke("scaling")
    assert {row["axis"] for row in result["rows"]} == set(scaling.AXES)
    long, short = [row for row in result["rows"] if row["axis"] == "tokens"]
    assert (long["value"], short["value"]) == (16, 32)
    assert short["ratio_per_token"]["all"] == pytest.approx([1.0, 1.0])
    per_token = zip(long["seconds_per_token"]["all"], short["seconds_per_token"]["all"], strict=True)
    assert long["ratio_per_token"]["all"] == pytest.approx([a / b for a, b in per_token])
    assert (folder / "scaling.svg").read_text().rstrip().endswith("</svg>")


def test_scaling_counts_the_operations_that_a_step_makes():
    sizes = {"preset": "tiny", "vocabulary": 300, "batch": 2, "tokens": 16, "fast_steps": 2}
    work = Workload.of(**sizes, settings={"decoder.num_thoughts": 4})
    assert work.svi.model.decoder.thought_shape[:2] == (2, 2)
    size = DecoderSize.of(work.svi.model.decoder)
    expected = slow_step_flops(size, 2, 16, 32, fast_steps=2)
    assert scaling._flops(work, True) == expected == measured_flops(work.step)


@pytest.mark.parametrize(
    ("given", "says"), [("length", "no axis 'length'"), ("tokens=1,two", "whole numbers, as in tokens=1,2")]
)
def test_scaling_refuses_an_axis_that_it_does_not_have(given, says, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--smoke", "--axes", given])
    assert says in capsys.readouterr().err


def test_pyro_overhead_compares_both_sides(smoke):
    _, result = smoke("pyro-overhead")
    assert result["reference"] == "by hand"
    assert set(result["functions"]) == {"FastSlowSVI.step", "by hand"}
    for about in result["functions"].values():
        assert len(about["seconds"]["all"]) == len(about["ratio"]["all"]) == result["options"]["rounds"]
