"""Why an answer ended, in the language of whoever reads it now.

With an answer its fault is stored as a code and facts, beside the English sentence of whoever raised it. English readers get
that sentence, which knows most; all others get what is said here for its code. Hides which codes an answer can meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.web import words


def told(facts: Mapping[str, Any], language: str) -> tuple[str, str]:
    """(what happened, what to do next) of a failed answer, by the `facts` of its turn."""
    catalogue = words.catalogue(language)
    message, hint = facts.get("error") or "", facts.get("hint") or ""
    if message and language == "en":
        return message, hint
    return _by_code(str(facts.get("code") or ""), facts.get("about") or {}, catalogue.gettext, catalogue.ngettext)


def _by_code(code: str, about: Mapping[str, Any], say: Any, ngettext: Any) -> tuple[str, str]:
    again = say("Ask again.")
    match code:
        case "model_unavailable" | "unreachable" | "unsupported":
            return say("The model cannot answer just now."), say("Ask again in a moment; if it stays, tell the administrator.")
        case "busy":
            seconds = max(1, int(about.get("seconds", 5)))
            wait = ngettext("Ask again in %(seconds)d second.", "Ask again in %(seconds)d seconds.", seconds)
            return say("Too many people are asking just now."), wait % {"seconds": seconds}
        case "used_up":
            return say("All questions for now have been asked."), say("Ask again later; what you wrote is kept.")
        case "too_large":
            return say("The question is too long for the model."), say("Ask in fewer words, or in parts.")
        case "closed" | "forbidden" | "not_signed_in":
            return say("The assistant may not answer this now."), say("Ask your teacher.")
        case "not_found" | "bad_input":
            return say("What was asked for is not here any more."), say("Load the page again, then ask once more.")
        case "conflict" | "under_way":
            return say("Something else in the box was in the way."), again
        case "storage_full":
            return say("The box's disk is full."), say("Tell the administrator.")
        case "switched_off":
            return say("The box was switched off while it wrote this answer."), again
        case "not_saved_disk_full":
            return say("This answer could not be saved: the box's disk is full."), _copy(say)
        case "not_saved":
            return say("This answer could not be saved."), _copy(say)
        case "failed":
            return say("The answer stopped because of a fault in the box."), again
    return say("The box stopped while it wrote this answer."), say("What was written until then is kept.")


def _copy(say: Any) -> str:
    return str(say("The box keeps trying; copy what you need before you leave this page."))


def from_elsewhere(say: Any) -> list[str]:
    """What others say that many people meet, for whoever translates it: it is looked up as it stands."""
    return [
        say("This chat has grown long: the assistant no longer sees its first messages."),
        say("You are not signed in, or your sign-in has ended."),
        say("Sign in again; what you typed is kept."),
        say("This form is too old or did not come from this page."),
        say("Load the page again, then send it once more."),
        say("There is no such page here."),
        say("Start again from the first page."),
        say("There is no such chat here."),
        say("There is no such class here."),
        say("It may have been deleted."),
        say("Your password was made by somebody else."),
        say("Choose one of your own first, under /me/password."),
        say("Something in the box went wrong."),
        say("Try again; if it stays, tell the administrator."),
        say("The last answer in this chat is not finished."),
        say("Wait for it, or press Stop."),
        say("You have several answers under way."),
        say("Wait until one of them is finished."),
    ]
