"""Whether a teacher's sentence gives a mind something to work on, or only sounds like a question for a reason.

A question counts where some part of it is open: it begins with a word that asks, sets somebody to work, or asks about the
thing itself. It does not where it asks for a yes, pleads, scolds, takes the question back or mocks, whatever cue words stand
in it. Hides the patterns, which are English; what is quoted is nobody's question here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_QUOTES = re.compile('"[^"\n]{1,400}"|\u201c[^\u201d\n]{1,400}\u201d|\u00ab[^\u00bb\n]{1,400}\u00bb')
_NT = "'?t"  # as it is typed: "don't", "dont"
_WH = r"(why|how|what|which|where|when|who|whose)"
_PEOPLE = r"(you|we|they|everybody|everyone|anybody|anyone|you all|all of (you|us)|we all|the class)"
_PART = r"(^|[,;:.?!] ?|- ?|\b(and|but|or|so|then|now|ok|okay) )"


def _phrases(*patterns: str) -> re.Pattern[str]:
    """Of plain words, each from the beginning of a word."""
    return re.compile("|".join(rf"\b(?:{one})" for one in patterns))


# Words before which "why", "how" ... is no question of its own: "you know why", "never mind why".
_EMBEDDED = re.compile(
    r"(#(?![^,;]*\b(and|but|or) $)[^,;:.?!-]*|\b(know|knew|see|saw|get|understand|understood|"
    r"explain|explained|explaining|ask|asked|asking|told|tell|say|said|about|of|with|"
    r"sure|certain|clear|remember|reason|realise|realize|learn|learned|learnt|found out|find out|forget|mind|matter|to|"
    r"thats|that's|that is|is that|was that))( (you|me|us|it|again|now|just|exactly|really|yesterday|out))* $"
)
_SETS_TO_WORK = re.compile(
    rf"{_PART}(please )?((show|explain|compare|draw|imagine|suppose|count|find|fold|cut|test|measure|prove|describe|guess)\b"
    rf"|try (it|this|that|to)\b|(tell|show) (me|us) )"
)
# "Does each piece get bigger ...", "Maya, can you find ...": a question about the thing itself, more than a tag (", is it?").
_INVERTED = re.compile(
    rf"{_PART}(\w+ (?=(do|did|can|could|would|will) you\b))?"
    r"(is|are|was|were|does|do|did|can|could|would|will|has|have|had|might|should|must|may) "
    r"(?!(it|they|we|you|she|he|that|i)\W*$)\w+"
)
# They ask for a yes, whatever else stands in them; a part of its own may still ask something.
_ASKS_FOR_YES = _phrases(
    rf"(?<!why )(are|is|were|am) ({_PEOPLE}|i)( \w+){{0,2}} (sure|certain|serious|positive|happy|okay|clear|with me)\b",
    r"how (sure|certain) (are|is) \w+|^(sure|certain|positive)\b",
    rf"(do|does|did|can|could|don{_NT}|can{_NT}|won{_NT}|doesn{_NT}|didn{_NT}) {_PEOPLE}( \w+)? "
    r"(see|get|realise|realize|grasp|follow)( it| that)?( now)? ?"
    r"(the reason|that|why|how (an?|the|it|this|that|they|your?)|now|\?)",
    r"(do|does|did) (everybody|everyone|anybody|anyone|you all|all of you) (see|get)\b",
    rf"(have|has) {_PEOPLE}( all| now| really)? (understood|got|grasped|seen)\b",
    rf"(don{_NT}|do|can{_NT}|can|won{_NT}|will|would|could|did) {_PEOPLE}( \w+){{0,2}} "
    r"(agree(?! (or|with (?!me\b)))|understand|accept|admit|believe)\b",
    r"(think|try|look) again\b",
    r"(got it|come on|(believe|trust|listen to) me|just (say|accept)|say that)\b",
    r"we( can| all| must| do| please)* agree\b",
    rf"(is|are|does|do|was|were|has|have|had|did|would|could|should|must)n{_NT} \w+",
    rf"(can|won|ain|shan){_NT} (you|we|they|it|he|she)\b",
    r"(is|was) (that|this|it|everything|all of (that|this))( \w+){0,2} "
    r"(clear|right|correct|obvious|understood|reason|why|how)\b",
    r"is (that|it|this) (really )?true(?! (that|for|if|when)\b)",
    r"(does|did) (that|this|it|everything) make\b",
    r"(must|do|did|should|shall|have|may) i( \w+){0,2} (explain|explained|tell|told|say|said|repeat|remind|ask|go)\b",
    r"what if i (told|tell)\b",
    r"(right|okay|ok|yes|alright|clear|correct|agreed|yeah|no|sure|true) ?\?\W*$",
)
# Kindness is no reason, nor is a question whether somebody understands, accepts, agrees.
_PLEADS = re.compile(
    r"^(\w+,? )?(do|does|did|can|could|will|would|don't|can't|won't) (you|we|everyone)( \w+){0,2} "
    r"(understand|accept|agree|admit)\b(?! (or|with (?!me\b)))"
    r"(?!.*\b(and|but|or) (why|how|what|which|where)\b)"
    r"|\b(would|should|will) be( \w+){0,2} (glad|happy|pleased|proud|grateful) if you\b|\bfor my sake\b|\bi (promise|beg) you\b"
)
# Scolding in the form of a question: nobody waits for its answer.
_SCOLDS = _phrases(
    rf"(why|how) (can|could)(n{_NT}|{_NT})? (you|anybody|anyone)( \w+)? "
    r"(not|even|possibly|be like|see that)\b",
    rf"(why|how) can{_NT} you( \w+)? (see|get|be|just|understand|remember)\b",
    r"(why|how) (do|does|did|are|is|must|have) (you|he|she|they|it|this class)( \w+)? "
    r"(always|never|keep|still|constantly|even)\b",
    r"(why|who|how|what) (on earth|in the world|the hell)\b|what were you thinking\b",
    r"(why|how) (would|could|should) (anyone|anybody|a sensible)\b",
    r"who (still|seriously)\b",
    rf"(how many times|what|haven{_NT}|didn{_NT})( (did|have|do|must))? i( \w+)? (just |already )?"
    r"(say|said|tell|told|explain(ed)?|ask|asked|been (saying|telling|explaining))\b",
    rf"(which|what) (part|bit) of\b.* (don{_NT}|do|did|didn{_NT}) you( not)? (understand|get)\b",
    rf"(why (don{_NT}|not)|how about) (you )?(just|simply)\b",
)
# The question is taken back: "never mind why", "we don't need a reason".
_FORBIDS = _phrases(
    rf"(don{_NT}|do not|never|stop|no point in|no use)( you| ever)? (ask|asking|wonder|wondering)\b",
    rf"((isn|aren|won){_NT}|not) (going to |gonna |here to )?ask(ing)?( you)? {_WH}\b",
    r"(nobody|no one) (asked|is asking|wants to know)\b|no (more )?(questions|discussion)\b",
    r"(never mind|forget|i don't care|no matter) (about )?(why|how|what|which|the (why|how|reason))\b",
    rf"((do|does|did)n{_NT}|(do|does|did) not) (need|have|want|care)( to (know|say|ask|explain|tell( me| us)?))?"
    rf"( about)? ({_WH}|an?y? reasons?|reasons?|to explain)\b",
    rf"(doesn{_NT}|does not) matter\b",
    r"no need (to|for)\b",
)
_MOCKS = re.compile(
    r"(^|[.!?] )(oh,? |well,? |ha,? )*(sure,|of course,|yeah,? right\b|good one\b|bravo\b|as if (an?|the|you|that|it)\b"
    r"|(brilliant|wonderful|great|lovely|fantastic),(?=.*\b(genius|einstein|another|bright spark)\b))"
    r"|(?<=oh )(sure|brilliant|great|wonderful),? (and|so|because)\b|\bwhich genius\b|\bgive me a break\b"
)


def mocks(words: str) -> bool:
    """Whether a turn is mockery, which no question after it mends. words: plain ones, as all that is asked here."""
    return bool(_MOCKS.search(words))


def empty(sentence: str, plain: Callable[[str], str], *, asks: bool) -> bool:
    """Whether a sentence leaves nothing to think about. asks: the move found in it is one that asks something."""
    words = plain(_QUOTES.sub(" ", sentence))
    if _PLEADS.search(words) or _SCOLDS.search(words) or _FORBIDS.search(words):
        return True
    rest = " ".join(_ASKS_FOR_YES.sub(" # ", words).split())
    if "#" not in rest and not (asks and "?" in words):
        return False
    return not _open(rest)


def _open(words: str) -> bool:
    if any(not _EMBEDDED.search(words[: found.start()]) for found in re.finditer(rf"\b{_WH}\b", words)):
        return True
    if _SETS_TO_WORK.search(words) or _INVERTED.search(words):
        return True
    return "#" not in words and (" or " in words or len(words.split()) <= 4)
