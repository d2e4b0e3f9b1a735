"""What to search for when somebody asks on: "and why?" means nothing without the question before it.

A message whose words say nothing about a subject is searched together with the last question that did. Knows no index and no
conversation: it is handed the questions. English words only; a follow-up in another language is searched as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.knowledge.words import STOP_WORDS, words

SHORT = 12  # words; who writes more says what it is about
LOOK_BACK = 6  # questions; before that was another subject

# Words of a conversation rather than of a subject, beside those that no search looks for.
TALK = frozenset(
    re.findall(
        r"\w+",
        """actually another anything better bit case certain clear clearer confused continue correct detail details different
        easier easy else ever example examples exactly first got hello help hi hint idea know last later lost make makes maybe
        mean meaning means mine more never next ok okay part point problem question quite real really reason repeat right sense
        shorter simple simpler simply someone something sorry step steps still stuck sure thank thanks thing things think true
        try understand way well whole wrong yes yet
        aren couldn d didn doesn don hasn haven isn ll m re shouldn ve wasn won wouldn""",  # what is left of "don't" and "I'm"
    )
)


def to_search(question: str, earlier: Sequence[str] = ()) -> str:
    """The text to look for. `earlier`: the questions before, the oldest first.

    >>> to_search("and why?", ["How do magnets work?"])
    'How do magnets work? and why?'
    """
    if not says_nothing(question):
        return question
    for last in reversed(earlier[-LOOK_BACK:]):
        if not says_nothing(last):
            return f"{last.strip()} {question.strip()}"
    return question


def says_nothing(question: str) -> bool:
    """Whether a message is short and none of its words is about anything. Signs and numbers are: "and 7 x 8?" is a question."""
    said = words(question.replace("\u2019", "'").replace("'", " "))
    return len(said) <= SHORT and all(word in STOP_WORDS or word in TALK for word in said)
