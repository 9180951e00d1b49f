"""Where the bytes of assets lie: one port, a fake in memory, and the folder that survives a power cut."""
