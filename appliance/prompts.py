"""Named prompt programs: instructions, demonstrations, lesson and sources in, messages out.

`render` is a pure function of its arguments and the words in `content/modules/`. What a whole class shares (instructions,
lesson, demonstrations) comes first and word for word the same; sources and the question come last, in one message, the sources
fenced (see `fence`): no document can put a word before the first fence. An optimised version of a module is JSON with other
instructions or demonstrations (`as_program`, `from_program`); which one serves is for `programs` to say. It counts nothing and
cuts nothing: `chat` decides what fits.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance import forms
from appliance.engine.handler import Message, Source
from appliance.errors import BadInput, ModelUnavailable, NotFound
from appliance.fence import Fence
from appliance.forms import Field

CONTENT = Path(__file__).parent / "content" / "modules"
OPEN_FENCE = Fence()  # its tokens are the same on every box: for measuring models, not for people's questions
FORMAT = 1  # of a program's JSON
LONGEST_INSTRUCTIONS = 6_000
LONGEST_PROGRAM = 60_000
LONGEST_INPUT = 4_000
MOST_DEMONSTRATIONS = 8
PARTS = ("format", "module", "instructions", "demonstrations")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One worked example: what goes in, and what shall come out."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Module:
    """A prompt program. `name` is what optimisers and settings call it.

    form: "text" where the answer is plain words (there is one output), else "json". keep: a sentence that every version says.
    tokens: how long its answer may be, 0 for as long as any.
    """

    name: str
    instructions: str
    inputs: tuple[Field, ...] = (Field("question"),)
    outputs: tuple[Field, ...] = (Field("answer"),)
    demonstrations: tuple[Demonstration, ...] = ()
    form: str = "text"
    keep: str = ""
    tokens: int = 0

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of its answers; None where they are plain words."""
        return None if self.form == "text" else forms.schema(self.outputs)

    def asked(self, inputs: Mapping[str, Any]) -> str:
        """Inputs as the words of a question. What the module does not name is left out. Raises BadInput for a missing one."""
        if self.form == "text" and len(self.inputs) == 1:
            return str(inputs.get(self.inputs[0].name, "")).strip()
        return forms.written(inputs, self.inputs)

    def parse(self, text: str) -> dict[str, Any]:
        """The outputs in an answer. Raises BadInput where it does not keep to them."""
        return {self.outputs[0].name: text.strip()} if self.form == "text" else forms.parse(text, self.outputs)

    def messages(
        self,
        inputs: Mapping[str, Any],
        passages: Sequence[Source] = (),
        *,
        lesson: str = "",
        fence: Fence = OPEN_FENCE,
    ) -> list[Message]:
        """As `render`, of named inputs."""
        return self.render(self.asked(inputs), passages, lesson=lesson, fence=fence)

    def render(
        self,
        question: str,
        passages: Sequence[Source] = (),
        history: Sequence[Message] = (),
        *,
        subject: str | None = None,
        grade: str | None = None,
        lesson: str = "",
        note: str = "",
        fence: Fence = OPEN_FENCE,
    ) -> list[Message]:
        """Messages ending with the question. `passages` are numbered from 1 in the order given.

        lesson: what a whole class is told of today's lesson (see `lessons`): it stands with the instructions. note: what is
        told for this one answer: it stands behind the question, so that all before it stays the same for the class.
        """
        about = " ".join(part for part in (subject and f"Subject: {subject}.", grade and f"Grade: {grade}.") if part)
        form = "" if self.form == "text" else f"Answer only with JSON: {forms.described(self.outputs)}."
        system = "\n".join(part for part in (self.instructions, form, about, lesson) if part)
        last = with_sources(question, passages, fence) + (f"\n\n{note}" if note else "")
        return [Message("system", system), *self._shown(), *history, Message("user", last)]

    def _shown(self) -> list[Message]:
        """The demonstrations as a talk that went before."""
        found = []
        for one in self.demonstrations:
            said = (
                str(one.outputs[self.outputs[0].name]) if self.form == "text" else json.dumps(one.outputs, ensure_ascii=False)
            )
            found += [Message("user", self.asked(one.inputs)), Message("assistant", said)]
        return found

    def as_program(self) -> dict[str, Any]:
        """What an optimiser may change of it, as JSON that `from_program` reads."""
        shown = [{"inputs": dict(one.inputs), "outputs": dict(one.outputs)} for one in self.demonstrations]
        return {"format": FORMAT, "module": self.name, "instructions": self.instructions, "demonstrations": shown}

    async def within(self, room: int, count: Callable[[Sequence[Message]], Awaitable[int]]) -> Module:
        """This module with as many of its demonstrations as leave half of `room` tokens to the question; the last go first.

        Instructions of another's making that alone take more give way to those of the file. Where nothing can be counted, all
        of it stays: no model answers then.
        """
        module = self
        try:
            while module.demonstrations and await count(module.render("")) > room // 2:
                module = replace(module, demonstrations=module.demonstrations[:-1])
            own = module.demonstrations or module.instructions == load(self.name).instructions
            if own or await count(module.render("")) <= room // 2:
                return module
        except ModelUnavailable:
            return self
        return await load(self.name).within(room, count)


