"""Where somebody has signed in before, and what that is worth: how far the guesses of others can hold them up.

A wrong password is counted for the name at that address, for the name at every address, and for the address. The first alone
would let whoever changes addresses try ten times from each; the last two alone would let anybody keep others out. So a browser
in which a person has signed in keeps a mark of it, and there only wrong tries in that very browser count for them.

- A name at one address: 10 tries are free, then the wait doubles up to a quarter of an hour.
- A name at all addresses: 30 are free, then it doubles up to a minute, and no longer: a new device is held up, not shut out.
- An address: 100 are free, then there is one each ten seconds. Thirty pupils behind one router who all mistype once get in
  within their minute, three times over, and the tries of whoever then signs in are taken back. Nobody waits longer than ten
  seconds at a time, whatever is tried from among them. Of IPv6 the first half counts: the other is the device's to choose.

The mark says nothing about anybody: it is random, with a check sum for each person that only the box can make.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from appliance.accounts.credentials import LONGEST_SECRET, digest
from appliance.accounts.guessing import Limit, forgive, take_back
from appliance.files import kept_secret
from appliance.tables import folded

if TYPE_CHECKING:
    import sqlalchemy as sa

    from appliance.settings import Settings

FREE_OF_NAME, LONGEST_OF_NAME = 30, 60.0
FREE_OF_ADDRESS, PACE_OF_ADDRESS = 100, 10.0
MOST = 12  # people whom one browser remembers: a class's shared tablet


class Devices:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def knows(self, mark: str, user: str) -> bool:
        """Whether this person has signed in before in the browser that sends this mark."""
        nonce, sums = _parts(mark)
        return bool(nonce) and any(hmac.compare_digest(self._sum(nonce, user), one) for one in sums)

    def remember(self, mark: str, user: str) -> str:
        """The mark that this browser keeps from now on; `mark`: the one that it has, or ""."""
        nonce, sums = _parts(mark)
        nonce = nonce or secrets.token_urlsafe(16)
        mine = self._sum(nonce, user)
        return ".".join([nonce, mine, *(one for one in sums if one != mine)][: MOST + 1])

    @cached_property
    def _key(self) -> bytes:
        return kept_secret(self._settings.devices)

    def _sum(self, nonce: str, user: str) -> str:
        made = hmac.digest(self._key, f"{nonce} {user}".encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(made[:15]).decode()


def limits(name: str, source: str, mark: str = "", user: str = "") -> list[Limit]:
    """What a try to sign in is counted under. `mark`: of a browser that knows the person `user`."""
    if user:
        return [Limit(f"device:{digest(_parts(mark)[0])[:24]}:{user}")]
    who = digest(folded(name))[:24]
    return [
        Limit(f"sign-in:{who}:{source[:64]}"),
        Limit(f"name:{who}", FREE_OF_NAME, LONGEST_OF_NAME),
        Limit(f"address:{_network(source)}", FREE_OF_ADDRESS, every=PACE_OF_ADDRESS),
    ]


def forgive_all(connection: sa.Connection, counted: list[Limit]) -> None:
    """The try was right: the person's own wrong ones from there were slips. What others tried still counts."""
    own, *shared = counted
    tries = forgive(connection, own.key)
    for one in shared:
        take_back(connection, one.key, tries)


def _network(source: str) -> str:
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source[:64]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _parts(mark: str) -> tuple[str, list[str]]:
    """The random part and the sums; nothing of what is no mark of ours."""
    if len(mark) > LONGEST_SECRET or not mark.isascii():
        return "", []
    nonce, *sums = mark.split(".")
    return (nonce, sums[:MOST]) if len(nonce) == 22 else ("", [])
