"""Write the JSON schema of recipes, with which editors complete and check them: `make schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from potstill.recipe import Recipe


def main(path: Path) -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    path.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
