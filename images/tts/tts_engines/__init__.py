"""Engines that turn a text into a WAV, and the job that calls one."""