def with_sources(question: str, passages: Sequence[Source], fence: Fence = OPEN_FENCE) -> str:
    """The last message: numbered sources, then the question; the bare question where there are none."""
    return f"Sources:\n{fence.around(passages)}\n\nQuestion: {question}" if passages else question


# --- what stands in files --------------------------------------------------------------------------------------------------
def names() -> list[str]:
    return sorted(path.stem for path in CONTENT.glob("*.toml"))


@functools.cache
def load(name: str) -> Module:
    """The module of that name from `content/modules/`. Raises NotFound or BadInput."""
    path = CONTENT / f"{name}.toml"
    if not name.replace("_", "").isalnum() or not path.is_file():
        raise NotFound(f"There is no module called {name[:60]!r}.", f"Choose one of: {', '.join(names())}.")
    try:
        return _read(name, tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path} cannot be used: {error}.", "It needs `instructions` in quotes.") from None
    except BadInput as error:
        raise BadInput(f"{path} cannot be used. {error.message}", error.hint) from None


def _read(name: str, facts: Mapping[str, Any]) -> Module:
    fields = {part: forms.read(facts[part]) for part in ("inputs", "outputs") if part in facts}
    form = facts.get("form", "json" if "outputs" in facts else "text")
    bare = Module(
        name, facts["instructions"].strip(), form=form, keep=facts.get("keep", "").strip(), tokens=facts.get("tokens", 0)
    )
    bare = replace(bare, inputs=fields.get("inputs", bare.inputs), outputs=fields.get("outputs", bare.outputs))
    if bare.form not in ("text", "json") or (bare.form == "text" and len(bare.outputs) != 1):
        raise BadInput("The form has to be text, with one output, or json.", "Correct it.")
    wrong = _faulty_demonstrations(bare, facts.get("demonstrations", []))
    if wrong:
        raise BadInput(f"Its demonstrations are wrong: {forms.told(wrong)}.", "Correct them.")
    return replace(bare, demonstrations=_demonstrations(facts.get("demonstrations", [])))


# --- optimised versions ------------------------------------------------------------------------------------------------------
def from_program(program: str | Mapping[str, Any]) -> Module:
    """The module that a program's JSON makes of the file's. Raises BadInput with every fault, NotFound for an unknown module.

    What it does not say stays as in the file; it can say nothing but words: no path, no code, no other field.
    """
    facts = _facts(program)
    default = load(str(facts["module"]))
    wrong = [f"there is no part {str(part)[:40]!r}" for part in facts if part not in PARTS]
    instructions = facts.get("instructions", default.instructions)
    said = Field("instructions", letters=LONGEST_INSTRUCTIONS)
    wrong += forms.faults({"instructions": instructions}, [said])
    shown = facts.get("demonstrations", default.as_program()["demonstrations"])
    wrong += _faulty_demonstrations(default, shown)
    if wrong:
        raise BadInput(f"The program cannot be used: {forms.told(wrong)}.", "Correct that, or make it again.")
    told = instructions.strip()
    told = told if default.keep in told else f"{told} {default.keep}"
    return replace(default, instructions=told, demonstrations=_demonstrations(shown))


def _facts(program: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Its parts, once it is sure of which format and module it is."""
    try:
        text = program if isinstance(program, str) else json.dumps(program)
        facts = json.loads(text) if len(text) <= LONGEST_PROGRAM else None
    except (TypeError, ValueError, RecursionError):
        raise BadInput("The program is no JSON.", "Give the file as it was made.") from None
    if facts is None:
        raise BadInput(f"The program has {len(text)} characters; {LONGEST_PROGRAM} are taken.", "Use fewer demonstrations.")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or isinstance(facts.get("format"), bool):
        raise BadInput(f"The program is not of format {FORMAT}, which this release reads.", "Make it again with this release.")
    if not isinstance(facts.get("module"), str):
        raise BadInput("The program does not say for which module it is.", f"Choose one of: {', '.join(names())}.")
    return facts


def _faulty_demonstrations(module: Module, shown: Any) -> list[str]:
    if not isinstance(shown, list) or len(shown) > MOST_DEMONSTRATIONS:
        return [f"demonstrations have to be a list of at most {MOST_DEMONSTRATIONS}"]
    inputs = tuple(replace(one, letters=max(one.letters, LONGEST_INPUT)) for one in module.inputs)
    wrong = []
    for at, one in enumerate(shown, 1):
        if not isinstance(one, dict) or one.keys() != {"inputs", "outputs"}:
            wrong.append(f"demonstration {at} needs inputs and outputs, and nothing else")
            continue
        wrong += forms.faults(one["inputs"], inputs, f"the inputs of demonstration {at}")
        wrong += forms.faults(one["outputs"], module.outputs, f"the outputs of demonstration {at}")
    return wrong


def _demonstrations(shown: Sequence[Mapping[str, Any]]) -> tuple[Demonstration, ...]:
    return tuple(Demonstration(one["inputs"], one["outputs"]) for one in shown)


def render(
    question: str,
    passages: Sequence[Source] = (),
    history: Sequence[Message] = (),
    *,
    module: str = "teacher_responder",
    subject: str | None = None,
    grade: str | None = None,
    lesson: str = "",
    fence: Fence = OPEN_FENCE,
) -> list[Message]:
    """`Module.render` of the named module, as it stands in its file."""
    return load(module).render(question, passages, history, subject=subject, grade=grade, lesson=lesson, fence=fence)
