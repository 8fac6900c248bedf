"""The tables of the ledger. What their columns mean is said at ``ledger.Job`` and ``ledger.Delivery``."""

from __future__ import annotations

import sqlalchemy as sa

META = sa.MetaData()
JOBS = sa.Table(
    "cspine_jobs",
    META,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("instances", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(128), nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False, default=0),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("due", sa.Float, nullable=False, default=0.0),
    sa.Column("reason", sa.String(64), nullable=False, default=""),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("positive", sa.Boolean),
    sa.Column("judged", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("kept", sa.Boolean, nullable=False, default=True),
    sa.Column("seconds", sa.JSON, nullable=False, default=dict),
    sa.Column("facts", sa.JSON),
)
DELIVERIES = sa.Table(
    "cspine_deliveries",
    META,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("destination", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False, default=0),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("due", sa.Float, nullable=False, default=0.0),
    sa.Column("reason", sa.String(64), nullable=False, default=""),
    sa.Column("seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("ended", sa.Float),
)
TAKEN = sa.Table(
    "cspine_taken",
    META,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(500), primary_key=True),
    sa.Column("mark", sa.String(200), nullable=False),
)
# Counted once a try, in the transaction that settles it, so that totals never go down and never count twice.
TALLY = sa.Table(
    "cspine_tally",
    META,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("label", sa.String(64), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("total", sa.Float, nullable=False),
)
# One row a process that works; see ``workers.Heartbeats``.
WORKERS = sa.Table(
    "cspine_workers",
    META,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)
