"""Who may do what: one table of roles, verbs and things. What it does not know it denies.

`may` is a pure function of who asks, the verb, the thing and whose it is; `accounts.can` asks it. A "class" belongs to those
who teach it, every other thing to one person. It reads no database.
"""

from __future__ import annotations

from dataclasses import dataclass

PUPIL, TEACHER, SAFEGUARDING, ADMINISTRATOR = "pupil", "teacher", "safeguarding", "administrator"
LOCAL = "local"  # the person at the box's own command line
ROLES = (PUPIL, TEACHER, SAFEGUARDING, ADMINISTRATOR)
STAFF = (TEACHER, SAFEGUARDING, ADMINISTRATOR)
SCOPES = ("chat", "embed", "admin")

Act = tuple[str, str]  # verb, kind of thing

_PUPIL: frozenset[Act] = frozenset({("ask", "chat"), ("read", "library"), ("rate", "answer"), ("change", "self")})
_STAFF = _PUPIL | {
    ("instruct", "chat"), ("embed", "text"), ("read", "status"), ("create", "key"), ("review", "library"), ("add", "library"),
    ("correct", "answer"), ("practise", "lesson"), ("read", "standard"),
}  # fmt: skip
_TEACHER = _STAFF | {
    ("create", "class"), ("review", "example"), ("read", "model"), ("read", "class counter"), ("approve", "scenario"),
}  # fmt: skip
# Flagged words are for the lead alone: who runs the box does not read them.
_SAFEGUARDING = _STAFF | {("read", "flag"), ("change", "flag"), ("read", "counter"), ("read", "class counter")}
_ADMINISTRATOR = _TEACHER | {
    ("change", "library"), ("read", "people"), ("change", "people"), ("change", "any class"), ("change", "model"),
    ("read", "job"), ("change", "job"), ("read", "settings"), ("read", "audit"), ("read", "counter"), ("change", "quota"),
    ("change", "standard"), ("read", "metrics"),
}  # fmt: skip
ALLOWED: dict[str, frozenset[Act]] = {
    PUPIL: _PUPIL,
    TEACHER: _TEACHER,
    SAFEGUARDING: _SAFEGUARDING,
    ADMINISTRATOR: _ADMINISTRATOR,
    LOCAL: _ADMINISTRATOR,
}
# Only with a thing of one's own, and in person: no key reaches these.
OWN: frozenset[Act] = frozenset(
    (verb, thing) for thing in ("conversation", "rehearsal") for verb in ("read", "change", "delete")
) | {("read", "key"), ("delete", "key")}
# Only with a class that one teaches, or with the right to change any.
OF_A_CLASS: frozenset[Act] = frozenset({("read", "class"), ("change", "class")})
# What a key's scope leaves of its owner's rights. A session has no scope and keeps them all.
OF_A_SCOPE: dict[str, frozenset[Act]] = {
    "chat": frozenset({("ask", "chat"), ("instruct", "chat"), ("read", "library"), ("read", "status")}),
    "embed": frozenset({("embed", "text"), ("read", "status")}),
    "admin": _ADMINISTRATOR,
}


@dataclass(frozen=True, slots=True)
class User:
    """`scope` is empty for a person, else the scope of the key that speaks for them.

    classes: the names of those they belong to, as pupil or teacher. teaches: the ids of those that they teach.
    """

    id: str
    name: str
    role: str
    scope: str = ""
    classes: frozenset[str] = frozenset()
    teaches: frozenset[str] = frozenset()
    language: str = ""

    @property
    def staff(self) -> bool:
        return self.role in STAFF or self.role == LOCAL


def may(user: User | None, verb: str, thing: str, owner: str | None = None) -> bool:
    """Whether `user` may do `verb` to a `thing` of the user, or for a "class" of the class, with the id `owner`."""
    if user is None or user.role not in ALLOWED:
        return False
    asked = (verb, thing)
    if asked in OWN:
        return owner == user.id and not user.scope
    if asked in OF_A_CLASS:
        mine = owner in user.teaches and user.staff
        return not user.scope and owner is not None and (mine or ("change", "any class") in ALLOWED[user.role])
    return asked in ALLOWED[user.role] and (not user.scope or asked in OF_A_SCOPE.get(user.scope, frozenset()))
