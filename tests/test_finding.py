"""Words in one's own chats: without case and accents, in every script, and never in what may not be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.conversations import Conversation, Turn
from appliance.finding import find, plain


def chat(title: str, *texts: str) -> tuple[Conversation, list[Turn]]:
    turns = [Turn(f"t{at}", "c", "user", text, "done") for at, text in enumerate(texts)]
    return Conversation("c", title, 1.0, 2.0), turns


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ("leaves", "Why are LEAVES green?", "LEAVES"),
        ("eleve", "Un élève lit.", "élève"),
        ("ÉLÈVE", "Un e\u0301le\u0300ve lit.", "e\u0301le\u0300ve"),
        ("strasse", "Die Straße dort", "Straße"),
        ("كتب", "هُوَ كَتَبَ الدرس", "كَتَبَ"),
        ("100%", "It is 100% sure", "100%"),
        ("a_b", "x a_b y", "a_b"),
        ("ﬁsh", "A fish", "fish"),
    ],
)
def test_words_are_found_where_they_stand(words: str, text: str, found: str) -> None:
    (hit,) = find([chat("Title", "nothing", text)], words)
    assert (hit.turn, hit.found) == ("t1", found)
    assert "".join((hit.before, hit.found, hit.after)) == text


def test_all_words_of_the_question_and_only_those(words: str = "green autumn") -> None:
    talks = [chat("Leaves", "green", "autumn"), chat("Green", "in autumn"), chat("Green", "winter")]
    assert [hit.conversation for hit in find(talks, words)] == [talks[0][0], talks[1][0]]
    assert find(talks, "  ") == [] and find(talks, "%") == [] and len(find(talks * 40, "green", most=5)) == 5
    (title,) = find([chat("Only the title", "x")], "title")
    assert title.turn == "" and title.found == ""


@given(st.text(max_size=60), st.data())
def test_any_piece_of_a_text_is_found_in_it(text: str, data: st.DataObject) -> None:
    words = [word for word in text.split() if plain(word).split() == [plain(word)]]
    if words:
        word = data.draw(st.sampled_from(words))
        (hit,) = find([chat("", text)], word)
        assert plain(word) in plain(hit.found) or hit.turn == ""
        assert hit.found in text
