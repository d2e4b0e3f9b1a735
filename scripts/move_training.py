"""How the weights of the move detector are learned from the public sets, for `train-move-detector` and for its bench.

Steps: how much each word says -> for each task a linear model over facts of the two texts and over what the embedder makes of
them -> the embedder's part spelled out in words and pairs of words, so that no embedder is needed later -> for each task the
settings that are best by cross-validation over pupils' lines, where neither the model nor its spelling has seen a text of the
rows that it is tried on -> the weights, in small whole numbers. `crossed` does all of it anew without one fifth of the rows
after the other, so that every row is judged once by weights that never saw it.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import move_data
import numpy as np
import pair_training
import scipy.sparse as sparse
from move_data import PARTS, TASKS, Rows, chosen, macro_f1, offsets, rows, uptake_shares
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from appliance.practice import clauses as clause_splitting
from appliance.practice import listening, pairs
from appliance.practice.clauses import clauses, words
from appliance.practice.listening import OUTPUTS, Tables, features, grams, stem

ROOT = Path(__file__).resolve().parents[1]
WORDS = 6_000  # whose meaning is asked for one by one, besides the sentences
SPOKEN, WRITTEN = 8_000, 3_000  # sentences of other texts, so that words are met that no row holds
LONGEST = 240  # characters of a text that the embedder reads
PAIRS = 8  # texts in which two neighbours must stand to be told apart from the words alone
HELD_BACK = 2.0  # how strongly what words say here is drawn towards what they say alone
STEPS = 40
FOLDS = 5
RATERS, DISPUTED = 3, 0.4  # who all gave a row its label on the task; what a row counts for where one of them did not
LEAST = 0.15  # of the scale of a feature that leans to no side
LEVELS = 31  # whole numbers up to this stand for weights
# For each task the groups of features with their scales, and the strengths, that are tried.
DESIGNS: dict[str, list[dict[str, float]]] = {
    "uptake": [{"t": 2, "p": 1, "s": 1, "o": 1}, {"s": 1, "o": 1}, {"s": 1, "o": 1, "u": 2, "v": 2}],
    "pupil on task": [{"u": 1, "v": 1}, {"u": 1, "v": 1, "o": 0.3}],
    "teacher on task": [{"u": 1, "v": 1}, {"u": 1, "v": 1, "o": 0.3}],
    "tutor actions": [
        {"t": 2, "p": 1, "s": 1, "o": 1, "q": 2, "m": 2},
        {"t": 2, "p": 1, "s": 1, "o": 1, "q": 2},
    ],
}
STRENGTHS = {
    "uptake": (0.05, 0.1, 0.3),
    "pupil on task": (0.3, 1, 3),
    "teacher on task": (0.3, 1, 3),
    "tutor actions": (0.05, 0.1),
}
ENOUGH = {"t": 3, "p": 3, "s": 2, "o": 1, "q": 4, "m": 4, "u": 1, "v": 1}  # rows in which a feature must stand


# --- what words say and mean -----------------------------------------------------------------------------------------------
def rarity(texts: list[str]) -> tuple[dict[str, float], float]:
    counts = Counter(one for text in texts for one in {stem(word) for word in words(text)})
    return (
        {one: round(math.log((len(texts) + 1) / (count + 0.5)) / 4, 2) for one, count in sorted(counts.items()) if count > 1},
        round(math.log((len(texts) + 1) / 1.5) / 4, 2),
    )


def texts(data: Path, train: Rows) -> dict[str, str]:
    """What the embedder reads -> the pupil's line of its row, "" for speech and exercises from other open texts.

    Of the rows for learning: both texts, their sentences, runs of their words, and some with words left out: what a word adds
    shows best where it is missing.
    """
    draw = random.Random(7)
    found: dict[str, str] = {}
    for pupil, teacher in zip(train.pupil, train.teacher, strict=True):
        for text in (pupil, teacher):
            parts = [text[one.start : one.end] for one in clauses(text)]
            spoken = text.split()
            said = [text, *parts, *(f"{one} {other}" for one, other in pairwise(parts))]
            if len(spoken) > 3:
                for _ in range(4 if len(spoken) > 5 else 1):
                    size = draw.randint(3, min(20, len(spoken)))
                    start = draw.randint(0, len(spoken) - size)
                    said.append(" ".join(spoken[start : start + size]))
                for _ in range(2 if len(spoken) > 5 else 1):
                    said.append(" ".join([word for word in spoken if draw.random() > 0.25][:40]))
            for one in said:
                if one.strip() and len(one) <= LONGEST:
                    found.setdefault(one, pupil)
    with (data / "examples" / "bridge.jsonl").open(encoding="utf-8") as file:
        talk = sorted({message["content"][:LONGEST] for line in file for message in json.loads(line)["messages"]})
    books = {path.name.lower(): path.read_text("utf-8", "ignore").replace("\n", " ") for path in (data / "text").glob("*.txt")}
    named = sorted(books)
    novel = " ".join(books[name] for name in named if "war" in name)
    algebra = " ".join(books[name] for name in named if "alg" in name)
    speech = sorted(set(re.findall(r'[“"]([^”"]{8,160})[”"]', novel)))
    exercises = sorted({one for one in re.split(r"(?<=[.?!])\s+", algebra) if 15 < len(one) < 160})
    for some, most in ((talk, len(talk)), (speech, SPOKEN), (exercises, WRITTEN)):
        for one in draw.sample(some, min(len(some), most)):
            found.setdefault(one, "")
    return found


def vocabulary(data: Path, own: Iterable[str]) -> list[str]:
    counts = Counter({word: 3 for text in own for word in words(text)})
    for path in sorted((data / "text").glob("*.txt")):
        counts.update(words(path.read_text("utf-8", "ignore")[:1_500_000]))
    return [word for word, _ in counts.most_common(WORDS) if not word.isdigit()]


class Meaning:
    """What the embedder makes of texts, and what a direction in its space comes to in words and pairs of words."""

    def __init__(self, data: Path, train: Rows, every: Sequence[str], kept: Path | None) -> None:
        read = texts(data, train)
        single = vocabulary(data, read)
        counts = Counter(gram for text in read for gram in grams(words(text)))
        known = set(single)
        self.names = [
            *single,
            *sorted(gram for gram, count in counts.items() if " " in gram and gram not in known and count >= PAIRS),
        ]
        # A word counts for less the more often it stands in texts as many as the rows and a novel's speech have.
        self.common = {name: round(1 / (1 + 40 * counts[name] / len(read)), 3) for name in self.names}
        self._place = {name: at for at, name in enumerate(self.names)}
        self._lines = np.array(list(read.values()), object)
        self._vectors = _embedded([*read, *single, *every], kept)
        self._bags = self.bags([*read])
        self._whole = self.of([*read])
        alone = self.of(single)
        self._alone = np.vstack([alone - alone.mean(0), np.zeros((len(self.names) - len(single), alone.shape[1]))])

    def of(self, said: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.stack([self._vectors[text] for text in said])

    def spelled(self, directions: np.ndarray[Any, Any], without: frozenset[str] = frozenset()) -> np.ndarray[Any, Any]:
        """names x directions: ridge regression around what each word comes to alone. without: pupils' lines of unread rows."""
        read = np.array([line not in without for line in self._lines])
        bags, wanted = self._bags[read], self._whole[read] @ directions
        wanted = wanted - wanted.mean(0)
        start = self._alone @ directions
        guess = bags @ start
        share = (guess * wanted).sum(0) / (guess**2).sum(0)
        back = bags.T.tocsr()
        found = np.zeros_like(start)
        rest = back @ (wanted - share * guess)
        step, size = rest, (rest**2).sum(0)
        for _ in range(STEPS):  # of conjugate gradients
            moved = back @ (bags @ step) + HELD_BACK * step
            far = size / ((step * moved).sum(0) + 1e-12)
            found, rest = found + far * step, rest - far * moved
            now = (rest**2).sum(0)
            step, size = rest + now / (size + 1e-12) * step, now
        return np.asarray(share * start + found)

    def bags(self, texts: Sequence[str]) -> Any:
        at, place, value = [], [], []
        for row, text in enumerate(texts):
            found = [gram for gram in sorted(grams(words(text[: listening.LONGEST]))) if gram in self._place]
            size = math.sqrt(sum(self.common[gram] ** 2 for gram in found)) or 1.0
            at += [row] * len(found)
            place += [self._place[gram] for gram in found]
            value += [self.common[gram] / size for gram in found]
        return sparse.csr_matrix((value, (at, place)), shape=(len(texts), len(self.names)))


