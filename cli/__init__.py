"""The command line of ltm-pyro: parse, call the library, render."""
