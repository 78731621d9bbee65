"""The paper's figures and tables at the scale of one machine: a recipe each."""
