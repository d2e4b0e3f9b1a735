"""Sign-in by the school's directory, an LDAP server or Active Directory: who has this name, and is this their password?

The box looks the person up with an account of its own, then signs in as the entry that was found. Hides ldap3, which is handed
a line that is connected already: it never resolves a name, opens a socket or follows a referral by itself. It keeps nothing of
what it is told, and knows nothing of this box's own accounts; see `vouched` for their rows.
"""

from __future__ import annotations

import re
import secrets
import socket
import ssl
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance.accounts.secret_file import secret_in
from appliance.accounts.vouched import Vouched
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, Unreachable

if TYPE_CHECKING:
    from appliance.settings import Settings

SECONDS = 5.0  # for each step of the directory
# People who sign in wait in threads that the whole house shares: a directory that hangs must not take them all.
AT_ONCE = 3
WAIT_SECONDS = 3.0
REST_SECONDS = 10.0  # a directory that did not answer is left alone for so long
MOST_GROUPS = 500
START_TLS = "1.3.6.1.4.1.1466.20037"
_IDS = ("entryUUID", "objectGUID", "nsUniqueId")
_SUCCESS, _TOO_MANY = 0, 4
_AWAY = {10, 51, 52, 80}  # ask elsewhere (which the box never does), busy, unavailable, other: nothing about the person
_UNSAFE = {8, 13}  # stronger authentication or confidentiality required
# What says that an account is switched off: Active Directory (a bit of it), OpenLDAP's ppolicy (locked until somebody unlocks
# it; after wrong passwords it holds another time), and 389 Directory Server.
_OFF_SIGNS = ("userAccountControl", "pwdAccountLockedTime", "nsAccountLock")
_OFF_BIT, _LOCKED_FOR_GOOD = 2, "000001010000Z"
# Why Active Directory refuses somebody whom it knows: the "data" in its words.
_WHY = re.compile(r"AcceptSecurityContext error, data ([0-9a-f]{3})\b")
_DIRECTORY = "in the school's directory"
_OFF = (f"Your account is switched off {_DIRECTORY}.", "Ask the school's administrator.")
_REFUSED = {
    "530": (f"Your account may not sign in at this time, {_DIRECTORY} it says.", "Ask the school's administrator."),
    "531": (f"Your account may sign in on certain computers only, {_DIRECTORY} it says.", "Ask the school's administrator."),
    "532": (f"Your password has expired {_DIRECTORY}.", "Choose a new one on a computer of the school, then sign in here."),
    "533": _OFF,
    "701": (f"Your account has ended {_DIRECTORY}.", "Ask the school's administrator."),
    "773": (f"You have to choose a new password {_DIRECTORY} first.", "Do it on a computer of the school, then sign in here."),
    "775": (f"Your account is locked {_DIRECTORY}: there were too many wrong passwords.",
            "Wait half an hour, or ask the school's administrator to unlock it."),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    dn: str
    values: Mapping[str, list[bytes]]

    def texts(self, attribute: str) -> list[str]:
        return [value.decode("utf-8", "replace").strip() for value in self.values.get(attribute, []) if value.strip()]

    def text(self, *attributes: str) -> str:
        return next((text for one in attributes for text in self.texts(one)), "")


class Directory:
    """Call it with a name and a password. dial: a connected socket to a host and a port, or ApplianceError."""

    def __init__(self, settings: Settings, dial: Callable[[str, int], socket.socket]) -> None:
        """Raises BadInput where the settings contradict each other."""
        url = urlsplit(settings.ldap_url)
        self._tls = url.scheme == "ldaps"
        self._host, self._port = url.hostname or "", url.port or (636 if self._tls else 389)
        self._settings, self._dial = settings, dial
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._away, self._why = 0.0, ""  # until when it is left alone, and for what
        if not settings.ldap_base:
            raise BadInput("The setting ldap_url is there and ldap_base is not.", "Set it, such as dc=school,dc=example.")
        if bool(settings.ldap_bind_dn) != bool(settings.ldap_bind_password_file):
            raise BadInput(
                "Of the settings ldap_bind_dn and ldap_bind_password_file there is only one.", "Set both, or neither."
            )
        _ldap3()

    def __call__(self, name: str, password: str) -> Vouched | None:
        """Who that is; None where the directory has nobody of that name, or the password is wrong. Blocks.

        Raises Unreachable where the directory cannot be asked, Busy where many are asking, Forbidden for somebody who has shown
        who they are and has no place here.
        """
        if not _can_be_asked(name):
            return None
        return self._signed_in(self._settings.ldap_user_filter.replace("{name}", _escaped(name)), name, password)

    def again(self, number: str, password: str) -> Vouched | None:
        """As above, of the entry with this number: for somebody who is known already and shows once more who they are."""
        return self._signed_in(_of_number(number), "", password) if number else None

    def look(self, number: str) -> Vouched | None:
        """Who the entry with this number is by now, without any password; None where it is gone or switched off. Blocks.

        Raises what a call does.
        """
        with self._turn(), self._line() as line:
            entry = self._find(line, _of_number(number))
            if entry is None or _is_off(entry):
                return None
            return self._vouched(entry, "", self._groups(line, entry))

    def nobody(self, name: str, password: str) -> None:
        """Take the steps of a call, and raise what it does, for somebody who is not looked for there: nothing of theirs is
        sent.
        """
        if _can_be_asked(name) and _can_be_asked(password):
            self(secrets.token_hex(8), secrets.token_hex(8))

    def _signed_in(self, wanted: str, name: str, password: str) -> Vouched | None:
        if not _can_be_asked(password):
            return None  # an empty password would be a sign-in as nobody, which a directory answers with success
        with self._turn(), self._line() as line:
            # As bytes, which is how it was typed: ldap3 would prepare a text, and what is left of it may be empty.
            return self._ask(line, wanted, name, password.encode())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._places.acquire(timeout=WAIT_SECONDS):
            raise Busy("Many people are signing in just now.", "Try again in a few seconds.", retry_after=WAIT_SECONDS)
        try:
            if time.monotonic() < self._away:
                raise _cannot_ask(self._why)
            yield
        finally:
            self._places.release()

    # --- the line --------------------------------------------------------------------------------------------------------
    @contextmanager
    def _line(self) -> Iterator[Any]:
        """A connection that is signed in as the box. Every fault on it is Unreachable, with words for the administrator."""
        line = None
        try:
            line = self._connected()
            self._as_the_box(line)
            yield line
        except (_Outsider, _CannotAsk, Busy):
            raise
        except (Forbidden, Unreachable, BadInput) as error:  # the network policy's, and the way out's
            raise self._failed(error.message) from None
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not trusted ({error.verify_message}); no password was sent"
            raise self._failed(why) from None
        except Exception as error:  # noqa: BLE001 - ldap3 raises whatever a wrong byte leads it to: IndexError, TypeError ...
            raise self._failed(f"{type(error).__name__}: {error}") from None
        finally:
            if line is not None:
                _hang_up(line)

    def _failed(self, why: str) -> _CannotAsk:
        """It cannot be reached: the next who ask are told so at once, for a while."""
        self._away, self._why = time.monotonic() + REST_SECONDS, why
        return _cannot_ask(why)

    def _connected(self) -> Any:
        """Connected and encrypted; nothing secret passes before that."""
        settings, ldap3 = self._settings, _ldap3()
        given = self._dial(self._host, self._port)
        given.settimeout(SECONDS)
        try:
            if self._tls:
                given = self._encrypted(given)
            line = ldap3.Connection(
                ldap3.Server("directory", get_info=ldap3.NONE), client_strategy=ldap3.SYNC, auto_bind=ldap3.AUTO_BIND_NONE,
                auto_referrals=False, check_names=False, read_only=True,
            )  # fmt: skip
            _hand_over(line, given)
            if not self._tls and not settings.ldap_plain:
                if not line.extended(START_TLS):
                    raise _cannot_ask("it does not speak TLS; no password was sent. Use ldaps://")
                line.socket = self._encrypted(line.socket)
        except BaseException:
            given.close()
            raise
        return line

    def _as_the_box(self, line: Any) -> None:
        settings, ldap3 = self._settings, _ldap3()
        if settings.ldap_bind_dn:
            good = line.rebind(user=settings.ldap_bind_dn, password=self._own_password(), authentication=ldap3.SIMPLE)
        else:
            line.user = line.password = None
            good = line.rebind(authentication=ldap3.ANONYMOUS)
        if not good:
            raise _cannot_ask(f"it does not let the box's own account in ({line.result['description']})")

    def _encrypted(self, plain: socket.socket) -> ssl.SSLSocket:
        """Raises ssl.SSLError where the certificate is not the host's, or from nobody who is trusted."""
        file = self._settings.ldap_ca_file
        return ssl.create_default_context(cafile=None if file is None else str(file)).wrap_socket(
            plain, server_hostname=self._host
        )

    def _own_password(self) -> bytes:
        assert self._settings.ldap_bind_password_file is not None
        try:
            return secret_in(self._settings.ldap_bind_password_file).encode()
        except BadInput as error:
            raise _cannot_ask(error.message) from None

    # --- the questions ---------------------------------------------------------------------------------------------------
    def _ask(self, line: Any, wanted: str, name: str, secret: bytes) -> Vouched | None:
        entry = self._find(line, wanted)
        # Nobody of that name: the same steps are taken all the same, for an entry that is not there.
        dn = entry.dn if entry is not None else f"cn={secrets.token_hex(12)},{self._settings.ldap_base}"
        line.rebind(user=dn, password=secret, authentication=_ldap3().SIMPLE)
        code = line.result["result"]
        if code in _AWAY or code in _UNSAFE:
            raise _cannot_ask(f"it answers a sign-in with: {line.result['description']}")
        if code != _SUCCESS and entry is not None and (why := _WHY.search(line.result["message"] or "")):
            told = _REFUSED.get(why[1])
            if told is not None:
                raise _Outsider(*told)
        if code != _SUCCESS or entry is None:
            return None
        if _is_off(entry):
            raise _Outsider(*_OFF)
        return self._vouched(entry, name, self._groups(line, entry))

    def _find(self, line: Any, wanted: str) -> _Entry | None:
        """The one entry that is wanted. Two are as good as none: the box would have to guess."""
        settings = self._settings
        attributes = [
            settings.ldap_name_attribute, "displayName", "cn", "memberOf", settings.ldap_class_attribute, *_OFF_SIGNS, *_IDS,
        ]  # fmt: skip
        found = self._search(line, wanted, [one for one in dict.fromkeys(attributes) if one], 2)
        return found[0] if len(found) == 1 else None

    def _groups(self, line: Any, entry: _Entry) -> set[str]:
        """The DNs of the groups that somebody is in, as `_same` writes them."""
        settings = self._settings
        if not settings.ldap_groups:
            return set()
        groups = {_same(one) for one in entry.texts("memberOf")}
        if settings.ldap_group_filter:
            name = entry.text(settings.ldap_name_attribute) or entry.dn
            self._as_the_box(line)  # a person may not see who else is in a group
            wanted = settings.ldap_group_filter.replace("{dn}", _escaped(entry.dn)).replace("{name}", _escaped(name))
            groups |= {_same(one.dn) for one in self._search(line, wanted, ["1.1"], MOST_GROUPS)}
        return groups

    def _search(self, line: Any, wanted: str, attributes: list[str], most: int) -> list[_Entry]:
        line.search(self._settings.ldap_base, wanted, attributes=attributes, size_limit=most, time_limit=int(SECONDS))
        if line.result["result"] not in (_SUCCESS, _TOO_MANY):
            raise _cannot_ask(f"it answers a search with: {line.result['description']}")
        found = [one for one in line.response or [] if one["type"] == "searchResEntry"]
        return [_Entry(one["dn"], one["raw_attributes"]) for one in found]

    def _vouched(self, entry: _Entry, typed: str, groups: set[str]) -> Vouched:
        settings = self._settings
        ruled = bool(settings.ldap_groups)
        role = next((role for dn, role in settings.ldap_groups.items() if _same(dn) in groups), settings.ldap_role)
        if not role:
            raise _Outsider(
                "Your account is known, but it is in no group that may use this box.", "Ask the administrator to add it to one."
            )
        number = _number(entry)
        if not number:
            raise _cannot_ask("it does not say any of " + ", ".join(_IDS))
        return Vouched(
            "ldap", number, entry.text(settings.ldap_name_attribute) or typed, entry.text("displayName", "cn"), role, ruled,
            tuple(entry.texts(settings.ldap_class_attribute)) if settings.ldap_class_attribute else None,
        )  # fmt: skip


class _CannotAsk(Unreachable):
    """Said to whoever signs in: plainly, with what the administrator needs in the next step."""


class _Outsider(Forbidden):
    code = "no_place"


def _cannot_ask(why: str) -> _CannotAsk:
    return _CannotAsk(
        "The school's directory cannot be asked just now, so only accounts of this box can sign in.",
        f"Try again later, or tell the administrator: {why.rstrip('.')}.",
    )


def _number(entry: _Entry) -> str:
    """What the directory itself calls an entry, and goes on calling it when it is moved or renamed."""
    for attribute in _IDS:
        for value in entry.values.get(attribute, []):
            if attribute == "objectGUID" and len(value) == 16:
                return str(uuid.UUID(bytes_le=value))
            return value.decode("ascii", "replace").strip().lower()
    return ""


def _of_number(number: str) -> str:
    """A filter for the entry that `_number` calls so."""
    tries = [f"({one}={_escaped(number)})" for one in _IDS if one != "objectGUID"]
    with suppress(ValueError):  # another kind of number
        tries.append("(objectGUID=" + "".join(f"\\{byte:02x}" for byte in uuid.UUID(number).bytes_le) + ")")
    return f"(|{''.join(tries)})"


def _is_off(entry: _Entry) -> bool:
    control, locked, lock = (entry.text(one) for one in _OFF_SIGNS)
    off = control.isdecimal() and bool(int(control) & _OFF_BIT)
    return off or locked == _LOCKED_FOR_GOOD or lock.lower() == "true"


def _can_be_asked(typed: str) -> bool:
    """Not for nothing, nor for half a letter, which is nobody's."""
    if not typed or "\0" in typed:
        return False
    try:
        typed.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same(dn: str) -> str:
    """A DN so that two of one entry are alike: case, the spaces around commas, and which letters are escaped and how (RFC 4514:
    a comma within a name is "\\," to one directory and "\\2C" to another) make no difference.
    """
    parts = re.findall(r"(?:\\.|[^,\\])+", dn)
    return "\x1f".join(re.sub(r"\s*=\s*", "=", _unescaped(part.strip()), count=1) for part in parts).casefold()


def _unescaped(part: str) -> str:
    plain = re.sub(
        rb"\\([0-9a-fA-F]{2})|\\(.)", lambda found: bytes.fromhex(found[1].decode()) if found[1] else found[2], part.encode()
    )
    return plain.decode("utf-8", "replace")


# --- ldap3 -----------------------------------------------------------------------------------------------------------------
@cache
def _ldap3() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks pyasn1 for names that are called otherwise by now
        import ldap3
        import ldap3.core.exceptions
        import ldap3.utils.conv
    return ldap3  # type: ignore[no-any-return]


def _escaped(text: str) -> str:
    """For a filter: no letter of it can end a value, begin another, or stand for any other letters."""
    return str(_ldap3().utils.conv.escape_filter_chars(text))


def _hand_over(line: Any, given: socket.socket) -> None:
    """Have an ldap3 connection speak over a socket of ours. It is given no address: it could not open another one."""

    def open_socket(_address: object, _use_ssl: bool = False, unix_socket: bool = False) -> None:
        del unix_socket
        line.socket, line.closed = given, False

    line.server.candidate_addresses = lambda: [(0, 0, 0, None, ("", 0), None, None)]
    line.strategy._open_socket = open_socket
    line.open(read_server_info=False)


def _hang_up(line: Any) -> None:
    try:
        line.unbind()
    except (_ldap3().core.exceptions.LDAPExceptionError, OSError, ApplianceError):
        if line.socket is not None:
            line.socket.close()
