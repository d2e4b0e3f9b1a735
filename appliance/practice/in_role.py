"""Whether a line that a model wrote may be shown as a pupil's.

The lists are conservative: a good line that is turned down costs nothing, since the written one stands in its place. They are
English; in other languages a line's form, names, and closeness to what only those say who have understood are still seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from appliance.practice.hearing import plain, whole_word
from appliance.practice.scenario import PupilSpec

LONGEST = 240  # characters, as the module `student_reaction` allows
MOST_WORDS = 45
LONGEST_DIRECTION = 60  # characters between brackets: "(looks out of the window)"
_CONCEDES_AT = 0.6  # share of the words of an `understands` line that nobody says who still believes

_TURNS_LETTERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKUP = re.compile(r"[*#`{}\[\]|<>\\]|https?:|www\.|(?<!\w)_\w")
_DIRECTION = re.compile(r"\(([^()]*)\)")
_ROLES = r"(teacher|pupil|student|child|parent|mother|father|colleague|narrator|assistant|user|system|me|line|answer|response)"


def _phrases(*patterns: str) -> re.Pattern[str]:
    """Of plain words (see `hearing.plain`), each from the beginning of a word to the end of one."""
    return re.compile("|".join(rf"\b(?:{one})(?!\w)" for one in patterns))


_ASSISTANT = _phrases(
    r"as an? (ai|assistant|language model|model|student|pupil|character)",
    r"(language model|chatbot|role-?play|roleplay|role-?playing|simulat(ed|ion)|system prompt|misconceptions?)",
    r"i('m| am)( just| only)? (an? )?(ai|assistant|bot|language model|program)",
    r"how (can|may) i (help|assist)( you)?",
    r"(happy|glad|here) to (help|assist)",
    r"i( can't| cannot| can not| won't| am unable to|'m unable to) (assist|comply|fulfil+|provide|generate|help with that)",
    r"(i apologi[sz]e|my apologies|feel free to)",
    r"(certainly|absolutely|of course|sure)[!,.] (here|i can|i'd|i would|i'll|let)",
    r"here('s| is| are) (a|an|the|my|one|some) (line|response|reply|answer|possible|example|sentence)",
    r"(my|this|the) (character|persona|role)",
    r"in (this|the) (scene|scenario|play)",
    r"stay(ing)? in (role|character)",
    r"i hope (this|that) helps",
)
_PRAISE = _phrases(
    r"(great|good|excellent|nice|wonderful|fantastic|brilliant|amazing|interesting|lovely|super) "
    r"(question|job|work|thinking|point|try|answer|effort|start|observation|thought|explanation|attempt|reasoning)",
    r"well (done|said|explained|spotted)",
    r"(so |very |really )?(proud of|impressed (by|with)) you(r)?",
    r"that('s| is) (an? )?(excellent|wonderful|fantastic|great (way|idea))",
    r"(keep it up|keep going|keep trying|good for you|exactly right|spot on|not quite|almost there|good luck)",
    r"you('ve| have)? (got (it|this)|explained (it|that) (so |very )?well)",
)
_TEACHER = _phrases(
    r"let('s| us)",
    r"(any|further|other|more) questions",
    r"(can|could|would|who) (anyone|anybody|someone|somebody|can|could|would like to|wants to)( \w+)? "
    r"(explain|tell|share|answer|say|try|show|help|remember)",
    r"what do you( all)? (think|notice|see|know|mean by)",
    r"(how|why) (do|did|would|could) (you|we) (know|think|get|figure|find|work|come|solve|arrive)",
    r"(tell|show) (me|us) (more|why|how you|what you|your)",
    r"explain (your|how you|why you|to (me|us|the class))",
    r"(take out|open|close|put away) your",
    r"(turn to page|write (this|that|it) down|raise your hands?|hands up|pay attention|eyes on me|settle down)",
    r"listen (carefully|up)|(take your time|your turn|your task|today we|today's lesson|next lesson)",
    r"(our (lesson|topic|goal)|learning (goal|objective))",
    r"i('d| would) (like|love|want) (you|us|everyone) to|i want (you|us|everyone) to",
    r"(does|do) (that|this|it|everyone|everybody) (make sense|understand|agree)",
    r"(have you|could you|can you) (tried|considered|thought|think|try)",
    r"(class|students|children|everyone|everybody|boys and girls|guys|learners),",
    r"as (we|i|you) (learned|learnt|saw|discussed|said|mentioned|know|can see)",
)
_STEPS = r"(observe|note|multiply|divide|add|subtract|compare|calculate|convert|simplify)"
_EXPLAINS = _phrases(
    r"the (correct|right|proper) (answer|way|method|solution) (is|to)",
    r"(key|main|important) (idea|point|thing|concept|step) (is|here|to)",
    r"(is|are) (defined|calculated|determined|known) (as|by)",
    r"(definition|concept|principle) of",
    r"(in other words|in order to|in conclusion|in summary|to summari[sz]e|for instance|to recap)",
    r"(therefore|thus|hence|consequently|furthermore|moreover|additionally|specifically|firstly|secondly|finally),?",
    r"(this|that|which) (means|shows|demonstrates|implies|illustrates) (that|how|why)",
    r"it('s| is) (important|essential|helpful|useful|crucial|necessary)",
    rf"we (can|must|should|need to|have to) (see|say|conclude|deduce|infer|find|{_STEPS})",
    rf"you (can|will|should|must|need to|have to|first) (notice|find the|remember|use|{_STEPS})|you (will|should|must) see",
    r"(always|please) remember",
    r"(keep|bear) in mind",
    r"the rule (is|says|states) (that|to)",
    rf"(whenever|when) (we|you) {_STEPS} (\w+ ){{0,6}}(we|you|the)",
    rf"(to|when) (find|solve|{_STEPS})\w* ([\w,]+ ){{1,6}}(you|we) (need|must|have|should|first|can)",
)
_OPENS_LIKE_A_TEACHER = re.compile(
    r"(?:^|[.!?,;:] ?)(?:remember(?! (?:when|the))|recall|note|notice|consider|imagine|observe|think about|suppose|"
    r"try to|step \w+)\b"
)
_GIVES_IN = _phrases(
    r"you('re| are| were)( \w+)? (right|correct)",
    r"(that|this)('s| is| was)( \w+)? (right|correct|true)",
    r"i('m| am| was| must be| guess i was| think i was| must have been)( \w+)? (wrong|mistaken|incorrect)",
    r"my (bad|mistake|(idea|answer|guess|thinking|reasoning|rule) (was|is) (wrong|not right))",
    r"i (made|had made) (a|the) mistake",
    r"i( \w+)? (get|got|see|understand|understood|reali[sz]ed?|learn(ed|t)) (it|that|this|now|why|how|what you mean)(?! wrong)",
    r"(oh|ah|aha|ohh|okay|ok)[,!.]* (now )?i (see|get|understand)",
    r"(now i|i now|i finally) \w+",
    r"i see( now)?(?=[.!,?]|$)",
    r"(that|this)( \w+)? makes?( \w+){0,2} sense|makes sense now|it( all)? makes sense now",
    r"i('ve| have)? changed? my mind|(you|that)('ve| has| have)? (convinced|persuaded) me",
    r"i( \w+)? agree(?! with (?!you\b))",
    r"thank(s| you)( \w+){0,2} for (explaining|clearing|helping|showing|the (explanation|help))",
    r"(i stand corrected|got it|gotcha|good point|fair point|never mind what i said|i take (it|that) back)",
    r"i (had|got) it (wrong|backwards|mixed up|the wrong way)",
    r"i (used to think|thought|believed)\b.*\b(but|now|actually)",
    r"it('s| is)( actually| really)? the other way (round|around)",
    r"so (i|my \w+) (was|is) wrong",
)
_NEGATED = re.compile(r"\b(?:\w+n't|dont|doesnt|didnt|cant|isnt|not|cannot|never|no)(?: \w+){0,2}")
_AGREEING = """
yes yeah yep yup ok okay right sure true exactly agreed of course alright fine miss sir mr ms oh ah i see totally you're you are
correct that's it's is it that so then mhm hm guess absolutely definitely indeed
"""
_AGREES = frozenset(_AGREEING.split())


def spoken(said: str, names: Sequence[str], name: str) -> bool:
    """Whether it has the form of one short thing that somebody says: no label, no markup, nobody else's part."""
    if not 0 < len(said.strip()) <= LONGEST or len(said.split()) > MOST_WORDS or len(said.splitlines()) != 1:
        return False
    if any(one in _TURNS_LETTERS or unicodedata.category(one) in ("Cc", "Cs", "Co", "Zl", "Zp") for one in said):
        return False
    if _MARKUP.search(said) or not any(one.isalnum() or unicodedata.category(one) == "So" for one in said):
        return False
    text = plain(said)
    people = [part for full in names for part in {plain(full), *plain(full).split()} if len(part) > 1]
    labels = "|".join([*(whole_word(one) for one in people), rf"\b{_ROLES}(?: \d+)?"])
    if re.search(rf"(?:{labels})\W?\s*:", text):
        return False
    others = [part for full in names if full != name for part in plain(full).split() if len(part) > 1]
    aside = "|".join([*(whole_word(one) for one in others), r"\bteacher\b"])
    directions = _DIRECTION.findall(text)
    return len(directions) <= 1 and not any(len(one) > LONGEST_DIRECTION or re.search(aside, one) for one in directions)


