"""A prompt module of the house as a DSPy program whose every prompt the house itself renders.

DSPy sees a signature, instructions and demonstrations, and may change the latter two; what a model is shown for them comes
from `prompts.Module.render`, checked by the same rules and cut to the same room as when it serves. So what was optimised is
what is served, word for word. Hides how names are told apart that a module has on both sides, and DSPy's requests. Imported in
`dspy_child`'s process alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15

from appliance import forms, prompts
from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.forms import Field
from appliance.plugins.dspy_rows import Row

if TYPE_CHECKING:
    from appliance.plugins.dspy_line import Line
    from appliance.prompts import Module

MODEL = "school/served"
GIVEN = "_given"  # behind the name of an input that is an output, too
LONGEST_OWN = 4_000  # characters of an answer to a question of DSPy's own
REWRITING = 700  # tokens in which instructions may be thought over and written anew


class Engine:
    """Where DSPy's language model asks: the process outside. One answer a request, nothing remembered, nothing tried twice."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def complete(self, request: Any) -> Any:
        system = request.system or ""
        told = system if isinstance(system, str) else "".join(part.text for part in system)
        messages = [Message("system", told)] if told else []
        messages += [Message("assistant" if one.role == "assistant" else "user", one.text or "") for one in request.messages]
        config = request.config
        schema = (config.response_format or {}).get("schema")
        text = self._line.ask(
            messages, tokens=config.max_tokens or REWRITING, temperature=config.temperature or 0.0, seed=config.seed or 0,
            schema=schema,
        )  # fmt: skip
        return lm15.Response(
            id=None, model=MODEL, message=lm15.Message.assistant([lm15.TextPart(text)]), finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0),
        )  # fmt: skip

    def close(self) -> None: ...


def language_model(line: Line, seed: int) -> Any:
    return dspy.LM(
        MODEL, engine=Engine(line), cache=False, num_retries=0, temperature=0.0, max_tokens=REWRITING, seed=seed
    )  # fmt: skip


class House(dspy.Adapter):  # type: ignore[misc] # dspy is untyped
    """Renders and reads by the module for the module's own signature; for DSPy's own questions by a form.

    room: tokens that a prompt may take, 0 where nobody knows. shown: what was rendered last, for who keeps the scores.
    """

    def __init__(self, base: Module, line: Line, *, room: int, tokens: int, seed: int, subject: str, grade: str) -> None:
        super().__init__()
        self.base, self.shown = base, base
        self._line, self._room, self._tokens, self._seed = line, room, tokens, seed
        self._subject, self._grade = subject or None, grade or None
        both = {one.name for one in base.outputs}
        self.inputs = {f"{one.name}{GIVEN}" if one.name in both else one.name: one.name for one in base.inputs}
        self._made: dict[str, Module] = {}

    def signature(self) -> Any:
        about = {one.name: one.about for one in self.base.inputs}
        fields: dict[str, Any] = {
            name: (Any, dspy.InputField(desc=about[own] or own)) for name, own in self.inputs.items()
        }  # fmt: skip
        fields |= {one.name: (Any, dspy.OutputField(desc=one.about or one.name)) for one in self.base.outputs}
        return dspy.Signature(fields, self.base.instructions)

    def example(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **more: Any) -> Any:
        given = {name: inputs[own] for name, own in self.inputs.items() if own in inputs}
        return dspy.Example(**given, **outputs, **more).with_inputs(*given)

    def module(self, instructions: str, demonstrations: Iterable[Mapping[str, Any]]) -> Module:
        """The module that would serve for these, with as many demonstrations as leave room. Raises BadInput."""
        shown = [self._demonstration(one) for one in demonstrations][: prompts.MOST_DEMONSTRATIONS]
        facts = {"format": prompts.FORMAT, "module": self.base.name, "instructions": instructions}
        key = json.dumps([instructions, shown])
        if key not in self._made:
            good = [one for one in shown if _sound({**facts, "demonstrations": [one]})]
            made = prompts.from_program({**facts, "demonstrations": good})
            self._made[key] = asyncio.run(made.within(self._room, self._count)) if self._room else made
        return self._made[key]

    async def _count(self, messages: Sequence[Message]) -> int:
        return self._line.count(messages)

    def _demonstration(self, one: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {own: one[name] for name, own in self.inputs.items() if one.get(name) not in (None, "")}
        return {"inputs": inputs, "outputs": {each.name: one[each.name] for each in self.base.outputs if each.name in one}}

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if {*signature.fields} != {*self.inputs, *(one.name for one in self.base.outputs)}:
            return [self._foreign(lm, {**lm.kwargs, **lm_kwargs}, signature, inputs)]
        module = self.shown = self.module(signature.instructions, demos)
        own = {name: inputs[given] for given, name in self.inputs.items() if given in inputs}
        first, *rest = module.render(module.asked(own), subject=self._subject, grade=self._grade)
        talk = tuple(getattr(lm15.Message, one.role)(one.content) for one in rest)
        form = {"response_format": {"type": "json_schema", "schema": module.schema}} if module.schema else {}
        config = lm15.Config(max_tokens=self._tokens, **self._drawn({**lm.kwargs, **lm_kwargs}), **form)
        request = lm15.Request(model=lm.model, system=first.content, messages=talk, config=config)
        return [_read(signature, lm(request).message.text or "", module.parse)]

    def _drawn(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy, as it serves, unless DSPy asks for another draw: then by a seed of that draw."""
        return {"temperature": float(options.get("temperature") or 0), "seed": self._seed + (options.get("rollout_id") or 0)}

    def _foreign(self, lm: Any, options: Mapping[str, Any], signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A question of DSPy's own, held to a form: a small model keeps to a schema where it does not keep to headings."""
        wanted = [Field(name, _about(one), letters=LONGEST_OWN) for name, one in signature.output_fields.items()]
        told = f"{signature.instructions}\nAnswer only with JSON: {forms.described(wanted)}."
        given = "\n\n".join(f"{name}:\n{inputs[name]}" for name in signature.input_fields if inputs.get(name))
        form = {"type": "json_schema", "schema": forms.schema(wanted)}
        config = lm15.Config(max_tokens=REWRITING, response_format=form, **self._drawn(options))
        request = lm15.Request(model=lm.model, system=told, messages=(lm15.Message.user(given or "Go."),), config=config)
        return _read(signature, lm(request).message.text or "", lambda text: forms.parse(text, wanted))


def _read(signature: Any, answer: str, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    try:
        return parse(answer)
    except BadInput as error:
        raise dspy.AdapterParseError("House", signature, answer, message=error.message) from None


def _about(field: Any) -> str:
    """What DSPy says of a field; nothing where it says only its name again."""
    about = str((field.json_schema_extra or {}).get("desc") or "")
    return "" if about.startswith("${") else about


def _sound(facts: Mapping[str, Any]) -> bool:
    try:
        prompts.from_program(facts)
    except BadInput:
        return False
    return True


class Program(dspy.Module):  # type: ignore[misc]
    """One question to the module, with the demonstrations that it has in its file."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.answer = dspy.Predict(house.signature())
        self.answer.demos = [house.example(one.inputs, one.outputs) for one in house.base.demonstrations]

    def forward(self, **inputs: Any) -> Any:
        return self.answer(**inputs)


def outputs_of(module: Module, prediction: Any) -> dict[str, Any]:
    return {one.name: prediction.get(one.name) for one in module.outputs}


def examples(house: House, rows: Iterable[Row]) -> list[Any]:
    """DSPy's examples; `row_id` is no input, and says which row it was."""
    return [house.example(row.inputs, row.outputs, row_id=row.id) for row in rows]