def _embedded(texts: Sequence[str], kept: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """text -> vector. kept: a file of this script with those of an earlier run."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    if kept is not None and kept.is_file():
        with np.load(kept, allow_pickle=False) as old:
            found = dict(zip(json.loads(old["texts"].tobytes()), old["vectors"], strict=True))
    order = sorted({*texts} - {*found}, key=lambda text: (len(text), text))
    if order:
        from appliance.engine.embedder import Embedder

        embed = Embedder().embed
        for start in range(0, len(order), 128):
            some = order[start : start + 128]
            found |= dict(zip(some, np.asarray(embed(some)), strict=True))
        if kept is not None:
            names = np.frombuffer(json.dumps([*found]).encode(), np.uint8)
            np.savez(kept, texts=names, vectors=np.stack([*found.values()]))
    return found


# --- one task --------------------------------------------------------------------------------------------------------------
class Learner:
    """Features of the rows of a task in a design: sparse facts, and the meaning of both texts as dense columns."""

    def __init__(self, design: dict[str, float], facts: list[dict[str, float]], dense: dict[str, np.ndarray[Any, Any]]) -> None:
        self.design = design
        self._facts = [
            {name: value * design[name[0]] for name, value in one.items() if name[0] in design and name[0] not in "uv"}
            for one in facts
        ]
        self._dense = [(name, dense[name] * design[name]) for name in "uv" if name in design]
        self.names: list[str] = []

    def columns(self, learn: Any, ask: Any) -> tuple[Any, Any]:
        """Of the rows `learn` and of the rows `ask`, by what stands often enough in the former."""
        parts = []
        if any(name not in "uv" for name in self.design):
            counts = Counter(name for at in learn for name in self._facts[at])
            maker = DictVectorizer(dtype=np.float64)
            first = maker.fit_transform(
                [{name: value for name, value in self._facts[at].items() if counts[name] >= ENOUGH[name[0]]} for at in learn]
            )
            parts.append((first, maker.transform([self._facts[at] for at in ask])))
            self.names = list(maker.get_feature_names_out())
        parts += [(sparse.csr_matrix(values[learn]), sparse.csr_matrix(values[ask])) for _, values in self._dense]
        made = [sparse.hstack(side).tocsr() for side in zip(*parts, strict=True)]
        for one in made:
            one.indices, one.indptr = one.indices.astype(np.int32), one.indptr.astype(np.int32)
        return made[0], made[1]


def fit(values: Any, of: Rows, learn: Any, strength: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights (features x outputs) and biases. Rows on which raters did not all agree count for less."""
    if of.shares is not None:
        shares = of.shares[learn]
        shares = shares * (shares.sum() / 3 / shares.sum(0))
        label = np.repeat(np.arange(3), len(learn))
        weight = shares.T.ravel()
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(sparse.vstack([values] * 3).tocsr()[weight > 0], label[weight > 0], sample_weight=weight[weight > 0])
        return model.coef_.T, model.intercept_
    targets = of.labels[learn] if of.labels.ndim == 2 else of.labels[learn][:, None]
    counts = None if of.agreed is None else np.where(of.agreed[learn] >= RATERS, 1.0, DISPUTED)
    weights, biases = [], []
    for target in targets.T:
        leans = of.labels.ndim == 2
        scale = leaning(values, target) if leans else np.ones(values.shape[1])
        solver = "liblinear" if leans else "lbfgs"  # the former for thousands of words, the latter for dense columns
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, solver=solver)
        model.fit(values @ sparse.diags(scale), target, sample_weight=counts)
        weights.append(model.coef_.T * scale[:, None])
        biases.append(model.intercept_)
    return np.hstack(weights), np.concatenate(biases)


