"""The only exceptions that cross a folder's border.

Every fault a person can meet is an ApplianceError: one sentence that says what and where, one next step. Doors (web, command
line) print both; nothing else formats errors. Library exceptions are translated where they arise, never here.
"""

from __future__ import annotations


class ApplianceError(Exception):
    """A fault with a sentence and a next step.

    message: what went wrong and where (file, line, host), one sentence.
    hint: what to do next, one sentence; may be empty only where nothing can be done.
    code: stable machine-readable name; status: HTTP status; exit_code: of the command line.
    """

    code = "failed"
    status = 500
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[ApplianceError], tuple[str, str]]:
        return (type(self), (self.message, self.hint))


class BadInput(ApplianceError):
    """What was given cannot be used: a damaged file, a wrong line, an impossible value."""

    code = "bad_input"
    status = 400


class TooLarge(BadInput):
    """More than the stated limit: bytes, characters, tokens."""

    code = "too_large"
    status = 413


class NotSignedIn(ApplianceError):
    code = "not_signed_in"
    status = 401
    exit_code = 3


class Forbidden(ApplianceError):
    """Refused by policy: permission, safety or the air gap."""

    code = "forbidden"
    status = 403
    exit_code = 3


class Closed(Forbidden):
    """The teacher has closed the assistant for this lesson, or locked it for an exam."""

    code = "closed"


class NotFound(ApplianceError):
    code = "not_found"
    status = 404


class Conflict(ApplianceError):
    """Something else holds it: a second run of the same command, a name or a port in use."""

    code = "conflict"
    status = 409


class UnderWay(Conflict):
    """The same work is being done by another process; it ends by itself."""

    code = "under_way"
    exit_code = 75


class Busy(ApplianceError):
    """Full for the moment. retry_after: seconds after which trying again makes sense."""

    code = "busy"
    status = 503
    exit_code = 75

    def __init__(self, message: str, hint: str = "", retry_after: float = 5.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class UsedUp(Busy):
    """All questions of this hour, day or week are asked."""

    code = "used_up"
    status = 429


class ModelUnavailable(ApplianceError):
    """No handler can answer now: not installed, damaged, out of memory, engine down."""

    code = "model_unavailable"
    status = 503


class Unreachable(ApplianceError):
    """Another machine does not answer, or not as it should: a directory, a provider of sign-ins, a cluster."""

    code = "unreachable"
    status = 503


class Unsupported(ApplianceError):
    """This back end cannot do that (a hosted model cannot score, an architecture has no exporter)."""

    code = "unsupported"
    status = 501


class StorageFull(ApplianceError):
    code = "storage_full"
    status = 507


class GateNotPassed(ApplianceError):
    """A tuned model was kept but not promoted."""

    code = "gate_not_passed"
    status = 409
    exit_code = 4


def where(error: BaseException) -> str:
    """Kind and place of a fault, for a log: its message may hold what a pupil wrote, or what a document says."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


def from_os_error(error: OSError, what: str) -> ApplianceError:
    """Translate a full disk or a permission fault met while doing `what` ("saving lesson.pdf")."""
    import errno

    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"The disk is full: {what} stopped{where}.", "Free some space, then run the same command again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ApplianceError(f"Not allowed by the file system while {what}{where}.", "Check who owns the appliance's folder.")
    if error.errno == errno.ENOENT:
        return NotFound(f"There is no such file while {what}{where}.", "Check the path.")
    return ApplianceError(f"The system refused while {what}{where}: {error.strerror}.", "Run the same command again.")
