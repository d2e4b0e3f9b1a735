"""Who is asking, and may they: sign-in and keys in `accounts`, who there is in `people`, the table of rights in `policy`."""

from appliance.accounts.accounts import KEY_PREFIX, LOCAL_NAME, Accounts, Key, Session
from appliance.accounts.guessing import FREE_FAILURES, wait_after
from appliance.accounts.people import People, Person
from appliance.accounts.policy import ADMINISTRATOR, LOCAL, PUPIL, ROLES, SAFEGUARDING, STAFF, TEACHER, User

__all__ = [
    "ADMINISTRATOR", "FREE_FAILURES", "KEY_PREFIX", "LOCAL", "LOCAL_NAME", "PUPIL", "ROLES", "SAFEGUARDING", "STAFF", "TEACHER",
    "Accounts", "Key", "People", "Person", "Session", "User", "wait_after",
]  # fmt: skip
