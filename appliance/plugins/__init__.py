"""Optional plugins: other ways to tune and to serve, which stay off while the box is air-gapped.

A plugin is an entry point of the group `appliance.plugins` that names a `Plugin`: what it is called, what it needs, and what it
can make. The built-in ones enter by the same hook that a stranger's would use. Hides how they are found, and asks their needs
before any of their code that needs more than this package is imported: a missing package or a closed network policy is one
sentence and one next step, never an import error.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import Forbidden, NotFound, Unsupported
from appliance.network import Policy

if TYPE_CHECKING:
    from appliance.engine.handler import Handler
    from appliance.network import Host
    from appliance.settings import Settings

GROUP = "appliance.plugins"


def _nowhere(_settings: Settings) -> Sequence[Host]:
    return ()


@dataclass(frozen=True, slots=True)
class Plugin:
    """title: as a sentence names it. package: what has to be importable, "" for none; extra: of this distribution, brings it.

    network: whether it stays off while the box is air-gapped. hosts: which hosts it has to reach, each allowed by name.
    handler: an unstarted handler for a hosted model's facts (`Manifest.hosted`), where it can serve one.
    """

    name: str
    title: str
    package: str = ""
    extra: str = ""
    network: bool = True
    hosts: Callable[[Settings], Sequence[Host]] = _nowhere
    handler: Callable[[Settings, Mapping[str, Any]], Handler] | None = None


@functools.cache
def installed() -> Mapping[str, Plugin]:
    """Every plugin by its name. One that cannot be read is left out: it is as good as not installed."""
    found: dict[str, Plugin] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            plugin = point.load()
        except Exception:  # noqa: BLE001 - a stranger's package may raise anything, and takes nothing else with it
            continue
        if isinstance(plugin, Plugin) and plugin.name == point.name:
            found[plugin.name] = plugin
    return found


def get(name: str) -> Plugin:
    """Raises NotFound."""
    try:
        return installed()[name]
    except KeyError:
        names = ", ".join(sorted(installed())) or "none"
        raise NotFound(f"There is no plugin called {name[:60]!r}.", f"Installed plugins: {names}.") from None


def require(settings: Settings, name: str) -> Plugin:
    """The plugin, if its needs are met now.

    Raises NotFound, Forbidden where the policy is closed, Unsupported where a package is missing.
    """
    plugin = get(name)
    _require_network(settings, plugin)
    if plugin.package and importlib.util.find_spec(plugin.package) is None:
        raise Unsupported(
            f"{plugin.title} needs the package {plugin.package}, which is not installed.",
            f"pip install -c constraints.txt '.[{plugin.extra}]', in the folder of the appliance.",
        )
    return plugin


def _require_network(settings: Settings, plugin: Plugin) -> None:
    if not plugin.network:
        return
    allowed = Policy(settings.network).allowed()
    missing = [host for host in plugin.hosts(settings) if host not in allowed]
    if allowed and not missing:
        return
    closed = f"{plugin.title} is off while the box is air-gapped." if not allowed else f"{missing[0]} may not be reached."
    wanted = " ".join(str(host) for host in missing[:1]) or "HOST"
    raise Forbidden(closed, f"Where the school chooses to: `appliance network allow {wanted}`, on the box itself.")
