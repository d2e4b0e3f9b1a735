"""Fault case 44: kill -9 at fifty random moments, also inside a save, and the weights are those of an unbroken run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.tuning.recipe import Recipe

# Trains in forks of a process that has imported everything, so that fifty kills do not cost fifty starts. Argument: a job.
KILLED = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
from appliance import network
network.stay_offline()
import torch, transformers, peft, trl.chat_template_utils
from appliance.tuning import checkpoints, loading, packing, preference, trainer
from appliance.tuning.recipe import Recipe

job = json.loads(sys.argv[1])
folder, whole = Path(job["folder"]), Path(job["whole"])

def attempt(place, after, in_save):
    def die(seconds):
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    if after is not None and not in_save:
        die(after)
    fresh = checkpoints.fresh_draft
    def draft(place):
        if in_save and draw.random() < 0.5:
            die(draw.random() * 0.02)
        return fresh(place)
    checkpoints.fresh_draft = draft
    torch.set_num_threads(1)
    base = Path(job["base"])
    model, tokenizer = loading.load_base(base), loading.load_tokenizer(base)
    made = trainer.build(model, tokenizer, job["train"], Recipe(**job["recipe"]), place, micro_batch=4,
                         report=lambda *_: None, held_out=job["held_out"])
    facts = trainer.run(made, checkpoints.newest(place / "checkpoints"))
    trainer.save_adapter(made.model, place / "adapter")
    (place / "facts.json").write_text(json.dumps(facts))

def child(place, after=None, in_save=False):
    global draw
    pid = os.fork()
    if pid == 0:
        draw = random.Random(os.getpid() * 7919 + int(time.time() * 1000))
        try:
            attempt(place, after, in_save)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a run failed")
    return os.WIFSIGNALED(status)

started = time.monotonic()
child(whole)
length = time.monotonic() - started
draw = random.Random(5)
kills = inside = runs = 0
while kills < job["kills"]:
    place = folder / str(runs)
    in_save = kills % 2 == 0
    if child(place, draw.random() * length, in_save):
        kills += 1
        left = place / "checkpoints" / checkpoints.DRAFT
        inside += left.is_dir() and any(left.iterdir())
    else:
        runs += 1
child(folder / str(runs))
print(json.dumps({"kills": kills, "inside": inside, "runs": runs + 1}))
"""


def backwards(talk: list[dict[str, str]]) -> list[dict[str, str]]:
    """Held-out conversations that the others help with for a while, and then no more."""
    return [turn | {"content": " ".join(reversed(turn["content"].split()))} for turn in talk]


@pytest.mark.long
def test_fifty_kills_at_any_moment_change_no_weight(tiny: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """With packing and early stopping, half of the kills inside a save; every run ends in the unbroken run's bytes."""
    talks = [row["messages"] for row in rows[:16]]
    recipe = Recipe(
        rank=8, alpha=64, dropout=0.2, rate=2e-2, warmup=0, epochs=12, batch=4, length=128, checkpoint_every=1, patience=4
    ).to_json()
    job = {"base": str(tiny), "folder": str(tmp_path / "broken"), "whole": str(tmp_path / "whole"), "kills": 50}
    job |= {"recipe": recipe, "train": talks[:10], "held_out": [backwards(talk) for talk in talks[10:]]}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(job)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 50 and told["inside"] >= 10, told
    wanted = (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    for number in range(told["runs"]):
        place = tmp_path / "broken" / str(number)
        assert (place / "adapter" / "adapter_model.safetensors").read_bytes() == wanted
        assert (place / "facts.json").read_text() == (tmp_path / "whole" / "facts.json").read_text()
