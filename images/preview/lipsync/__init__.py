"""The preview engine: moves the lips of a filmed face to a recording, in torch, on CUDA where present, else the CPU."""
