"""The Transformer that reads thoughts: blocks, windowed attention, rotary positions, cached decoding."""

from ltm_pyro.decoder.decoding import Continuation, decode
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.decoder.transformer import Stem, ThoughtDecoder

__all__ = ["Continuation", "Sampling", "Stem", "ThoughtDecoder", "decode"]