def breaks_role(said: str, who: str) -> bool:
    """Whether it sounds like an assistant, or from a pupil like a teacher: praise, orders, rules explained."""
    text = plain(said)
    if _ASSISTANT.search(text) or _PRAISE.search(text):
        return True
    if who != "pupil":
        return False
    return any(found.search(text) for found in (_TEACHER, _EXPLAINS, _OPENS_LIKE_A_TEACHER))


def gives_in(said: str, spec: PupilSpec, intent: str) -> bool:
    """Whether somebody who still holds a belief lets go of it here, or says what only those say who have understood."""
    text = plain(said)
    if _GIVES_IN.search(_NEGATED.sub(" ", text)):
        return True
    words = re.findall(r"[^\W_]+(?:'\w+)?", text)
    if intent in ("holds", "wavers") and words and _AGREES.issuperset(words) and "?" not in said:
        return True
    return any(_says_as_much(text, line, spec) for line in spec.lines.get("understands", ()))


def _says_as_much(text: str, line: str, spec: PupilSpec) -> bool:
    belief = spec.misconception.belief if spec.misconception else ""
    whole, heard = _contents(line), _contents(text)
    if len(whole) >= 3 and len(whole & heard) >= 0.8 * len(whole):
        return True
    still = _contents(" ".join([belief, *spec.lines.get("holds", ()), *spec.lines.get("wavers", ())]))
    only = whole - still
    shared = only & heard
    return len(shared) >= 2 and len(shared) >= _CONCEDES_AT * len(only)


def _contents(text: str) -> frozenset[str]:
    return frozenset(one for one in re.findall(r"[^\W_]+", plain(text)) if len(one) > 3 or not one.isascii())
