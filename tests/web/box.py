"""A whole web process with a pretend model and three pretend documents: for tests that need a real server.

`python box.py HOME PORT [seconds a word] [starter] [answer=FILE]` serves it.
The accounts, the database, the chat and the pages are the real ones.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from appliance import network
from appliance.accounts import Accounts, People
from appliance.accounts.oidc import Oidc
from appliance.audit import Audit
from appliance.chat import Chat
from appliance.classes import Classes
from appliance.db import Database
from appliance.engine.handler import Chunk, Message, Request, Usage
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.pool import Serving
from appliance.errors import Conflict, ModelUnavailable, NotFound
from appliance.feedback import Feedback
from appliance.figures import Figures
from appliance.jobs import Jobs
from appliance.knowledge.library import Document, Found, Passage, Within
from appliance.knowledge.shelves import Shelves
from appliance.practice.mentors import Mentors
from appliance.practice.rehearsals import Rehearsals
from appliance.practice.scenes import Scenes
from appliance.practice.wording import Wording
from appliance.registry import Registry
from appliance.safeguarding import Safeguarding
from appliance.settings import Settings
from appliance.standards import Standards
from appliance.tuning.giving import Giving

LEAVES = (
    "Chlorophyll is the green pigment in the leaves of plants. It takes in red and blue light and reflects green light, "
    "which is why leaves look green to us."
)
ANSWER = "Leaves look **green** because chlorophyll takes in red and blue light [1]. In autumn it goes [2], they say [9]."


def passage(id: int, document: str, title: str, place: str, text: str) -> Passage:
    return Passage(id, document, f"{document}.md", title, place, None, text, 0.8)


PASSAGES = [
    passage(11, "plants", "Photosynthesis", "Light", "Plants make their own food. For this they need light, water and air."),
    passage(12, "plants", "Photosynthesis", "Why leaves are green", LEAVES),
    passage(13, "plants", "Photosynthesis", "Why leaves are green", "In autumn the chlorophyll breaks down and yellow shows."),
    passage(21, "water", "The water cycle", "Evaporation", "The sun warms the sea, and water rises as vapour."),
    passage(
        31, "evil", "<script>alert(1)</script> & <b>title</b>", "<img src=x onerror=alert(1)>", "Text <svg onload=alert(1)>"
    ),
]


class PretendLibrary:
    """Finds the leaves for any question with "leaves" in it, the evil document for "evil", nothing for the rest."""

    def __init__(self, shelves: Shelves) -> None:
        self.shelves = shelves

    async def checks(self) -> list[Any]:
        return []

    async def named(self, names: Sequence[str] | None, within: Within) -> Within:
        del names
        return within

    async def search(self, text: str, *, k: int = 5, within: Within) -> Found:
        del within
        wanted = {"leaves": [12, 13], "evil": [31]}
        ids = next((ids for word, ids in wanted.items() if word in text.lower()), [])
        found = [one for one in PASSAGES if one.id in ids][:k]
        return Found(bool(found), False, found or PASSAGES[:1], [] if found else ["The water cycle"])

    async def passage(self, passage_id: int, within: Within) -> Passage:
        del within
        for one in PASSAGES:
            if one.id == passage_id:
                return one
        raise NotFound("There is no such passage.", "It may have been taken out.")

    async def original(self, document_id: str, within: Within) -> Any:
        del document_id, within
        raise NotFound("There is no such document.", "It may have been taken out.")

    async def documents(self, within: Within) -> list[Document]:
        del within
        titles = {one.document: one.title for one in PASSAGES}
        files = {"evil": '"><img src=x onerror=alert(1)>.md'}
        return [
            Document(id, "school", title, files.get(id, f"{id}.md"), "md", 900, None, 3, "", 1.7e9)
            for id, title in titles.items()
        ]

    async def remove(self, document_id: str, within: Within, by: str = "") -> None:
        del document_id, within, by
        raise NotFound("There is no such document.", "It may have been taken out.")

    async def move(self, document_id: str, collection: str, within: Within) -> None:
        del document_id, collection, within
        raise NotFound("There is no such document.", "It may have been taken out.")

    async def document(self, document_id: str, within: Within) -> tuple[Document, list[Passage]]:
        for one in await self.documents(within):
            if one.id == document_id:
                return one, [piece for piece in PASSAGES if piece.document == document_id]
        raise NotFound("There is no such document.", "It may have been taken out.")


class PretendPool:
    """`answer` word by word. `model` None: quotes serve. `down`: the engine has died."""

    def __init__(self, pace: float = 0.0) -> None:
        self.answer = ANSWER
        self.model: str | None = "green-1"
        self.starter = False
        self.down = False
        self.breaks_after: int | None = None
        self.pace = pace
        self.context = 1000
        self.requests: list[Request] = []
        self.open = 0

    async def serving(self, task: str = "", inside: bool = False) -> Serving:  # noqa: ARG002
        if self.model is None or self.down:
            return Serving("quotes", "quotes", "Quotes from the documents", False, not self.down, "Quotes answer.")
        return Serving("llama", self.model, "Green model", self.starter, True, "The promoted model answers.")

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        self.open += 1
        try:
            if request.model not in ("default", "quotes", self.model):
                raise NotFound(f"There is no model called {request.model!r}.", "See /v1/models.")
            if request.model == "quotes" or self.model is None or self.down:
                quotes = [f"> {one.text} [{number}]" for number, one in enumerate(request.passages, 1)]
                yield Chunk("\n\n".join(quotes) or "The documents do not cover this.", model="quotes", handler="quotes")
                yield Chunk(finish="stop", model="quotes", handler="quotes")
                return
            if self.pace:
                yield Chunk(place=2, wait=1.0)
            words = self.answer.split(" ")
            for number, word in enumerate(words):
                await asyncio.sleep(self.pace)
                if number == self.breaks_after:
                    raise ModelUnavailable("The model stopped in the middle of its answer.", "Ask again.")
                yield Chunk(word if number == 0 else f" {word}", model=self.model, handler="llama")
            yield Chunk(finish="stop", usage=Usage(20, 5, len(words)), model=self.model, handler="llama")
        finally:
            self.open -= 1

    def starter_of(self, name: str) -> bool:
        if name != self.model:
            raise NotFound(f"There is no model called {name!r}.", "See /v1/models.")
        return self.starter

    async def count(self, messages: Sequence[Message], task: str = "", model: str = "default", inside: bool = True) -> int:
        del task, model, inside
        return sum(len(message.content.split()) for message in messages)

    async def embed(self, texts: Sequence[str]) -> Any:
        if self.down:
            raise ModelUnavailable("The engine is not running.", "Start it.")
        return np.ones((len(texts), 4), np.float32)


def make_box(settings: Settings, pace: float = 0.0, pool: Any = None, library: Any = None) -> Any:
    """What create_app needs, with everything real but the model and the documents; with a `pool` or a `library`, these too.

    `library` makes one of the database.
    """
    database = Database(settings.database)
    database.migrate()
    library = library(database) if library else PretendLibrary(Shelves(database))
    accounts, pool = Accounts(database, settings, audit=Audit(database)), pool or PretendPool(pace)
    starter_of = getattr(pool, "starter_of", None)
    audit, giving = Audit(database), Giving(database)
    safeguarding = Safeguarding(database, audit)
    chat = Chat(database, library, pool, accounts, settings, starter_of=starter_of, safeguarding=safeguarding)  # type: ignore[arg-type]
    registry = Registry(settings.models)
    feedback = Feedback(database, chat.conversations, accounts, audit, giving.keep, giving.take_back)
    scenes = Scenes(database, accounts, audit)
    mentors = Mentors(database, accounts, audit, giving.keep, giving.take_back)
    wording = Wording(chat, pool, settings.practice_lines, settings.practice_seconds)
    client = partial(network.http_client, settings, ca_file=settings.oidc_ca_file)
    oidc = Oidc(settings, client) if settings.oidc_issuer else None
    return SimpleNamespace(
        settings=settings, database=database, accounts=accounts, library=library, pool=pool, chat=chat, registry=registry,
        people=People(database), classes=Classes(database), audit=audit, feedback=feedback, safeguarding=safeguarding,
        oidc=oidc, scenes=scenes, standards=Standards(database, accounts, audit),
        rehearsals=Rehearsals(database, accounts, scenes, mentors, wording),
        jobs=Jobs(database, settings), figures=Figures(database),
        engine=OpenAICompatible(partial(network.socket_client, settings.engine_socket)),
        promote=_nothing_to_serve, rollback=_nothing_to_serve, retraining_plan=list,
    )  # fmt: skip


async def _nothing_to_serve(*_: Any, **_more: Any) -> None:
    raise Conflict("There is no engine here to load a model.", "Promote it on a real box.")


def main() -> None:
    import uvicorn

    from appliance.web.server import create_app

    network.stay_offline()
    home, port, pace = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    box = make_box(Settings(home=home, school="Hill School", answer_tokens=64), pace)
    if "starter" in sys.argv[4:]:
        box.pool.starter = True
        box.pool.answer = "leaf leaf the green. of of light is leaf [1] and the the teacher said chlorophyll"
    for word in sys.argv[4:]:
        if word.startswith("answer="):
            box.pool.answer = Path(word.partition("=")[2]).read_text("utf-8")
    code = box.accounts.ensure_setup_code()
    print(code or "", flush=True)  # noqa: T201 - the test reads it
    uvicorn.run(create_app(box), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
