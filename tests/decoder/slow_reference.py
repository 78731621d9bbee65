"""The decoder once more, from its equations: one sequence, loops over layers, heads, queries and keys, in double."""

from __future__ import annotations

import math

import numpy as np


def rms_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / math.sqrt(float(np.mean(x * x)) + 1e-5) * gain


def rope(x: np.ndarray, position: int, base: float) -> np.ndarray:
    half = len(x) // 2
    turned = np.empty_like(x)
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return turned


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attend(query: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
    weights = softmax(np.array([query @ key for key in keys]) / math.sqrt(len(query)))
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def hidden_states(decoder, inputs: list[int], thoughts) -> np.ndarray:
    """(N, H) final hidden states for ``inputs`` (start token first) and thoughts (L, n, width)."""
    w = {name: value.detach().double().numpy() for name, value in decoder.state_dict().items()}
    thoughts = thoughts.detach().double().numpy()
    layers, per_layer, _ = thoughts.shape
    heads = decoder.blocks[0].self_attention.heads
    base, spacing = decoder.rope_base, decoder.max_length // (layers * per_layer)
    x = [w["embedding.weight"][token] for token in inputs]
    hidden = len(x[0])
    head_dim = hidden // heads
    parts = [slice(h * head_dim, (h + 1) * head_dim) for h in range(heads)]
    for layer in range(layers):
        at = f"blocks.{layer}."
        normed = [rms_norm(row, w[at + "self_norm.weight"]) for row in x]
        qkv = [w[at + "self_attention.qkv.weight"] @ row for row in normed]
        q, k, v = ([row[i * hidden : (i + 1) * hidden] for row in qkv] for i in range(3))
        mixed = []
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if i - decoder.window < j <= i]
            heads_out = [
                attend(rope(q[i][p], i, base), [rope(k[j][p], j, base) for j in seen], [v[j][p] for j in seen])
                for p in parts
            ]
            mixed.append(np.concatenate(heads_out))
        x = [row + w[at + "self_attention.out.weight"] @ m for row, m in zip(x, mixed, strict=True)]

        normed = [rms_norm(row, w[at + "cross_norm.weight"]) for row in x]
        queries = [w[at + "cross_attention.query.weight"] @ row for row in normed]
        keys = [w[at + "cross_attention.key.weight"] @ z for z in thoughts[layer]]
        values = [w[at + "cross_attention.value.weight"] @ z for z in thoughts[layer]]
        mixed = []
        addresses = w.get(at + "cross_attention.address")
        for i in range(len(x)):
            place = min(i, decoder.max_length - 1)
            heads_out = [
                attend(
                    queries[i][p] if addresses is not None else rope(queries[i][p], place, base),
                    [
                        key[p] + addresses[slot][p] if addresses is not None else rope(key[p], slot * spacing, base)
                        for slot, key in enumerate(keys)
                    ],
                    [value[p] for value in values],
                )
                for p in parts
            ]
            mixed.append(np.concatenate(heads_out))
        x = [row + w[at + "cross_attention.out.weight"] @ m for row, m in zip(x, mixed, strict=True)]

        for i, row in enumerate(x):
            both = w[at + "feed_forward.gate_up.weight"] @ rms_norm(row, w[at + "feed_forward_norm.weight"])
            gate, up = both[: len(both) // 2], both[len(both) // 2 :]
            x[i] = row + w[at + "feed_forward.down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    return np.stack([rms_norm(row, w["norm.weight"]) for row in x])


def next_token_log_probs(decoder, inputs: list[int], thoughts) -> np.ndarray:
    """(N, V) log p(next token | inputs up to each position, thoughts)."""
    logits = hidden_states(decoder, inputs, thoughts) @ decoder.embedding.weight.detach().double().numpy().T
    return np.stack([np.log(softmax(row)) for row in logits])
