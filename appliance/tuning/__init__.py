"""Makes a better tutor out of a school's own examples, on the school's own machine.

`retrain.tune` is the whole pipeline; `HuggingFaceTuner` the part that trains. Importing this package is cheap: torch,
transformers, trl and peft are imported only where they are used, and training runs in a process of its own.
"""

from appliance.tuning.huggingface import HuggingFaceTuner

__all__ = ["HuggingFaceTuner"]
