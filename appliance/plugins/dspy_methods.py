"""DSPy's optimisers, each with what it may spend, and the search with one of them. Runs in `dspy_child`'s process alone.

Every score is remembered by the program that was rendered for it, so that a search whose budget ends in the middle still gives
the best program that was tried on all rows to choose by.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy

from appliance import prompts
from appliance.plugins import dspy_metrics, dspy_rows
from appliance.plugins.dspy_line import Broken, Over, Unfit
from appliance.plugins.dspy_program import REWRITING, House, Program, examples, language_model, outputs_of

if TYPE_CHECKING:
    from appliance.plugins.dspy_line import Line
    from appliance.plugins.dspy_rows import Row

BOOTSTRAPPED = 4  # demonstrations in the model's own words
SHOWN = 6  # demonstrations in all
MOST_CANDIDATES = 12
ENDLESS = 10**9  # a candidate whose answers keep to no form is a bad one, however many they are


class Scores:
    """The metric as DSPy calls it, and what it gave: for each program that was rendered, the score of each row."""

    def __init__(self, house: House, names: Sequence[str], rows: Sequence[Row], *, explain: bool) -> None:
        self._house, self._names, self._explain = house, tuple(names), explain
        self._rows = {row.id: row for row in rows}
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        del trace, pred_name, pred_trace
        try:
            outputs = outputs_of(self._house.base, prediction)
            scored = dspy_metrics.score(self._names, self._house.base, self._rows[example["row_id"]], outputs)
        except Exception as error:
            raise Broken("the metric") from error
        program = json.dumps(self._house.shown.as_program())
        self.found.setdefault(program, {})[example["row_id"]] = scored.value
        return dspy.Prediction(score=scored.value, feedback=scored.told or "Good.") if self._explain else scored.value

    def best(self, ids: Sequence[str]) -> dict[str, Any] | None:
        """The program with the highest mean over these rows, of those that were tried on all of them."""
        means = {
            program: sum(scores[id] for id in ids) / len(ids)
            for program, scores in self.found.items()
            if all(id in scores for id in ids)
        }
        if not means:
            return None
        best: dict[str, Any] = json.loads(max(means, key=lambda program: means[program]))
        return best


def search(order: Mapping[str, Any], line: Line) -> dict[str, Any]:
    """{"program", "tried", "spent"}: the best program, how many were scored, and whether the budget ended the search."""
    random.seed(order["seed"])
    base = prompts.from_program(order["program"])
    rows = {part: [dspy_rows.from_json(one) for one in order[part]] for part in ("train", "choose")}
    house = House(
        base, line, room=order["room"], tokens=order["tokens"], seed=order["seed"], subject=order["subject"],
        grade=order["grade"],
    )  # fmt: skip
    lm = language_model(line, order["seed"])
    dspy.configure(lm=lm, adapter=house, num_threads=1, max_errors=ENDLESS, provide_traceback=False, disable_history=True)
    scores = Scores(house, order["metric"], [*rows["train"], *rows["choose"]], explain=order["method"] == "gepa")
    train, choose = examples(house, rows["train"]), examples(house, rows["choose"])
    spent = False
    try:
        found = METHODS[order["method"]](Program(house), scores, train, choose, order["seed"], order["budget"], lm)
        made = house.module(found.answer.signature.instructions, found.answer.demos)
    except Over:
        best = scores.best([row.id for row in rows["choose"]])
        made, spent = prompts.from_program(best) if best else base, True
    except dspy.AdapterParseError:
        raise Unfit("it does not write instructions in the form that is asked for") from None
    return {"program": made.as_program(), "tried": len(scores.found), "spent": spent}


# --- the methods -------------------------------------------------------------------------------------------------------
def bootstrap(program: Any, scores: Scores, train: list[Any], _choose: list[Any], _seed: int, _budget: int, _lm: Any) -> Any:
    """Demonstrations: the model's own answers that scored well, and the examples' for the rest."""
    return dspy.BootstrapFewShot(
        metric=scores, metric_threshold=dspy_metrics.ENOUGH, max_bootstrapped_demos=BOOTSTRAPPED, max_labeled_demos=SHOWN,
        max_errors=ENDLESS,
    ).compile(program, trainset=train)  # fmt: skip


def random_search(program: Any, scores: Scores, train: list[Any], choose: list[Any], _seed: int, budget: int, _lm: Any) -> Any:
    """Many such sets of demonstrations, and none, and the examples' alone; the best on the rows to choose by."""
    each = len(choose) + min(len(train), 2 * BOOTSTRAPPED)
    return dspy.BootstrapFewShotWithRandomSearch(
        metric=scores, metric_threshold=dspy_metrics.ENOUGH, max_bootstrapped_demos=BOOTSTRAPPED, max_labeled_demos=SHOWN,
        num_candidate_programs=max(1, min(MOST_CANDIDATES, budget // each - 3)), num_threads=1, max_errors=ENDLESS,
        stop_at_score=100.0,
    ).compile(program, trainset=train, valset=choose)  # fmt: skip


def mipro(program: Any, scores: Scores, train: list[Any], choose: list[Any], seed: int, budget: int, lm: Any) -> Any:
    """Instructions that the model proposes, and sets of demonstrations, in the combinations that promise most."""
    candidates = max(2, min(6, budget // (4 * len(choose))))
    optimiser = dspy.MIPROv2(
        metric=scores, prompt_model=lm.copy(temperature=1.0), task_model=lm, auto=None, num_candidates=candidates,
        max_bootstrapped_demos=BOOTSTRAPPED, max_labeled_demos=SHOWN, num_threads=1, max_errors=ENDLESS, seed=seed or 1,
        metric_threshold=dspy_metrics.ENOUGH,
    )  # fmt: skip
    return optimiser.compile(
        program, trainset=train, valset=choose, num_trials=max(2, min(MOST_CANDIDATES, budget // len(choose) - 2)),
        minibatch=False, program_aware_proposer=False,
    )  # fmt: skip


def gepa(program: Any, scores: Scores, train: list[Any], choose: list[Any], seed: int, budget: int, lm: Any) -> Any:
    """Instructions that the model writes anew from what was wrong with its answers."""
    return dspy.GEPA(
        metric=scores, max_metric_calls=max(budget, len(choose) + 1),
        reflection_lm=lm.copy(temperature=1.0, max_tokens=REWRITING),
        reflection_minibatch_size=min(3, len(train)), num_threads=1, seed=seed, use_merge=False,
        add_format_failure_as_feedback=True, warn_on_score_mismatch=False,
    ).compile(program, trainset=train, valset=choose)  # fmt: skip


METHODS: Mapping[str, Callable[[Any, Scores, list[Any], list[Any], int, int, Any], Any]] = {
    "bootstrap": bootstrap, "random": random_search, "mipro": mipro, "gepa": gepa,
}  # fmt: skip
