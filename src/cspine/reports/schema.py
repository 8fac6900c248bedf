"""The JSON schema of findings.json, as published: ``python -m cspine.reports.schema > findings.schema.json``."""

from __future__ import annotations

import json
import sys

from cspine.findings import SCHEMA_VERSION, Findings


def schema_text() -> str:
    """JSON Schema (2020-12) of the findings that this version writes."""
    schema = Findings.model_json_schema(mode="serialization")
    schema.pop("title", None)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"cspine findings {SCHEMA_VERSION}",
    }
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
