"""Whether a licence, in the words in which people write it, lets a model be trained on what stands under it.

An allow-list: public domain and attribution-only licences are known by name, everything else is refused with the reason. It
reads names, not contracts; what it says is a rule for this box and no legal advice.
"""

from __future__ import annotations

import re
import unicodedata

# What is left of a name after case, version numbers and filler words.
ALLOWED = frozenset(
    {
        "cc0", "cc zero", "creative commons zero", "public domain", "pdm", "public domain mark", "unlicense",
        "cc by", "creative commons attribution", "attribution", "odc by", "pddl", "dl de by", "dl de zero", "etalab",
        "mit", "mit 0", "expat", "apache", "asl", "bsd", "bsd clause", "clause bsd", "0bsd", "isc", "zlib", "boost", "psf",
        "ogl", "open government", "ogl uk", "uk ogl", "nlod", "us government work", "us government works",
        "own work", "our own work", "written for this school", "written for this project",
    }
)  # fmt: skip
_FILLER = re.compile(
    r"\b(the|a|licen[cs]ed?|under|version|international|intl|unported|generic|universal|new|revised|simplified|v)\b"
)
_VERSION = re.compile(r"\bv?\d+(\.\d+)*\b(?! ?clause)")
_COUNTRY = re.compile(r"(?<=^cc by) (uk|us|de|fr|nl|za|au|nz|igo)$")
_REFUSED = (
    (r"\bn\W?c\b|non\W?commercial", "allows no commercial use, and a model must be free to be passed on"),
    (r"\bn\W?d\b|no\W?deriv", "allows no changed versions, and a tuned model is one"),
    (
        r"\bs\W?a\b|share\W?alike|\bgpl|\blgpl|\bagpl|gnu|gfdl|odbl|copyleft",
        "is share-alike: the model would have to be passed on under it as well",
    ),
    (r"all rights reserved|proprietary|confidential|copyright", "reserves the rights"),
)
# In a remark in brackets, which else is passed over: "CC BY 4.0 (not for training)".
_LIMITS = re.compile(
    r"\b(no|not|non|none|never|only|without|unless|until|except\w*|exclud\w*|prohibit\w*|forbid\w*|restrict\w*|permission)\b"
)
_HARMLESS = re.compile(r"\bno rights reserved\b|\bno known restrictions\b")


def forbids(licence: str) -> str | None:
    """Why the licence does not allow training, as the end of a sentence ("is share-alike: ..."); None where it does.

    Several names joined by "and", a comma or a semicolon must all allow it; joined by "or", one is enough. A remark in brackets
    adds nothing to a name, but where it limits anything a person has to read it.
    """
    text = unicodedata.normalize("NFKC", licence).casefold().strip()
    if not text:
        return "is not stated"
    reasons = [_all_of(choice) for choice in re.split(r"\bor\b(?![^(]*\))", text)]
    return None if None in reasons else reasons[0]


def _all_of(names: str) -> str | None:
    for pattern, reason in _REFUSED:
        if re.search(pattern, names):
            return reason
    remarks = " ".join(re.findall(r"\([^)]*\)", names))
    if _LIMITS.search(_HARMLESS.sub(" ", remarks)):
        return "is limited by the remark in brackets"
    names = re.sub(r"\([^)]*\)", " ", names)  # a remark: "CC BY 4.0 (OpenStax, 2020)"
    names = re.sub(r"(https?://)?(www\.)?creativecommons\.org/(licenses/by/|publicdomain/)", "cc by ", names)
    names = names.replace("cc by zero/", "cc0 ").replace("cc by mark/", "public domain mark ").replace("cc-0", "cc0")
    unknown = [name for name in re.split(r"[;,&+]|\band\b", names) if not _known(name)]
    return "is not one this box knows as allowing training" if unknown else None


def _known(name: str) -> bool:
    words = " ".join(re.sub(r"[^a-z0-9.]+", " ", name).split())
    words = _VERSION.sub(" ", words)
    words = " ".join(_FILLER.sub(" ", words).split()).strip(" .")
    words = re.sub(r"\b\d (?=clause)", "", words)
    words = _COUNTRY.sub("", re.sub(r"^creative commons (?=by\b)", "cc ", words))
    words = re.sub(r"^(apache|mit|isc) (software|foundation|software foundation)$", r"\1", words)
    return words in ALLOWED
