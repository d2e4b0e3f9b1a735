"""Secrets and names: how they are cleaned, hashed and compared. How guessing is slowed down is in `guessing`.

Passwords are kept as argon2id, everything else that is random (session tokens, codes, keys) as SHA-256, so that a copied
database signs nobody in. It knows nobody's rights.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from appliance.errors import BadInput
from appliance.naming import odd
from appliance.settings import cores

if TYPE_CHECKING:
    from argon2 import PasswordHasher

CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # nothing that reads like something else on a printed sheet
SHORTEST_PASSWORD = 10
LONGEST_SECRET = 1024
_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK", "CHEROKEE"})


class Passwords:
    """argon2id with OWASP's least: 19 MiB, 2 passes, 1 lane.

    Worked out by threads of their own, one for each core: more at once end no sooner, and the system's allocator keeps those
    19 MiB for every thread that ever asked for them.
    """

    _workers = ThreadPoolExecutor(cores(), "argon2")

    @cached_property
    def _hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher

        return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

    @cached_property
    def _nobody(self) -> str:
        """A hash that nothing matches: an unknown name costs the same time as a known one."""
        return self._hasher.hash(secrets.token_urlsafe(32))

    def hash(self, password: str) -> str:
        return self._workers.submit(self._hasher.hash, password).result()

    def fits(self, hashed: str | None, password: str) -> bool:
        """`hashed` None: nobody has that name; one that is no hash: no password opens it. Takes its time, and says no."""
        from argon2.exceptions import InvalidHashError, VerificationError

        nobody = self._nobody  # made at the first question whatever it is, so that its cost tells nothing
        known = hashed is not None and hashed.startswith("$argon2")
        given = password.encode("utf-8", "surrogatepass")
        try:
            return self._workers.submit(self._hasher.verify, hashed if known else nobody, given).result() and known  # type: ignore[arg-type]
        except (VerificationError, InvalidHashError):
            return False


def new_code(groups: int = 3) -> str:
    """A random code to type, four letters a group: XXXX-XXXX-XXXX."""
    return "-".join("".join(secrets.choice(CODE_LETTERS) for _ in range(4)) for _ in range(groups))


def as_code(typed: str) -> str:
    """A made-up password as it was made, however it was typed; what cannot be one is left as it is."""
    letters = "".join(letter for letter in typed.upper() if letter.isalnum())
    if len(letters) != 12 or any(letter not in CODE_LETTERS for letter in letters):
        return typed
    return "-".join(letters[at : at + 4] for at in range(0, 12, 4))


def digest_of_code(code: str) -> str:
    """However it was typed: dashes, spaces and small letters make no difference."""
    return digest("".join(letter for letter in code.upper() if letter.isalnum())[:LONGEST_SECRET])


def clean_name(name: str, what: str = "name", longest: int = 64) -> str:
    """Raises BadInput unless the name is one line of 1 to `longest` ordinary characters that all can be seen."""
    name = normal(name[: LONGEST_SECRET + 1])
    if not name:
        raise BadInput(f"The {what} is empty.", "Write at least one letter.")
    if len(name) > longest:
        raise BadInput(f"The {what} is longer than {longest} characters.", "Take a shorter one.")
    if name.startswith("(") or not any(letter.isalnum() for letter in name) or odd(name):
        raise BadInput(f"The {what} has characters that cannot be used.", "Use letters, digits and spaces.")
    if any(_alphabets(word) > 1 for word in name.split()):
        raise BadInput(f"The {what} mixes letters of two alphabets that look alike.", "Type it anew, in one alphabet.")
    return name


def _alphabets(word: str) -> int:
    """How many of the alphabets whose letters can be taken for each other's stand in one word."""
    return len({first for letter in word if (first := unicodedata.name(letter, "").split(" ")[0]) in _ALIKE})


def normal(name: str) -> str:
    written = name.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", written)).strip()


def strong(password: str) -> str:
    if len(password) < SHORTEST_PASSWORD:
        raise BadInput(
            f"The password has {len(password)} characters; at least {SHORTEST_PASSWORD} are needed.",
            "Three or four words in a row are easy to remember.",
        )
    if len(password) > LONGEST_SECRET:
        raise BadInput(f"The password is longer than {LONGEST_SECRET} characters.", "Take a shorter one.")
    try:
        password.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("The password has characters that cannot be used.", "Take another one.") from None
    return password


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
