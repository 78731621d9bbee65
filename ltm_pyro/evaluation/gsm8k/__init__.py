"""GSM8K: prompts, draws, how answers are read, and pass@k."""

from ltm_pyro.evaluation.gsm8k.solving import (
    EXTRACTIONS,
    Problem,
    Solved,
    load_problems,
    pass_rates,
    prompt_text,
    solution_of,
    solve,
)

__all__ = ["EXTRACTIONS", "Problem", "Solved", "load_problems", "pass_rates", "prompt_text", "solution_of", "solve"]
