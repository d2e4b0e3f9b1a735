"""The only door out of the building, and it is shut: every library is told to stay offline before it is imported.

Hides which environment variable silences which library, and makes the few HTTP clients that exist (all of them dial a Unix
socket of this box). Opening the door for named hosts belongs here too, and is not built yet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

# Read by the libraries at import time, so they are set before anything heavy is imported. PYTHON* are untouched.
OFFLINE: dict[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TOKENIZERS_PARALLELISM": "false",
    # Two OpenMP pools that spin on two cores take each other's time: llama.cpp beside a trainer fell to a two-hundredth. One
    # that never spins sleeps at each of a step's hundreds of barriers, and a lone answer comes at a third of its speed. Tens
    # of microseconds cost neither; "active" is what lets them count where a process has two pools, as the engine has.
    "OMP_WAIT_POLICY": "active",
    "GOMP_SPINCOUNT": "3000",
}


def stay_offline() -> None:
    """Set every library's offline switch in this process and its children. Called first thing by every door."""
    os.environ.update(OFFLINE)


def socket_client(socket: Path, timeout: float = 120.0) -> httpx.AsyncClient:
    """An HTTP client that can reach one Unix socket of this box and nothing else."""
    import httpx

    # Everybody who is answered or waits holds a connection; how many that may be is the engine's to say.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)
    # trust_env off: a proxy variable on the machine must not carry a pupil's words anywhere.
    return httpx.AsyncClient(
        transport=transport,
        base_url="http://engine",
        timeout=httpx.Timeout(timeout, connect=2.0),
        trust_env=False,
    )
