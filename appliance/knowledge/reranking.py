"""A cross-encoder's opinion for a search that runs in a thread, where the school has one.

Hides that it is asked over the engine's socket, from the event loop, and that it may be away: the search then keeps its own
order. It changes which passage comes first, never whether a question is covered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from appliance.errors import ApplianceError

# Question and texts to how well each answers, in their order, more is better.
Scores = Callable[[str, Sequence[str]], Awaitable[Sequence[float]]]
# The same without waiting; None where nobody can say.
Rerank = Callable[[str, Sequence[str]], Sequence[float] | None]


def from_thread(scores: Scores) -> Rerank:
    """To be called from another thread than the running event loop's, which must stay free meanwhile."""
    loop = asyncio.get_running_loop()

    async def ask(question: str, texts: Sequence[str]) -> Sequence[float] | None:
        try:
            return await scores(question, texts)
        except ApplianceError:
            return None

    def rerank(question: str, texts: Sequence[str]) -> Sequence[float] | None:
        return asyncio.run_coroutine_threadsafe(ask(question, texts), loop).result() if texts else None

    return rerank
