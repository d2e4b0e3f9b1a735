"""Which of a teacher's sentences give a mind something to work on, and which only sound as if: asking for a yes, pleading,
scolding, quoting, forbidding the question, mocking. Each line is as teachers say it."""

from __future__ import annotations

import pytest

from appliance.practice.clauses import clauses
from appliance.practice.exchange import Move
from appliance.practice.hearing import hear
from appliance.practice.moves import detect
from appliance.practice.scenario import Misconception

SPOKEN = ("elicit", "press", "hint", "check")
BELIEF = Misconception("An eighth is more than a quarter.", 3, SPOKEN, ("eighth", "quarter", "piece"))

NO_REASON = """
Are you sure about the reason?
Are you sure about the reason for the eighth?
Maya, are you sure about the reason for the eighth?
Maya, tell me, are you sure about the reason for the eighth?
So are you quite sure that you know why an eighth is smaller?
And you're sure about how you got the eighth, are you?
Is everybody sure why an eighth is smaller?
How sure are you about the eighth?
Sure about the eighth?
Are you certain the eighth is what you mean, Maya?
Do you see now why an eighth is smaller?
Can you see why a quarter is bigger?
Does everybody get why an eighth is smaller?
Did you get how an eighth is smaller than a quarter?
Do you understand the reason why the quarter is bigger?
Have you understood why the quarter is bigger?
Don't you see that an eighth is smaller because there are more pieces?
Dont you agree an eighth is smaller because the pieces are smaller?
An eighth is smaller because there are more pieces, isn't it?
An eighth is smaller because there are more pieces, right?
If you cut more pieces then an eighth is smaller, okay?
A quarter is bigger because I say so, okay?
You are not telling me that an eighth is bigger, are you?
You found out why the quarter is bigger, didn't you?
We know which one is bigger, the quarter, don't we?
Is that your reason for the quarter?
Was that the reason for choosing an eighth?
Is that really why you picked the eighth?
Is that how you got the eighth?
What if I told you that the eighth is smaller?
How can you not see that an eighth is smaller?
Why can't you see that a quarter is bigger?
How could you possibly think that an eighth is bigger?
Why do you always get the quarter wrong?
Why are you still on about the eighth?
How many times have I explained why an eighth is smaller?
What did I just tell you about the eighth?
What have I been saying about the eighth all morning?
Haven't I explained why an eighth is smaller?
Which part of "an eighth is smaller" don't you understand?
What on earth made you think an eighth is bigger?
Who still thinks an eighth is bigger?
Why would anyone think an eighth is bigger?
Why can't you be like Tom and just write the quarter?
Don't ask me why an eighth is smaller, just learn it.
I am not going to ask you why you chose the eighth.
Never mind why the eighth is smaller.
You don't need to know why an eighth is smaller.
It doesn't matter how you got the eighth.
We don't need a reason for the quarter.
There's no need to explain the eighth.
Forget how many pieces there are and write a quarter.
Why don't you just write that the eighth is smaller?
How about you just write down the quarter?
Can we please agree what an eighth is?
I would be so happy if you told me why a quarter is bigger.
For my sake, Maya, what is an eighth?
Oh sure, and why not make the eighth a hundred?
Yeah right, how would the eighth be bigger?
Brilliant, Maya, and which genius taught you about the eighth?
You do know why the eighth is smaller, don't you?
Surely you can see that a quarter is more?
So you agree the eighth is less, yes?
Is it clear now why an eighth is smaller?
Are we all happy with why the eighth is smaller?
Isn't that why an eighth is smaller?
Didn't we learn yesterday how to compare a quarter and an eighth?
Must I explain the eighth again?
Do I have to tell you again why a quarter is bigger?
Why is it always you who mixes up the quarter and the eighth?
What were you thinking, writing an eighth there?
Nobody asked you why the eighth is bigger.
I won't ask why you put the eighth first.
Please, Maya, just believe me about the eighth, will you?
No questions about why, a quarter is bigger.
As if an eighth could be bigger, what next?
Can everyone see why the eighth goes here?
Ana, you know which is bigger, the quarter, correct?
Wouldn't you say an eighth is smaller?
Does that make sense about the eighth?
"""

