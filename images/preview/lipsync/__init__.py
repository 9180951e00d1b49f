"""The preview engine: moves the lips of a filmed face to a speech recording, in torch, on CUDA where present and else on the CPU."""
