"""How likely a model finds a text: log-probabilities of given tokens, computed alone in their sequence.

Alone, because rounding depends on what else is in a batch, and a judgement has to come out the same each time.
"""

from __future__ import annotations

import numpy as np

from appliance.engine.job import Job
from appliance.engine.llama import BATCH, Llama
from appliance.errors import ModelUnavailable

# Rows of logits that are asked for at once, in floats: keeps a large vocabulary from taking gigabytes.
FLOATS = 8_000_000


def score(llama: Llama, job: Job) -> list[float]:
    """Natural-log probability of each token from `job.score_from` on. Raises ModelUnavailable."""
    assert job.score_from is not None
    rows_at_once = max(1, min(BATCH, FLOATS // llama.vocabulary))
    scores: list[float] = []
    position = 0
    while position < len(job.tokens) - 1:
        # Rows before the answer need no logits, so they go in large pieces.
        wants = position >= job.score_from - 1
        end = position + rows_at_once if wants else min(position + BATCH, job.score_from - 1)
        part = job.tokens[position : min(end, len(job.tokens) - 1)]
        if not llama.decode([(token, position + i, job.sequence, wants) for i, token in enumerate(part)]):
            raise ModelUnavailable("llama.cpp found no room in its cache for scoring.", "Score a shorter conversation.")
        if wants:
            for i in range(len(part)):
                logits = llama.logits(i).astype(np.float64)
                top = logits.max()
                scores.append(float(logits[job.tokens[position + i + 1]] - top - np.log(np.exp(logits - top).sum())))
        position += len(part)
    return scores
