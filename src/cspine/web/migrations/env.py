"""How Alembic reaches the database: through the connection that ``database.upgrade`` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from cspine.web.models import Base, UtcDateTime


def _render(kind: str, value: Any, _: object) -> str | Literal[False]:
    """Moments are written as what they are in the database, so that a step does not change with the models."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=True,  # SQLite changes a table by making it anew
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
