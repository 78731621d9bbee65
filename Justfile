# Show the recipes.
default:
    @just --list --unsorted

# Install the project with everything that development needs.
setup:
    python -m pip install -e '.[dev]'

# Run the tests that every change must pass.
test *ARGS:
    python -m pytest {{ARGS}}

# Run the long tests, too: compiled decoders, whole trainings, all faults and all fuzzing.
test-slow *ARGS:
    python -m pytest -m 'slow or not slow' {{ARGS}}

# Kill, fill disks, bend files, break numbers and set clocks, and count what is lost (`--faults-report FILE` keeps the table).
test-faults *ARGS:
    python -m pytest tests/faults -m 'slow or not slow' {{ARGS}}

# Feed corpora, settings, checkpoints and tokenizers that nobody should: some 2 900 cases.
test-fuzz *ARGS:
    python -m pytest tests/fuzz -m 'slow or not slow' {{ARGS}}

# Check style and formatting.
lint:
    ruff check .
    ruff format --check .

# Mend style and formatting where that is mechanical.
format:
    ruff check --fix .
    ruff format .

# Check the types, strictly.
types:
    mypy

# Run the code blocks of the README and the docs.
docs:
    python -m pytest tests/docs -m 'slow or not slow'

# Measure one thing, for example `just bench pyro-overhead`; `just bench` lists them.
bench NAME='' *ARGS:
    python -m benchmarks {{NAME}} {{ARGS}}

# Make one of the paper's figures or tables at this machine's scale; `just reproduce` lists them.
reproduce NAME='' *ARGS:
    python -m benchmarks.reproduce {{NAME}} {{ARGS}}

# All that continuous integration checks, in this environment.
check: lint types test
