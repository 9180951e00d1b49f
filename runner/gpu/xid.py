"""What an XID means for the card. Source: NVIDIA's XID catalogue and the skip list of its Kubernetes device plugin."""

# The job's own fault: the driver ended its context, the card is as good as before.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})

# The card's fault, in words. An XID that is in neither table is the card's too: a probe is cheap, a bad card is not.
GPU_XIDS = {
    48: "double bit ECC error",
    61: "firmware breakpoint",
    62: "firmware halt",
    63: "memory row remapping recorded",
    64: "memory row remapping failed",
    74: "NVLink error",
    79: "fell off the bus",
    92: "high rate of single bit ECC errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP firmware timeout",
    120: "GSP firmware error",
}


def describe_xid(xid: int) -> str:
    """One phrase for logs and reasons: "XID 79, fell off the bus"."""
    words = "application fault" if xid in APPLICATION_XIDS else GPU_XIDS.get(xid, "card fault")
    return f"XID {xid}, {words}"
