"""F5TTS with the parameters of the real one. It hums instead of speaking, and demands the files that that one reads."""

import math
import struct
import wave
from pathlib import Path

RATE = 24_000
LETTERS_PER_S = 15


class F5TTS:
    def __init__(
        self,
        model="F5TTS_v1_Base",
        ckpt_file="",
        vocab_file="",
        ode_method="euler",
        use_ema=True,
        vocoder_local_path=None,
        device=None,
        hf_cache_dir=None,
    ):
        for name in (
            f"{vocoder_local_path}/config.yaml",
            f"{vocoder_local_path}/pytorch_model.bin",
            ckpt_file,
            vocab_file,
        ):
            Path(name).read_bytes()  # the real one downloads what is not named, which a job without network cannot

    def infer(
        self,
        ref_file,
        ref_text,
        gen_text,
        show_info=print,
        progress=None,
        target_rms=0.1,
        cross_fade_duration=0.15,
        sway_sampling_coef=-1,
        cfg_strength=2,
        nfe_step=32,
        speed=1.0,
        fix_duration=None,
        remove_silence=False,
        file_wave=None,
        file_spec=None,
        seed=None,
    ):
        Path(ref_file).read_bytes()
        show_info("Converting audio...")
        show_info(f"ref_text  {ref_text}")
        samples = [0.3 * math.sin(0.05 * at) for at in range(round(len(gen_text) / LETTERS_PER_S / speed * RATE))]
        with wave.open(file_wave, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(b"".join(struct.pack("<h", round(sample * 32767)) for sample in samples))
        return samples, RATE, None