def leaning(values: Any, target: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How much each feature alone leans to one side: the log of the ratio of its shares (Wang and Manning 2012).

    A rare action has few rows; what is as frequent with it as without it then draws no weight.
    """
    size = abs(values)
    shares = [1 + np.asarray(size[target == side].sum(0)).ravel() for side in (0, 1)]
    without, with_it = (one / one.sum() for one in shares)
    return np.asarray(LEAST + np.abs(np.log(with_it / without)))


def spread(learner: Learner, weights: np.ndarray[Any, Any], meaning: Meaning, without: frozenset[str]) -> dict[str, Any]:
    """Weights by feature's name, those of the embedder's columns spelled out."""
    design = learner.design
    found = {name: row * design[name[0]] for name, row in zip(learner.names, weights, strict=False)}
    sides = [side for side in "uv" if side in design]
    if sides:
        dense = weights[len(learner.names) :].reshape(len(sides), -1, weights.shape[1])
        rows = meaning.spelled(np.hstack([*dense]), without)
        for number, side in enumerate(sides):
            part = rows[:, number * weights.shape[1] : (number + 1) * weights.shape[1]] * design[side]
            found |= {f"{side}:{name}": row for name, row in zip(meaning.names, part, strict=True)}
    return found


def unseen(
    learner: Learner, of: Rows, strength: float, meaning: Meaning, bags: dict[str, Any], without: frozenset[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores of each row, in words alone, by a model that has seen no row of the same pupil's line."""
    groups = {text: number for number, text in enumerate(dict.fromkeys(of.pupil))}
    found: list[Any] = [None] * len(of.pupil)
    for learn, ask in GroupKFold(FOLDS).split(of.pupil, groups=[groups[text] for text in of.pupil]):
        first, second = learner.columns(learn, ask)
        weights, bias = fit(first, of, learn, strength)
        facts = len(learner.names)
        scores = second[:, :facts] @ weights[:facts] + bias
        if any(side in learner.design for side in "uv"):
            by_name = spread(learner, weights, meaning, without | {of.pupil[at] for at in ask})
            for side in "uv":
                if side in learner.design:
                    scores = scores + bags[side][ask] @ np.stack([by_name[f"{side}:{name}"] for name in meaning.names])
        for at, row in zip(ask, scores, strict=True):
            found[at] = row
    return np.array(found)


def learn(
    task: str, of: Rows, tables: Tables, meaning: Meaning, without: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], Any]:
    """Weights by feature's name and biases of a task. without: pupils' lines of rows that stay unread."""
    judged = np.arange(len(of.pupil)) if of.shares is None else np.flatnonzero(of.labels >= 0)
    facts = [features(said, heard, tables) for said, heard in zip(of.teacher, of.pupil, strict=True)]
    dense, bags = {}, {}
    if any("u" in design for design in DESIGNS[task]):
        dense = {"u": meaning.of(of.teacher), "v": meaning.of(of.pupil)}
        bags = {"u": meaning.bags(of.teacher), "v": meaning.bags(of.pupil)}
    tried = []
    for design in DESIGNS[task]:
        for strength in STRENGTHS[task]:
            scores = unseen(Learner(design, facts, dense), of, strength, meaning, bags, without)
            truth = of.labels[judged]
            shown = scores[judged] if scores.shape[1] > 1 else scores[judged, 0]
            add = offsets(truth, shown)
            value = macro_f1(truth, chosen(shown + add))
            print(
                f"{task:16} {design} strength {strength}: {macro_f1(truth, chosen(shown)):.3f}, with offsets {value:.3f}",
                flush=True,
            )
            tried.append((value, len(tried), design, strength, add))
    _, _, design, strength, add = max(tried, key=lambda one: (one[0], -one[1]))
    learner = Learner(design, facts, dense)
    every = np.arange(len(of.pupil))
    values, _ = learner.columns(every, every[:1])
    weights, bias = fit(values, of, every, strength)
    return spread(learner, weights, meaning, without), bias + add


