"""The school's people and their classes as a file: read, compared with what is there, written only as it was shown, exported.

`reading` and `oneroster` turn files into a Roll, `plan` says what it would change and changes it, `writing` makes the file that
changes nothing when it is read again. Nobody is ever removed by a file, and no password stands in one.
"""

from appliance.enrolment.oneroster import is_oneroster, read_oneroster
from appliance.enrolment.plan import Change, Newcomer, Plan, apply, compare
from appliance.enrolment.reading import Entry, Fault, Roll, read_csv
from appliance.enrolment.writing import export, password_rows

__all__ = [
    "Change", "Entry", "Fault", "Newcomer", "Plan", "Roll", "apply", "compare", "export", "is_oneroster", "password_rows",
    "read", "read_csv", "read_oneroster",
]  # fmt: skip


def read(data: bytes, name: str) -> Roll:
    """A CSV file of people, or a zip archive of OneRoster files. Raises BadInput, TooLarge."""
    return read_oneroster(data, name) if is_oneroster(data) else read_csv(data, name)
