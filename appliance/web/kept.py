"""What was typed into a form that could not be taken: handed back on the very page that says why, to be sent once more.

For forms without the script, wherever a fault ends them: the sign-in has run out, the form is too old, the thing is gone, the
box broke. The words travel from the request into its answer and are kept nowhere: not in the box, not in an address, not in a
log. A form that holds a secret is never handed back. What is sent again is a form like any other, with a token of its own,
which only the press of a button sends: nothing that another site wrote goes on by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from appliance.errors import ApplianceError, NotFound, NotSignedIn

if TYPE_CHECKING:
    from fastapi import Request

# The fields that people write in, in the order of the page.
WRITTEN = (
    "question",
    "better",
    "words",
    "note",
    "title",
    "folder",
    "name",
    "full_name",
    "lesson",
    "subject",
    "grade",
    "people",
    "scene",
    "challenge",
    "class_profile",
)
SECRET = frozenset({"password", "old", "new", "again", "code", "secret"})
OURS = frozenset({"csrf", "kept"})
ASK = "/chat/ask"
MOST_FIELDS = 500
LARGEST = 1024 * 1024  # bytes of one field: all that a body may hold


@dataclass(frozen=True, slots=True)
class Kept:
    """`words`: (field, what was typed); `rest`: what else the form said. `to`: where it goes, "" where nothing takes it now.

    csrf: this session's token, "" where nobody is signed in. anew: the question begins a new chat. again: it was handed back
    before, and the person has signed in meanwhile.
    """

    words: list[tuple[str, str]]
    rest: list[tuple[str, str]]
    to: str
    csrf: str
    anew: bool = False
    again: bool = False


async def typed(request: Request, error: ApplianceError) -> Kept | None:
    """What there is to hand back; None for a request that is no such form, and for a form with a secret."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method != "POST" or kind != "application/x-www-form-urlencoded":
        return None
    data = await _form(request)
    if data is None or not SECRET.isdisjoint(data.keys()):
        return None
    fields = [(name, value) for name, value in data.multi_items() if isinstance(value, str) and name not in OURS]
    words = [(name, value) for wanted in WRITTEN for name, value in fields if name == wanted and value.strip()]
    if not words:
        return None
    rest = [(name, value) for name, value in fields if name not in WRITTEN]
    session = getattr(request.state, "session", None)
    to, gone = request.scope["path"], isinstance(error, NotFound)
    anew = gone and to == ASK
    if anew:  # the chat is gone, and what stood in it
        rest = []
    again = bool(data.get("kept")) and session is not None and not isinstance(error, NotSignedIn)
    return Kept(words, rest, "" if gone and not anew else to, session.csrf if session else "", anew, again)


async def _form(request: Request) -> FormData | None:
    """The form as it was read (see `auth.form`), or read now: whoever is not signed in is refused before that."""
    if hasattr(request.state, "form"):
        read: FormData | None = request.state.form
        return read
    try:
        return await request.form(max_files=0, max_fields=MOST_FIELDS, max_part_size=LARGEST)
    except (UnicodeError, LookupError, HTTPException, MultiPartException):
        return None  # it cannot be read, or is too large
