"""``python -m ltm_pyro.cli``."""

from ltm_pyro.cli.main import main

main()
