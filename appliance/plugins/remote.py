"""Other OpenAI-compatible servers as handlers."""

from __future__ import annotations

from appliance.plugins import Plugin

PLUGIN = Plugin("remote", "Another model server")