REASON = """
Why do you think an eighth is bigger?
Maya, why are you so sure about the eighth?
What makes you so sure about the eighth?
Are you sure about the eighth, and how could you check it against a quarter?
Are you sure? How could you check the eighth against a quarter?
You sound sure about the eighth. What would the strip show?
How do you know that a quarter is bigger?
What would happen to each piece if eight people shared the cake?
Do you really get more cake if you cut it in eight pieces?
Is it true that more pieces means more cake?
Does each piece get bigger if we cut the strip again?
Can you see how many pieces there are?
Can you explain why the eighth is smaller?
Can you show us a quarter and an eighth on the same strip?
Could you compare a quarter with an eighth for us?
Do you agree with Tom about the eighth, and why?
Do you agree with Tom about the eighth, or would you cut it differently, and how?
I don't see it yet. How did you get the eighth?
I'm not sure I follow, why is the eighth bigger?
Don't tell me yet, but which piece would you rather eat?
Don't rush, how many quarter pieces fit on one half?
Fold the strip once more, okay, and which is longer now, the quarter or the eighth?
Compare an eighth with a quarter, and tell me which is longer, okay?
Which would you rather have, an eighth or a quarter of the cake?
You wrote "an eighth is bigger". What would Tom's strip say?
Tom asked "why not nine pieces?" - how would each piece change then?
What if we cut each quarter in two, what is one piece called?
Why might somebody say that an eighth is bigger?
Imagine you are hungry: a quarter or an eighth?
How did Tom see that the pieces get smaller?
Look at both strips. Where is the eighth longer than the quarter?
When is a piece bigger, with four or with eight people?
Which reason for the quarter convinces you more, Tom's or Ana's?
What is your reason for the quarter?
Who can say in their own words what an eighth is?
Draw me a quarter and an eighth of the same bar, please?
Why would a quarter be more than an eighth?
Okay, so how did you decide on an eighth, Maya?
What do you notice about the size of each piece?
Is an eighth always smaller than a quarter, even of different cakes?
Before you are sure, test it: how many eighth pieces cover a quarter?
Tom isn't sure. How would you explain the eighth to him?
Can you find two ways to show a quarter?
Do you agree or disagree about the eighth, and what is your reason?
If each of you got one piece, who would get more?
I can't see it. Where is the eighth on your line?
Which is further from zero, the quarter or the eighth, and how do you know?
Would you still pick the eighth if you were hungry?
Tell me how you cut the eighth.
What else could the quarter be called?
Suppose nine people come. What happens to each piece?
Do you understand Tom's drawing of the quarter, and how would you change it?
"""

# Written after the patterns were finished, tried once; nothing was changed on account of them.
LATER_NO_REASON = """
Everybody with me on the eighth?
You all got how the quarter works, yeah?
Tom, did you hear why the eighth is smaller?
So that's why an eighth is smaller, see?
Shall I tell you why a quarter is bigger?
Would you please just write an eighth?
What did we say yesterday about why the eighth is smaller?
Will you stop asking which piece is bigger?
I don't want to hear why you think the eighth is bigger.
Seriously, Maya, an eighth?
Who told you that an eighth is bigger, your little sister?
Since when is an eighth bigger than a quarter?
Do you want me to explain the eighth again?
Couldn't be easier, an eighth, could it?
You remember what an eighth is, I hope?
How hard can a quarter be?
"""

LATER_REASON = """
And what makes an eighth smaller, Ana?
Where have you seen a quarter before?
Maya, Tom says an eighth is less. What do you say to him?
Has anybody a picture in mind of an eighth?
So, from your drawing, which piece is larger?
Could both of you be right about the quarter?
Is there a cake where an eighth is larger?
What did you count when you wrote eighth?
Let's slow down: what does the eight in one eighth tell us?
Can someone put the quarter into other words?
Would it still be a quarter if the pieces were not the same size?
How might we check which piece is bigger without cutting?
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def convinces(said: str, moves: tuple[Move, ...]) -> bool:
    return hear(said, moves, ["Maya", "Tom", "Ana"], None).convinces(BELIEF)


def every_move(said: str) -> tuple[Move, ...]:
    """As a detector would that takes each sentence for every move that asks something."""
    return tuple(Move(id, said[one.start : one.end], one.start, one.end) for one in clauses(said) for id in SPOKEN)


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(set(lines(NO_REASON))) >= 50 and len(set(lines(REASON))) >= 30


@pytest.mark.parametrize("said", lines(NO_REASON))
def test_what_only_sounds_like_a_question_for_a_reason_moves_no_mind(said: str) -> None:
    assert not convinces(said, every_move(said))
    assert not convinces(said, detect(said))


@pytest.mark.parametrize("said", lines(REASON))
def test_a_question_that_asks_for_thinking_still_does(said: str) -> None:
    assert convinces(said, every_move(said))


def test_most_of_those_questions_are_found_in_the_teachers_words_too() -> None:
    found = [convinces(said, detect(said)) for said in lines(REASON)]
    assert sum(found) >= 0.7 * len(found)


def test_on_lines_written_afterwards_hardly_one_passes_that_gives_no_reason() -> None:
    """Through the real detector 1 of 16 did when this was written, and no question for thinking was turned down."""
    assert sum(convinces(said, detect(said)) for said in lines(LATER_NO_REASON)) <= 1
    assert all(convinces(said, every_move(said)) for said in lines(LATER_REASON))


def test_in_other_words_than_english_what_is_handed_in_counts() -> None:
    said = "¿Estás segura de que un eighth es más grande?"
    assert hear(said, every_move(said), ["Maya"], None, "es-MX").convinces(BELIEF)
    assert not hear(said, every_move(said), ["Maya"], None).convinces(BELIEF), "in an English scene it asks for nothing"
