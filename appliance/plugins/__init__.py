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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, Forbidden, NotFound, Unreachable, Unsupported
from appliance.jobs import held
from appliance.network import Policy

if TYPE_CHECKING:
    from appliance.engine.handler import Handler
    from appliance.network import Host
    from appliance.settings import Settings

GROUP = "appliance.plugins"


def _nowhere(_settings: Settings) -> Sequence[Host]:
    return ()


def _nothing(_settings: Settings) -> None:
    return


@dataclass(frozen=True, slots=True)
class Plugin:
    """title: as a sentence names it. package: what has to be importable, "" for none; extra: of this distribution, brings it.

    network: whether it stays off while the box is air-gapped. hosts: which hosts it has to reach, each allowed by name.
    check: raises what else it lacks on this box, such as a key; it asks nobody, and imports nothing of its package.
    handler: an unstarted handler for a hosted model's facts (`Manifest.hosted`), where it can serve one. price: what so many
    tokens in and out of such a model cost, and in which money; None where it does not know. judge: judges a prompt program that
    it made again: of the box, the program's id, and who is told how far it is; its report, with "passed".
    """

    name: str
    title: str
    package: str = ""
    extra: str = ""
    network: bool = True
    hosts: Callable[[Settings], Sequence[Host]] = _nowhere
    check: Callable[[Settings], object] = _nothing
    handler: Callable[[Settings, Mapping[str, Any]], Handler] | None = None
    price: Callable[[Settings, Mapping[str, Any], int, int], tuple[float, str] | None] | None = None
    judge: Callable[[Any, str, Callable[[int, int], None]], Awaitable[Mapping[str, Any]]] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """How a plugin is on this box. message and hint: what it still needs and the next step, "" where it is ready."""

    name: str
    title: str
    ready: bool
    message: str = ""
    hint: str = ""


@functools.cache
def _read() -> tuple[Mapping[str, Plugin], Mapping[str, Unsupported]]:
    """Every plugin by its name, and what is wrong with each that could not be read."""
    found: dict[str, Plugin] = {}
    broken: dict[str, Unsupported] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else "its package"
        hint = f"Install {package} again, or do without it: pip uninstall {package}."
        try:
            plugin = point.load()
        except Exception as error:  # noqa: BLE001 - a stranger's package may raise anything, and takes nothing else with it
            broken[point.name] = Unsupported(f"The plugin {point.name} cannot be loaded ({type(error).__name__}).", hint)
            continue
        if isinstance(plugin, Plugin) and plugin.name == point.name:
            found[plugin.name] = plugin
        else:
            broken[point.name] = Unsupported(f"What {package} calls the plugin {point.name} is none.", hint)
    return found, broken


def installed() -> Mapping[str, Plugin]:
    """Every plugin that can be read, by its name."""
    return _read()[0]


def states(settings: Settings) -> list[State]:
    """Every plugin, those that cannot be read as well, by name."""
    found, broken = _read()
    listed = [State(name, name, False, error.message, error.hint) for name, error in broken.items() if name not in found]
    for name, plugin in found.items():
        try:
            require(settings, name)
            plugin.check(settings)
        except ApplianceError as error:
            listed.append(State(name, plugin.title, False, error.message, error.hint))
        except Exception as error:  # noqa: BLE001 - a stranger's, as above
            told = f"The plugin {name} cannot say what it needs ({type(error).__name__})."
            listed.append(State(name, plugin.title, False, told, "Ask who wrote it, or do without it."))
        else:
            listed.append(State(name, plugin.title, True))
    return sorted(listed, key=lambda one: one.name)


def get(name: str) -> Plugin:
    """Raises NotFound, Unsupported where it cannot be loaded."""
    found, broken = _read()
    if name not in found and name in broken:
        raise Unsupported(broken[name].message, broken[name].hint)
    try:
        return found[name]
    except KeyError:
        names = ", ".join(sorted(found)) or "none"
        raise NotFound(f"There is no plugin called {name[:60]!r}.", f"Installed plugins: {names}.") from None


def require(settings: Settings, name: str) -> Plugin:
    """The plugin, if its needs are met now.

    Raises NotFound, Forbidden where the policy is closed, Unsupported where a package is missing.
    """
    plugin = get(name)
    _require_network(settings, plugin)
    if plugin.package and not _is_there(plugin.package):
        own = f"pip install -c constraints.txt '.[{plugin.extra}]', in the folder of the appliance."
        hint = own if plugin.extra else f"pip install {plugin.package}, in the appliance's environment."
        raise Unsupported(f"{plugin.title} needs the package {plugin.package}, which is not installed.", hint)
    return plugin


def require_way_out(settings: Settings) -> None:
    """Raises Unreachable where the process that goes out for the box does not run: for the `check` of who needs it."""
    if not held(settings.run / "egress.lock"):
        raise Unreachable(
            "The way out of the box is not running.",
            "`appliance serve` starts it; so does `appliance egress`, or on an installed box: "
            "systemctl enable --now appliance-egress.",
        )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False  # a part of a package that is not there itself


def _require_network(settings: Settings, plugin: Plugin) -> None:
    if not plugin.network:
        return
    allowed = Policy(settings.network).allowed()
    missing = [host for host in plugin.hosts(settings) if host not in allowed]
    if allowed and not missing:
        return
    closed = f"{plugin.title} is off while the box is air-gapped." if not allowed else f"{missing[0]} may not be reached."
    which = (
        f"`appliance network allow {missing[0]}`" if missing else "`appliance network allow HOST`, of a host that it may use"
    )
    raise Forbidden(closed, f"Where the school chooses to: {which}, on the box itself.")
