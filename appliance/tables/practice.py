"""Tables of teacher practice: scenes, rehearsals and their turns, who may look, curriculum standards, prompt programs."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Integer, String, Table, Text

from appliance.tables.school import metadata

__all__ = ["mentor_notes", "mentors", "programs", "rehearsal_turns", "rehearsals", "scenarios", "standard_tags", "standards"]

# The school's own scenes. `facts` is what `practice.scenario.read` takes; `state`: draft, approved, archived. A changed one is
# another version; the ones before stay, since rehearsals name them.
scenarios = Table(
    "scenarios",
    metadata,
    Column("id", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("facts", JSON, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("author", String, nullable=False, default="", index=True),
    Column("approved_by", String, nullable=False, default=""),
    Column("generated", Boolean, nullable=False, default=False),  # a model wrote its first form
    Column("created", Float, nullable=False),
)

# One lesson rehearsed. `facts`: the scene as it was when it began. `leaf`: the turn that is shown last; each turn follows its
# parent, so that one can go back and try again without losing what was said. `until`: when it ends by itself.
rehearsals = Table(
    "rehearsals",
    metadata,
    Column("id", String, primary_key=True),
    Column("user", String, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("scenario", String, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("leaf", String, nullable=False, default=""),
    Column("after", String, nullable=False, default=""),  # the rehearsal that this one tries again
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("finished", Float),
)

# `facts`: the exchange (`practice.exchange.Exchange`); `room`: the room after it. `parent` "" is the scene's opening.
rehearsal_turns = Table(
    "rehearsal_turns",
    metadata,
    Column("id", String, primary_key=True),
    Column("rehearsal", String, ForeignKey("rehearsals.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("parent", String, nullable=False, default=""),
    Column("number", Integer, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("room", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

# By consent: `mentor` may read the rehearsals of `user` until it is taken back.
mentors = Table(
    "mentors",
    metadata,
    Column("user", String, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("mentor", String, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("since", Float, nullable=False),
)

# What a mentor wrote beside a turn. `better`: what could have been said; `example`: the row for review that was made of it.
mentor_notes = Table(
    "mentor_notes",
    metadata,
    Column("id", String, primary_key=True),
    Column("turn", String, ForeignKey("rehearsal_turns.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("mentor", String, nullable=False),
    Column("text", Text, nullable=False, default=""),
    Column("better", Text, nullable=False, default=""),
    Column("example", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
)

# The school's curriculum standards: `id` is their code. `place` keeps the order of the file they came from.
standards = Table(
    "standards",
    metadata,
    Column("id", String, primary_key=True),
    Column("subject", String, nullable=False, default="", index=True),
    Column("grade", String, nullable=False, default=""),
    Column("text", Text, nullable=False),
    Column("place", Integer, nullable=False),
)

# What a standard is about. `kind`: class, example, scenario.
standard_tags = Table(
    "standard_tags",
    metadata,
    Column("standard", String, ForeignKey("standards.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String, primary_key=True),
    Column("thing", String, primary_key=True, index=True),
)

# Optimised prompt programs. `facts` is JSON as `prompts` reads it. `state`: candidate, active, previous, retired; for each
# module, subject and grade ("" for any) one is active at most.
programs = Table(
    "programs",
    metadata,
    Column("id", String, primary_key=True),
    Column("module", String, nullable=False, index=True),
    Column("subject", String, nullable=False, default=""),
    Column("grade", String, nullable=False, default=""),
    Column("facts", JSON, nullable=False),
    Column("report", JSON, nullable=False, default=dict),
    Column("state", String, nullable=False),
    Column("maker", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("promoted", Float),
)
