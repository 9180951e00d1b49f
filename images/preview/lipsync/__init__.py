"""The preview engine: make the lips of a filmed face follow a recording, with torch on CUDA or, without it, the CPU."""
