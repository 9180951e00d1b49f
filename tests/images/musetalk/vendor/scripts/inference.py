"""Stands in for `scripts.inference` of MuseTalk 1.5: its parameters, its files, what it prints, and how it fails.

Like the real one it builds shell commands without quotes, tells a picture from a video by the extension, catches every
error and exits 0, writes a file beside the folder of results, and fails after a picture although the result is written.
The lips do not move. `STAND_IN` in the environment chooses a failure.
"""

import argparse
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
VIDEOS = (".avi", ".mp4", ".mov", ".flv", ".mkv")


def read_tasks(path: str) -> "dict[str, dict[str, str]]":
    tasks: dict[str, dict[str, str]] = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if line.startswith(" "):
            tasks[list(tasks)[-1]][name.strip()] = value.strip()
        else:
            tasks[name] = {}
    return tasks


def show_bar(total: int) -> None:
    for step in range(total + 1):
        sys.stderr.write(f"\r{100 * step // total:3}%|####    | {step}/{total} [00:01<00:02,  3.05it/s]")
    sys.stderr.write("\n")


def run_task(args: argparse.Namespace, task: "dict[str, str]") -> None:
    video, audio = task["video_path"], task["audio_path"]
    temp = os.path.join(args.result_dir, args.version)
    face, speech = (os.path.basename(path).split(".")[0] for path in (video, audio))
    frames_to = os.path.join(temp, f"{face}_{speech}")
    os.makedirs(frames_to, exist_ok=True)
    coordinates = os.path.join(args.result_dir, "../", face + ".pkl")
    output = os.path.join(temp, args.output_vid_name or f"{face}_{speech}.mp4")
    kind = os.path.splitext(video)[1].lower()
    if kind in VIDEOS:
        frames_from = os.path.join(temp, face)
        os.makedirs(frames_from, exist_ok=True)
        os.system(f"ffmpeg -v fatal -i {video} -start_number 0 {frames_from}/%08d.png")
        frames = sorted(Path(frames_from).iterdir())
    elif kind in PICTURES:
        frames = [Path(video)]
    else:
        raise ValueError(f"{video} should be a video file, an image file or a directory of images")
    Path(coordinates).write_bytes(b"coordinates")
    print(f"Number of frames: {len(frames)}")
    latents = [] if os.environ.get("STAND_IN") == "no_face" else frames
    print("Starting inference")
    if os.environ.get("STAND_IN") == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    0 % len(latents)  # as the program's own index into the list
    if os.environ.get("STAND_IN") == "hang":
        time.sleep(600)
    show_bar(4)
    print("Padding generated images to original video size")
    for index in range(25):
        shutil.copyfile(frames[index % len(frames)], f"{frames_to}/{index:08}.png")
    show_bar(25)
    temporary = f"{temp}/temp_{face}_{speech}.mp4"
    os.system(f"ffmpeg -y -v warning -r 25 -f image2 -i {frames_to}/%08d.png -vf format=yuv420p {temporary}")
    os.system(f"ffmpeg -y -v warning -i {audio} -i {temporary} {output}")
    shutil.rmtree(frames_to)
    os.remove(temporary)
    shutil.rmtree(frames_from)  # unbound after a picture, as in the program
    if not args.saved_coord:
        os.remove(coordinates)
    print(f"Results saved to {output}")


def main(args: argparse.Namespace) -> None:
    for name in ("unet_config", "unet_model_path"):
        Path(getattr(args, name)).read_bytes()
    for task in read_tasks(args.inference_config).values():
        try:
            run_task(args, task)
        except Exception as error:
            print("Error occurred during processing:", error)
            traceback.print_exc()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--unet_config", default="./models/musetalk/config.json")
    parser.add_argument("--unet_model_path", default="./models/musetalkV15/unet.pth")
    parser.add_argument("--inference_config", default="configs/inference/test_img.yaml")
    parser.add_argument("--result_dir", default="./results")
    parser.add_argument("--extra_margin", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--output_vid_name", default=None)
    parser.add_argument("--saved_coord", action="store_true")
    parser.add_argument("--use_float16", action="store_true")
    parser.add_argument("--parsing_mode", default="jaw")
    parser.add_argument("--version", default="v15", choices=["v1", "v15"])
    main(parser.parse_args())
