"""Plays app_local.py of an image whose modules nobody knows: two routes, a final answer once. See gen1 for the rest."""

# ruff: noqa: E402

import os

os.chdir(os.environ.get("HEYGEM_HOME", "/code"))  # in the vendor's file it is always /code, and in its children too

import json
import multiprocessing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from landmark2face_wy import digitalhuman_interface
from y_utils import movie
from y_utils.config import GlobalConfig
from y_utils.logger import logger

FAKE = os.environ.get("HEYGEM_FAKE", "ok")
FACES_S = 10
config = GlobalConfig()
jobs = {}


def load(answered):
    """A child, in which this file is imported again; it stays as long as the server."""
    digitalhuman_interface.load()
    logger.info("loaded in %s", Path.cwd())
    answered.put(1)
    multiprocessing.parent_process().join()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        logger.info("submitted %s", sorted(given))
        if FAKE == "busy":
            return self.answer(10001, "忙碌中", {})
        result = Path(config.result_dir, given["code"] + "-r.mp4")
        if FAKE == "child_dies":
            for child in multiprocessing.active_children():
                child.kill()
                child.join()
        if FAKE not in ("forgets", "stuck", "dies", "child_dies"):
            movie.make(given["audio_url"], given["video_url"], 0, str(result))
        jobs[given["code"]] = ["running", "final"]
        return self.answer(10000, 10000, {})

    def do_GET(self):
        code = parse_qs(urlsplit(self.path).query)["code"][0]
        steps = jobs.get(code)
        if not steps or (FAKE == "forgets" and len(steps) == 1):
            return self.answer(10004, "任务不存在", {})
        if FAKE == "dies":
            os._exit(1)
        if FAKE in ("stuck", "child_dies"):
            steps.insert(0, "running")
        return self.answer(10000, "", {"code": code, **ANSWERS[steps.pop(0)]})

    def answer(self, code, message, data):
        body = json.dumps({"code": code, "msg": message, "success": True, "data": data}, indent=4).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ANSWERS = {
    "running": {"msg": "音频特征提取完成", "progress": 20, "result": "", "status": 1},
    "final": {"msg": "任务完成", "progress": 100, "result": "/x-r.mp4", "status": 2}
    if FAKE != "faces"
    else {"msg": "存在多人脸", "progress": 0, "result": "", "status": 3},
}

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answered = context.Queue()
    context.Process(target=load, args=(answered,), daemon=True).start()
    answered.get(timeout=FACES_S)
    HTTPServer(("127.0.0.1", config.server_port), Handler).serve_forever()