def save(path: Path, tables: Tables, learned: list[tuple[dict[str, Any], Any]]) -> None:
    """Small whole numbers, with a scale for each group of features and output."""
    # The same words of both texts side by side: it is smaller so.
    names = sorted({name for weights, _ in learned for name in weights}, key=lambda name: (name[2:], name[0]))
    place = {name: at for at, name in enumerate(names)}
    every = np.zeros((len(names), len(OUTPUTS)), np.float32)
    start = 0
    for weights, bias in learned:
        for name, row in weights.items():
            every[place[name], start : start + len(bias)] = row
        start += len(bias)
    groups = sorted({name[0] for name in names})
    scale = np.zeros((len(groups), len(OUTPUTS)), np.float32)
    for number, group in enumerate(groups):
        mine = np.array([name[0] == group for name in names])
        top = np.quantile(np.abs(every[mine]), 0.9995, axis=0) / LEVELS
        scale[number] = np.where(top > 0, top, 1)
        every[mine] = np.clip(np.round(every[mine] / scale[number]), -LEVELS, LEVELS)
    kept = (np.abs(every).max(1) >= 2) | np.array([name[0] in "uv" for name in names])
    np.savez_compressed(
        path,
        names=np.frombuffer("\n".join(name for name, keep in zip(names, kept, strict=True) if keep).encode(), np.uint8),
        groups=np.frombuffer("\n".join(groups).encode(), np.uint8),
        tables=np.frombuffer(
            json.dumps(
                {
                    "rarity": tables.rarity,
                    "common": {name: value for name, value in tables.common.items() if value < 0.97},
                    "rarest": tables.rarest,
                },
                separators=(",", ":"),
            ).encode(),
            np.uint8,
        ),
        scale=scale,
        weights=every[kept].astype(np.int8),
        bias=np.concatenate([bias for _, bias in learned]).astype(np.float32),
    )
    print(f"{path.relative_to(ROOT)}: {kept.sum()} of {len(names)} weights, {path.stat().st_size // 1000} kB")


