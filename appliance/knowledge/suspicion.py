# ruff: noqa: RUF001 - letters of other scripts look like Latin ones
"""Passages that speak to the assistant instead of to a reader: "ignore all previous instructions" inside a worksheet.

`find` names what reads like an order to a language model, so that staff see it in the document and the prompt says so. It is
a hint and no wall: who words an order otherwise is not found, and a lesson about language models may be. It changes no ranking,
removes nothing and blocks nothing; what keeps a passage from being obeyed is that every passage is fenced and called material
(see `prompts`), and that nobody's rights depend on what a model says. Hides the phrases and their languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SHOWN = 80  # characters of what was found
_WITHIN = "[^.!?。]{0,40}?"  # of one sentence; bounded, so that no text can keep the search busy

# Waving aside what was said before: the verb, then what is waved aside. Stems, since most of these languages bend both.
_WAVED_ASIDE = {
    "German": (r"\b(?:ignorier|vergiss|vergesst|missachte)", r"\b(?:anweisung|instruktion|vorgabe|regel|befehl)"),
    "French": (
        r"\b(?:ignor(?:e|ez|er)|oublie[rz]?|ne t\w+ pas compte)\b",
        r"\b(?:consignes|r[èe]gles|(?:instructions|directives) (?:pr[ée]c[ée]dentes|ant[ée]rieures|ci-dessus))\b",
    ),
    "Spanish": (r"\b(?:ignor|olvid|desoye)\w*", r"\b(?:instrucciones|reglas|indicaciones|[óo]rdenes)\b"),
    "Italian": (r"\b(?:ignor|dimentic)\w*", r"\b(?:istruzioni|regole|indicazioni|direttive)\b"),
    "Portuguese": (r"\b(?:ignor|esque[çc])\w*", r"\b(?:instru[çc][õo]es|regras|orienta[çc][õo]es)\b"),
    "Dutch": (r"\b(?:negeer|vergeet)\b", r"\b(?:instructies|aanwijzingen|regels|opdrachten)\b"),
    "Polish": (r"\b(?:zignoruj|ignoruj|zapomnij)", r"\b(?:instrukcj|polece[nń]|zasad|regu[łl])"),
    "Turkish": (r"\b[öo]nceki\b", r"\b(?:yok say|g[öo]rmezden gel|unut|dikkate alma)"),
    "Russian": (r"\b(?:про)?игнориру|\bзабудь|\bне следуй", r"\b(?:инструкци|указани|правил|команд)"),
    "Ukrainian": (r"\b(?:про)?ігнору|\bзабудь", r"\b(?:інструкці|вказівк|правил)"),
    "Arabic": (r"(?:تجاهل|انس|لا تتبع)", r"(?:التعليمات|الأوامر|القواعد|الإرشادات)"),
    "Chinese": (r"(?:忽略|无视|無視|忘记|忘記|不要遵守)", r"(?:指令|指示|提示|规则|規則|要求)"),
}
_VERBS = r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget|overrid(?:e|ing)|bypass|(?:do not|don't|stop) follow(?:ing)?)\b"
_OLD = r"\b(?:previous|prior|preceding|earlier|above|foregoing|existing|original|initial|former|system|your|these|all)\b"
_RULES = r"\b(?:instructions?|prompts?|directions|directives|guidelines|rules|commands|system messages?)\b"
_PHRASES = (
    f"{_VERBS}{_WITHIN}{_OLD}{_WITHIN}{_RULES}",
    rf"{_VERBS} (?:everything|anything|all|what\w*)\b{_WITHIN}\b(?:above|before|previously|were told|was said)\b",
    *(f"{verb}{_WITHIN}{thing}" for verb, thing in _WAVED_ASIDE.values()),
    # What only a machine is told.
    rf"\b(?:reveal|print|repeat|show|output|leak|display|tell me)\b{_WITHIN}\b(?:your|the) (?:(?:hidden|secret|initial) )?"
    r"(?:system )?(?:prompt|instructions above)\b",
    r"\byou are (?:now |no longer )?(?:an?|the) (?:\w+ ){0,2}(?:ai|assistant|chatbot|language model|llm)\b",
    r"\b(?:dear|hey|attention|note to|(?:message|instructions?) (?:to|for)) (?:the )?"
    r"(?:ai|llm|language model|chatbot|(?:ai|virtual|digital|teaching) assistant)s?\b",
    r"\bif you are an? (?:\w+ )?(?:ai|llm|language model|chatbot|assistant)\b",
    rf"\b(?:do not|don't|never) (?:tell|inform|warn) the (?:user|pupil|student|teacher|reader)s?\b{_WITHIN}"
    r"\b(?:instructions?|prompt|message|this)\b",
    r"\b(?:developer|god|jailbreak|dan|unrestricted) mode (?:is )?(?:now )?(?:on|enabled?|activated?)\b",
    r"\b(?:enter|enable|activate|switch to) (?:developer|god|jailbreak|dan|unrestricted) mode\b",
    r"\b(?:new|updated|real|actual) (?:system )?(?:prompt|instructions) ?:|\bsystem (?:prompt|override|instructions?) ?:",
    # What only a prompt's own wrapping looks like.
    r"<\|[^|<>\s]{1,40}\|>|<</?sys>>|\[/?inst\]|<(?:start|end)_of_turn>",
    r"^\W{0,4}(?:system|assistant|developer)\W{0,3}:\W{0,3}(?:you|ignore|disregard|from now)\b",
    r"^#{2,} ?(?:system|instruction|assistant|user) ?:",
    r"\bsource \d{1,3} (?:begins|ends)\b",
)
_ANY = re.compile("|".join(f"(?:{phrase})" for phrase in _PHRASES), re.I | re.M)
# Every phrase holds one of these: a plain look for them is quick, and in nearly all texts it is all that is needed.
_STEMS = (
    "ignor", "disregard", "forget", "overrid", "bypass", "follow", "vergiss", "vergesst", "missachte", "oubli", "pas compte",
    "olvid", "desoye", "dimentic", "esque", "negeer", "vergeet", "zapomnij", "önceki", "onceki", "игнор", "ігнор", "забудь",
    "не следуй", "تجاهل", "انس", "لا تتبع", "忽略", "无视", "無視", "忘记", "忘記", "不要遵守", "prompt", "instruction",
    "you are ", "assistant", "chatbot", " ai", "llm", "language model", "tell the", "inform the", "warn the", " mode", "system",
    "<|", "sys>>", "inst]", "_of_turn>", "developer", "##", "source ",
)  # fmt: skip


def find(text: str) -> list[str]:
    """What in `text` reads like an order to a language model, each in a few words; nothing in most texts."""
    plain = _plain(text)
    return [" ".join(match[0].split())[:SHOWN] for match in _ANY.finditer(plain)] if _worth_it(plain) else []


def suspicious(text: str) -> bool:
    """Whether anything in `text` does."""
    plain = _plain(text)
    return _worth_it(plain) and _ANY.search(plain) is not None


def note(texts: Sequence[str]) -> str:
    """One or two sentences for a document's page or report, "" where none of its passages is suspicious."""
    count = sum(map(suspicious, texts))
    if not count:
        return ""
    speaks = "1 passage speaks" if count == 1 else f"{count} passages speak"
    return f"{speaks} to the assistant instead of to a reader. It treats that as text; please look whether it belongs here."


def _plain(text: str) -> str:
    """Without what cannot be seen and without wide or styled letters, which hide words from a search and not from a model."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return "".join(letter for letter in composed if letter.isascii() or unicodedata.category(letter) != "Cf")


def _worth_it(plain: str) -> bool:
    folded = plain.lower()
    return any(stem in folded for stem in _STEMS)
