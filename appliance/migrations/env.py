"""alembic's entry: runs the migrations on the connection that `db.Database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from appliance.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transaction_per_migration=False)
context.run_migrations()
