"""Fine-tuning by OpenAI."""

from __future__ import annotations

from appliance.plugins import Plugin

PLUGIN = Plugin("openai", "Fine-tuning by OpenAI", package="openai", extra="openai")
