"""DSPy optimisation of the prompt modules."""

from __future__ import annotations

from appliance.plugins import Plugin

PLUGIN = Plugin("dspy", "DSPy optimisation", package="dspy", extra="dspy")
