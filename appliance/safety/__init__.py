"""What may be asked and what may be answered: rules and word lists that a school can read and change.

`Policy.check` judges what a person writes, `Policy.check_answer` a sentence of an answer, `StreamGuard` a whole answer while
it comes. Rules are the TOML files of `content/safety`. It knows no person, no database and no model; what follows from a
verdict is for `guarding` and `safeguarding` to do.
"""

from appliance.safety.policy import ACTIONS, Policy, Reader, Verdict
from appliance.safety.stream import StreamGuard

__all__ = ["ACTIONS", "Policy", "Reader", "StreamGuard", "Verdict"]
