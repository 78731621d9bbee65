"""A trained run as the model ``ltm-pyro`` of EleutherAI's lm-evaluation-harness, which must be installed.

Importing this package makes the model known to the harness.
"""

from ltm_pyro.evaluation.harness.model import HarnessModel, command_line, documents

__all__ = ["HarnessModel", "command_line", "documents"]
