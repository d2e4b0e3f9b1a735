"""How each request of one batch draws its tokens by its own rules, in torch, and how tokens become text as they come.

For `transformers_gpu.py`, whose library takes a temperature, top-k and top-p for each request, but one seed for all, and
neither penalties nor the likeliest tokens. Hides where the draw is put into the library, and which tokens make a whole
character. It computes no model and decides no order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.engine.handler import Request
from appliance.engine.job import Job

PENALISED = 128  # newest tokens that penalties look at
MOST_CHANCES = 20

Chance = tuple[int, float, list[tuple[int, float]]]  # token, natural log of its chance, the likeliest ones


class Words:
    """Tokens become text as they come; half of a character waits for its other half."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._from, self._shown = 0, 0  # tokens before `_shown` are text already, those from `_from` on are looked at again

    def add(self, token: int | None, *, last: bool) -> str:
        if token is not None:
            self._tokens.append(token)
        # How a token reads depends on the ones before it (a space that begins a text is dropped): read it after its neighbours.
        before = self._read(self._from, self._shown)
        text = self._read(self._from, len(self._tokens))[len(before) :]
        if text.endswith("\ufffd"):
            return text.rstrip("\ufffd") if last else ""
        self._from, self._shown = self._shown, len(self._tokens)
        return text

    def _read(self, start: int, end: int) -> str:
        part = self._tokens[start:end]
        return str(self._tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)) if part else ""


@dataclass(eq=False, slots=True)
class Seat:
    """A request with what the library's thread and the event loop know of it. `computed`: prompt tokens that no page held."""

    job: Job
    id: str
    pages: int
    words: Words
    random: random.Random
    computed: int = 0
    sent: int = 0
    finished: bool = False
    chances: list[Chance | None] = field(default_factory=list)


class Draw:
    """Draws each request's next token by the request's own rules; stands where the library keeps its logits processors.

    The library takes the likeliest of the scores that come back, so the token drawn here is left as the only one. The order is
    llama.cpp's: penalties, top-k, top-p, min-p, temperature; each token takes one number of the request's own generator.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self, seats: dict[str, Seat]) -> None:
        self._seats = seats
        self.batches = 0  # that the library has begun to compute
        self._rows: list[tuple[Seat | None, list[int]]] = []

    def check_kwargs(self, _options: dict[str, Any]) -> None: ...

    def fill_defaults(self, _tensor: Any) -> None: ...

    def clear(self) -> None:
        self._rows = []

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Any) -> Any:
        """Who gets a token in this step, in the order of the scores' rows. The library asks once a step, before it computes."""
        self.batches += 1
        self._rows = []
        for request in requests_in_batch:
            seat = self._seats.get(request.state.request_id)
            if seat is not None and not request.state.generated_tokens:
                seat.computed += request.query_length
            if request.has_new_token:
                self._rows.append((seat, request.state.generated_tokens))
        return arg_storage

    def __call__(self, _input_ids: Any, scores: Any, _arguments: Any) -> Any:
        """scores: float32 of shape (rows, vocabulary), as the model gave them."""
        seats = [(row, seat, said) for row, (seat, said) in enumerate(self._rows) if seat is not None]
        punished = [(row, seat, said) for row, seat, said in seats if said and _penalised(seat.job.request)]
        drawn = [(row, seat) for row, seat, _ in seats if seat.job.request.temperature > 0]
        told = [(row, seat) for row, seat, _ in seats if seat.job.request.logprobs is not None]
        if not (punished or drawn or told):
            return scores
        plain, scores = scores, scores.clone() if punished else scores
        for row, seat, said in punished:
            _penalise(scores[row], said[-PENALISED:], seat.job.request)
        picked = scores.argmax(-1)
        if drawn:
            rows = [row for row, _ in drawn]
            picked[rows] = _dice(scores[rows], [seat for _, seat in drawn])
        for row, seat in told:
            seat.chances.append(_told(plain[row], int(picked[row]), seat.job.request.logprobs or 0))
        return scores.new_full(scores.shape, float("-inf")).scatter_(1, picked.unsqueeze(1), 0.0)


def _penalised(request: Request) -> bool:
    return (request.repeat_penalty, request.frequency_penalty, request.presence_penalty) != (1.0, 0.0, 0.0)


def _penalise(row: Any, said: list[int], request: Request) -> None:
    import torch

    tokens, counts = torch.unique(torch.tensor(said, device=row.device), return_counts=True)
    scores = row[tokens]
    scores = torch.where(scores > 0, scores / request.repeat_penalty, scores * request.repeat_penalty)
    row[tokens] = scores - counts * request.frequency_penalty - request.presence_penalty


def _dice(scores: Any, seats: list[Seat]) -> Any:
    """One token for each row, int64 of shape (rows,)."""
    import torch

    requests = [seat.job.request for seat in seats]

    def column(values: list[float]) -> Any:
        return torch.tensor(values, device=scores.device, dtype=torch.float64).unsqueeze(1)

    everything = scores.shape[-1]
    wanted = [min(request.top_k, everything) if request.top_k > 0 else everything for request in requests]
    values, tokens = scores.double().topk(max(wanted))  # the likeliest first
    place = torch.arange(max(wanted), device=scores.device)
    values = values.masked_fill(place >= column([float(number) for number in wanted]), float("-inf"))
    shares = values.softmax(-1)
    before = shares.cumsum(-1) - shares
    rare = shares < column([request.min_p for request in requests]) * shares[:, :1]
    out = (before >= column([request.top_p for request in requests])) | rare
    out[:, 0] = False
    values = values.masked_fill(out, float("-inf")) / column([request.temperature for request in requests])
    sums = values.softmax(-1).cumsum(-1)
    thrown = column([seat.random.random() for seat in seats]) * sums[:, -1:]
    return tokens.gather(1, torch.searchsorted(sums, thrown, right=True).clamp(max=max(wanted) - 1)).squeeze(1)


def _told(row: Any, token: int, most: int) -> Chance:
    logs = row.log_softmax(-1)
    values, tokens = logs.topk(min(most, MOST_CHANCES))
    return token, float(logs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True))
