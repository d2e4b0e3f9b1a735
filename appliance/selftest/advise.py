"""From one measured model to every model of the catalogue: the arithmetic of what this machine can serve.

A step of llama.cpp gives each pupil of a batch one token. It takes

    weights in bytes / speed of memory  +  layers x overhead of a layer  +  pupils x parameters / computing speed

The weights are read from memory once a step, however many share it; the overhead and the computing speed are what the measured
model took beyond that, alone and for eight; reading a prompt is computing alone. So the measured model comes out as it was
measured, and others by their bytes, layers and parameters. Estimates, with the assumptions below; it measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.selftest.measure import SEVERAL, Measured
from appliance.tuning.catalog import Q4_BITS, SPARE_BYTES, WORK_BYTES, Known

BITS = {"Q8_0": 8.5, "Q4_K_M": Q4_BITS}  # a weight's, in files of that kind; the better one first
PACE = 2.0  # tokens a second that each pupil gets: as slow as one reads
PROMPT = 800  # tokens that are new in a question: some passages, and what was said before
FIRST_WORDS = 10.0  # seconds that one pupil may wait for them
CROWD = 45.0  # and the last of those who all ask in the same moment
CONVERSATION = 2048  # tokens of each pupil's conversation, at least
CONTEXTS = (8192, 4096, CONVERSATION)
MOST_PUPILS = 32
WORDS = 0.75  # of a token, in English
CLASS = 8  # pupils who ask at once in a class that works on its own


@dataclass(frozen=True, slots=True)
class Speed:
    """What a machine does, as the measured model showed it: bytes a second, seconds a layer, and weights x tokens a second."""

    memory: float
    layer: float
    writing: float
    reading: float

    @classmethod
    def of(cls, measured: Measured) -> Speed:
        alone, together = 1 / measured.writing, 1 / measured.together
        token = max((together - alone) / (SEVERAL - 1), 1e-9)  # one more pupil's share of a step
        beyond = alone - token - measured.bytes / measured.memory_speed
        return cls(
            measured.memory_speed,
            max(0.0, beyond) / measured.layers,
            measured.parameters / token,
            measured.parameters * measured.reading,
        )

    def step(self, weights: float, layers: int, parameters: float, pupils: int) -> float:
        """Seconds in which each of so many pupils gets one token."""
        return weights / self.memory + layers * self.layer + pupils * parameters / self.writing

    def read(self, parameters: float, tokens: int) -> float:
        """Seconds for a prompt's tokens."""
        return tokens * parameters / self.reading


@dataclass(frozen=True, slots=True)
class Advice:
    """One model on this machine. pupils: at once, 0 with `why`; context: tokens; pace: tokens a second for each of them;
    first_words: seconds until one who asks alone reads the first."""

    name: str
    parameters: int
    quantisation: str
    context: int
    pupils: int
    pace: float
    first_words: float
    why: str = ""

    @property
    def words(self) -> float:
        """A second, for each of the pupils."""
        return self.pace * WORDS

    @property
    def room(self) -> int:
        """Words that a conversation may have."""
        return round(self.context * WORDS / 100) * 100


def advise(model: Known, measured: Measured) -> Advice:
    """In the best quantisation that costs no pupil."""
    found = [_with(model, measured, kind) for kind in BITS]
    most = max(one.pupils for one in found)
    return next((one for one in found if one.pupils and one.pupils == most), found[-1])


def _with(model: Known, measured: Measured, kind: str) -> Advice:
    speed, parameters = Speed.of(measured), model.parameters * 1e6
    weights = parameters * BITS[kind] / 8
    cell = 2 * model.layers * model.kv_heads * model.head_size * 2
    room = measured.memory - SPARE_BYTES - WORK_BYTES - weights
    fits = min(MOST_PUPILS, int(room // (cell * min(CONVERSATION, model.context))))
    first = speed.read(parameters, PROMPT)

    def bears(pupils: int) -> bool:
        quick = speed.step(weights, model.layers, parameters, pupils) <= 1 / PACE
        return quick and first <= FIRST_WORDS and first * pupils <= CROWD

    pupils = max((count for count in range(1, fits + 1) if bears(count)), default=0)
    if not pupils:
        why = "Too little memory." if fits < 1 else "Too slow on this processor."
        return Advice(model.name, model.parameters, kind, 0, 0, 0.0, round(first, 2), why)
    lengths = [length for length in CONTEXTS if length <= model.context and cell * length * pupils <= room]
    pace = 1 / speed.step(weights, model.layers, parameters, pupils)
    context = lengths[0] if lengths else min(CONVERSATION, model.context)
    return Advice(model.name, model.parameters, kind, context, pupils, round(pace, 2), round(first, 2))


def best(found: Sequence[Advice]) -> Advice | None:
    """The largest model that serves a class; else the one that serves most, the larger of equals. None where none can."""
    able = [one for one in found if one.pupils]
    classes = [one for one in able if one.pupils >= CLASS]
    if classes:
        return max(classes, key=lambda one: one.parameters)
    return max(able, key=lambda one: (one.pupils, one.parameters), default=None)


def summary(chosen: Advice | None, measured: Measured) -> str:
    """In one or two sentences."""
    card = ""
    if measured.gpu:
        card = f" Its graphics card ({measured.card or 'NVIDIA'}) has {measured.gpu / 1e9:.0f} GB"
        if measured.card_memory:
            quick = (
                f"reads {measured.card_memory / 1e9:.0f} GB and computes {measured.card_computing / 1e12:.1f} million million"
            )
            card += f", {quick} operations a second: `appliance models list --fit` says what fits it."
        else:
            card += "; this release cannot compute on it, so the processor serves."
    if chosen is None:
        return f"No model of the catalogue is quick enough here: the starter and quotes serve.{card}"
    return (
        f"This machine can serve {chosen.name} in {chosen.quantisation} to {chosen.pupils} pupils at once: conversations of "
        f"some {chosen.room} words, {chosen.words:.1f} words a second for each, the first ones after about "
        f"{max(1.0, chosen.first_words):.0f} s.{card}"
    )
