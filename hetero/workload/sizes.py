"""Lengths that a caller asks for in place of a load's own."""

from hetero.errors import ConfigError


def check_sizes(
    name: str, prompt_tokens: int | None, output_tokens: int | None, max_tokens: int | None
) -> None:
    """Lengths that were asked for are not cut short.

    Raises: ConfigError
    """
    for what, tokens in (("prompt", prompt_tokens), ("output", output_tokens)):
        if tokens is not None and tokens < 1:
            raise ConfigError(f"{name}: need a {what} of one token or more, have {tokens}")
    asked = (prompt_tokens or 1) + (output_tokens or 1)
    if max_tokens is not None and asked > max_tokens:
        raise ConfigError(
            f"{name}: need room for {prompt_tokens or 1} + {output_tokens or 1} tokens, "
            f"have a context of {max_tokens}; ask for shorter ones or raise it"
        )
