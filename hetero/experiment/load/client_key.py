"""The API key, from the environment alone: never an argument, which every process list shows."""

import os


def authorization() -> list[tuple[str, str]]:
    """The header, if there is a key."""
    key = os.environ.get("HETERO_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return [("Authorization", f"Bearer {key}")] if key else []
