"""A conversation as a file to keep: Markdown that shows what was said and does nothing else, or JSON with everything.

Hides file names that every system takes, and how text is kept from being read as Markdown's links, pictures or HTML, which
another program would fetch or run. Both hold only what their reader may see; the text of sources is not copied out.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from appliance.conversations import Conversation, Turn
from appliance.feedback import Given

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~=$@&])")
_CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[^`\n]*\n.*?(?:^(?P=fence)[`~]*[ \t]*$|\Z)"  # a block between fences
    r"|(?<![\\`])(?P<tick>`+)(?!`)[^\n]+?(?<!`)(?P=tick)(?!`)",  # a few words of a line
    re.M | re.S,
)
# Names that Windows keeps for itself.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.I)


def attachment(text: str, name: str, kind: str) -> Response:
    """A download under a safe name."""
    name = file_name(name)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = plain if plain.partition(".")[0].strip(" _-") else "chat." + name.rpartition(".")[2]
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return Response(text, headers={"content-disposition": disposition, "content-type": f"{kind}; charset=utf-8"})


def file_name(title: str) -> str:
    """A title as a file's name: letters, digits, spaces and a few signs, no path, never hidden, at most 80 long."""
    stem, _, ending = title.rpartition(".")
    letters = "".join(sign if sign.isalnum() or sign in " -_,." else " " for sign in unicodedata.normalize("NFC", stem))
    clean = " ".join(letters.split()).strip(" .-_,")[:80].strip(" .-_,")
    return f"{'chat ' if _RESERVED.match(clean) else ''}{clean or 'chat'}.{ending}"


def markdown(chat: Conversation, turns: Sequence[Turn], say: Callable[[str], str]) -> str:
    """What was said on one branch, with the sources' titles."""
    parts = [f"# {_escaped(chat.title)}", _day(chat.created)]
    for turn in turns:
        if turn.role == "user":
            parts += [f"## {say('You')}", _quoted(turn.text)]
            continue
        parts.append(f"## {say('Assistant')}")
        lead, opening = turn.facts.get("lead"), turn.opening(say)
        parts += [_escaped(opening)] if opening else []
        parts += [_tamed(lead)] if lead else []
        parts += [_tamed(turn.text)] if turn.text else []
        if turn.state in ("failed", "stopped"):
            parts.append(f"*{say('The answer ends here.')}*")
        if turn.passages:
            listed = [f"{number}. {_source(one)}" for number, one in enumerate(turn.passages, 1)]
            parts += [f"{say('Sources')}:", "\n".join(listed)]
        if turn.model:
            parts.append(f"*{say('Written by AI')}: {_escaped(turn.model)}*")
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(chat: Conversation, turns: Sequence[Turn], given: Mapping[str, Given], say: Callable[[str], str]) -> str:
    """All branches: `parent` says which turn each one follows. `opening`, `quotes` and `text` are shown in this order."""
    said = [
        {
            "id": turn.id, "parent": turn.parent or None, "role": turn.role, "text": turn.text,
            "opening": turn.opening(say),
            "quotes": turn.facts.get("lead") or "", "state": turn.state, "model": turn.model, "created": turn.created,
            "sources": [{"title": one["title"], "place": one["place"]} for one in turn.passages],
            **({"feedback": asdict(given[turn.id])} if turn.id in given else {}),
        }
        for turn in turns
    ]  # fmt: skip
    whole: dict[str, Any] = {"id": chat.id, "title": chat.title, "folder": chat.folder, "created": chat.created, "turns": said}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    """What a person typed, as they typed it."""
    lines = (_SPECIAL.sub(r"\\\1", line.strip()) for line in text.split("\n"))
    return "\n".join(f"> {line}  ".rstrip() if not line else f"> {line}  " for line in lines)


def _tamed(text: str) -> str:
    """Markdown without raw HTML, pictures, or links: outside of code these show as they are written."""
    done, at = [], 0
    for code in _CODE.finditer(text):
        done += [_harmless(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*done, _harmless(text[at:])]).strip()


def _harmless(text: str) -> str:
    text = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)
    text = re.sub(r"\]\(", r"]\\(", text)
    return re.sub(r"^( {0,3}\[[^\]\n]*\]):", r"\1\\:", text, flags=re.M)


def _source(passage: Mapping[str, Any]) -> str:
    place = f", {_escaped(passage['place'])}" if passage["place"] else ""
    return f"{_escaped(passage['title'])}{place}"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