def gathered(data: Path, kept: Path | None, parts: Sequence[int]) -> tuple[Rows, Meaning]:
    """Rows of these parts, and the embedder's reading of them and of other texts. Only what is learned from is spelled out."""
    train, graded = rows(data, "pupil on task", parts), uptake_shares(data, parts)
    spelled = rows(data, "pupil on task", PARTS[1:])
    return train, Meaning(data, spelled, [*train.pupil, *train.teacher, *graded.pupil, *graded.teacher], kept)


def tables_of(train: Rows, meaning: Meaning) -> Tables:
    rare, rarest = rarity([f"{one} {other}" for one, other in zip(train.pupil, train.teacher, strict=True)])
    return Tables(rare, meaning.common, rarest)


def learned_from(data: Path, task: str, parts: Sequence[int]) -> Rows:
    return uptake_shares(data, parts) if task == "uptake" else rows(data, task, parts)


def crossed(data: Path, kept: Path | None) -> dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """For each task and part of the rows: what they are labelled and what weights say that were learned from the others.

    kept: where the vectors are kept, and beside it, in a file for each part, what was found: a run that was cut off goes on.
    """
    found: dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {task: [] for task in TASKS}
    meaning: Meaning | None = None
    for part in PARTS:
        file = kept.with_name(f"{kept.stem}-without-{part}.npz") if kept else None
        scores = _found_before(file, data)
        if not scores:
            meaning = meaning or gathered(data, kept, PARTS)[1]
            scores = _scores(data, part, meaning)
            if file:
                np.savez(file, made_from=_made_from(data), **scores)
        for task in TASKS:
            said = scores[f"{task}/linear"]
            if kind := pair_training.KIND.get(task):
                said = listening.PAIRED[kind][1] * said + scores[f"{task}/pairs"]
            found[task].append((rows(data, task, [part]).labels, chosen(said if said.shape[1] > 1 else said[:, 0])))
    return found


def _scores(data: Path, part: int, meaning: Meaning) -> dict[str, np.ndarray[Any, Any]]:
    """What each of the two models says of the rows of this part, learned from the other parts."""
    others = [one for one in PARTS if one != part]
    tables = tables_of(rows(data, "pupil on task", others), meaning)
    readers = pairs.Reader({kind: pair_training.changes(data, kind, others) for kind in listening.PAIRED})
    found: dict[str, np.ndarray[Any, Any]] = {}
    for task in TASKS:
        held = rows(data, task, [part])
        weights, bias = learn(task, learned_from(data, task, others), tables, meaning, frozenset(held.pupil))
        found[f"{task}/linear"] = np.array(
            [score(weights, bias, said, heard, tables) for said, heard in zip(held.teacher, held.pupil, strict=True)]
        )
        if task in pair_training.KIND:
            found[f"{task}/pairs"] = pair_training.scores(readers, task, held)
    return found


def _found_before(file: Path | None, data: Path) -> dict[str, np.ndarray[Any, Any]]:
    if file is None or not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as old:
        return {name: old[name] for name in old.files} if str(old["made_from"]) == _made_from(data) else {}


def _made_from(data: Path) -> str:
    """A digest of all that the scores depend on: the rows, and what learns from them and reads them."""
    learns = [Path(str(one.__file__)) for one in (move_data, pair_training, listening, clause_splitting, pairs)]
    files = [Path(__file__), *learns, *sorted((data / "teaching-moves").iterdir())]
    return hashlib.sha256(b"".join(hashlib.sha256(one.read_bytes()).digest() for one in files)).hexdigest()


def score(weights: dict[str, Any], bias: Any, said: str, heard: str, tables: Tables) -> Any:
    values = features(said, heard, tables).items()
    return bias + sum((value * weights[name] for name, value in values if name in weights), np.zeros(len(bias)))
