"""Meaning of an XID for the GPU. Sources: NVIDIA's XID catalogue, and the skip list of its Kubernetes device plugin."""

# Faults of the job: the driver ended its context, and the GPU is fine.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})

# Faults of the GPU. An XID in neither table counts as one too: a probe is cheap, a bad GPU is not.
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
    """Return a phrase for logs and reasons, such as "XID 79, fell off the bus"."""
    meaning = "application fault" if xid in APPLICATION_XIDS else GPU_XIDS.get(xid, "GPU fault")
    return f"XID {xid}, {meaning}"
