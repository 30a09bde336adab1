"""Which nodes a router gives work to: what their own words say against it."""

from hetero.messages import ModelFingerprint, NodeInfo


def objection(
    info: NodeInfo, model: str, fingerprint: ModelFingerprint, *, allow_emulated: bool
) -> str:
    """Why a node may not serve the router's model; empty if it may."""
    theirs = info.fingerprint.model
    differing = [
        f"{part} {getattr(fingerprint, part)[:12]} here, {getattr(theirs, part)[:12]} there"
        for part in ModelFingerprint.__struct_fields__
        if getattr(fingerprint, part) != getattr(theirs, part)
    ]
    if differing:
        return (
            f"model: need the router's {model}, have another file, {info.model} "
            f"({'; '.join(differing)}): copy the router's GGUF to {info.host}"
        )
    if info.emulated and not allow_emulated:
        return (
            f"engine: need one that computes, have {info.engine}, whose answers are nonsense: for "
            "experiments set `allow_emulated: true` in the router's file"
        )
    return ""
