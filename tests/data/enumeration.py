"""Brute force, apart from the parser: every document of a grammar with its probability."""

import itertools
import math
from collections import defaultdict

from ltm_pyro.data.fables.nodes import Case, Choice, Text


def plans(variables):
    """Every plan with its probability, straight from the tables."""
    for values in itertools.product(*(v.values for v in variables)):
        plan = dict(zip((v.name for v in variables), values, strict=True))
        p = 1.0
        for v in variables:
            table = v.table or {(): [1 / len(v.values)] * len(v.values)}
            p *= table[tuple(plan[parent] for parent in v.parents)][v.values.index(plan[v.name])]
        if p > 0:
            yield plan, p


def texts(node, plan):
    """Every derivation of a node under a full plan: (text, probability) pairs, repeats included."""
    if isinstance(node, Text):
        return [(node.text, 1.0)]
    if isinstance(node, Choice):
        pairs = zip(node.options, node.weights, strict=True)
        return [(t, w * p) for option, w in pairs for t, p in texts(option, plan)]
    if isinstance(node, Case):
        return texts(node.branches[tuple(plan[name] for name in node.variables)], plan)
    results = [("", 1.0)]
    for part in node.parts:
        tails = texts(part, plan)
        results = [(a + b, p * q) for a, p in results for b, q in tails]
    return results


def language(variables, root):
    """Probability of every document."""
    total = defaultdict(list)
    for plan, p in plans(variables):
        for text, q in texts(root, plan):
            total[text].append(p * q)
    return {text: math.fsum(masses) for text, masses in total.items()}
