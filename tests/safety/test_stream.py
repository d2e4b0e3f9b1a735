"""The guard over an answer: nothing is lost or put in another order, however the text was cut, and no word is split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.safety import StreamGuard, Verdict
from appliance.safety.stream import LONGEST


def judged(sentence: str, before: str) -> Verdict:
    text = f"{before}{sentence}"
    if "poison" in text:
        return Verdict("block", "test", "test", sentence, support="answer")
    if "human" in sentence:
        return Verdict("redact", "test", "test", sentence, support="person-answer")
    return (
        Verdict("redact", "test", "test", sentence.replace("5551234", "[phone]"))
        if "5551234" in sentence
        else Verdict(text=sentence)
    )


def guard() -> StreamGuard:
    return StreamGuard(judged, lambda verdict: "STOP" if verdict.action == "block" else "(no person)")


def through(pieces: list[str]) -> tuple[str, bool]:
    one = guard()
    return "".join([*map(one.feed, pieces), one.flush()]), one.ended is not None


WORDS = st.lists(
    st.sampled_from(
        [
            "leaf ",
            "green. ",
            "Why? ",
            "\n",
            "\n\n",
            "1. ",
            "e.g. ",
            "poison ",
            "human ",
            "5551234 ",
            "x" * 90 + " ",
            "تنتهي؟ ",
            "好。",
            "a",
        ]
    ),
    max_size=40,
)


@given(WORDS, st.data())
def test_how_it_was_cut_changes_nothing(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    whole = through([text])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert through(pieces) == whole == through(list(text))


@given(st.text(max_size=1500))
def test_allowed_text_comes_out_letter_for_letter(text: str) -> None:
    one = StreamGuard(lambda sentence, _before: Verdict(text=sentence), lambda _verdict: "")
    pieces = [one.feed(letter) for letter in text]
    assert "".join(pieces) + one.flush() == text


def test_a_sentence_is_held_until_it_ends_and_no_longer() -> None:
    one = guard()
    assert one.feed("Leaves are green") == "" and one.feed(". ") == "Leaves are green. "
    assert one.feed("It is 3.5 cm, e.g. here") == "" and one.flush() == "It is 3.5 cm, e.g. here"


def test_what_is_refused_ends_the_answer_and_what_is_softened_does_not() -> None:
    one = guard()
    assert one.feed("I am human. Good. Take poison. And then more. ") == "(no person) Good. STOP"
    assert one.feed("never shown. ") == "" and one.flush() == "" and one.ended is not None
    assert [verdict.support for verdict in one.softened] == ["person-answer"]
    assert through(["Call 5551234 now. "])[0] == "Call [phone] now. "


def test_a_long_sentence_is_cut_between_words_and_judged_across_the_cut() -> None:
    words = "green leaf " * 60
    one = guard()
    shown = one.feed(words)
    assert shown and words.startswith(shown) and shown.endswith(" ") and len(shown) >= LONGEST - 10
    split = "a" * (LONGEST - 8) + " poi" + "son and more "
    assert "poison" not in through([split + "x " * 400])[0]
