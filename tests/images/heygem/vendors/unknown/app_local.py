"""Plays app_local.py of an image whose modules nobody knows: two routes, a final answer once. See gen1 for the rest."""

import configparser
import json
import os
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FAKE = os.environ.get("HEYGEM_FAKE", "ok")
config = configparser.ConfigParser()
config.read("config/config.ini", encoding="utf-8")
jobs = {}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        os.write(1, f"submitted {sorted(given)}\n".encode())
        if FAKE == "busy":
            return self.answer(10001, "忙碌中", {})
        result = Path(config.get("result", "result_dir"), given["code"] + "-r.mp4")
        if FAKE not in ("forgets", "stuck", "dies"):
            shutil.copyfile(os.environ["HEYGEM_FAKE_RESULT"], result)
        jobs[given["code"]] = ["running", "final"]
        return self.answer(10000, 10000, {})

    def do_GET(self):
        code = parse_qs(urlsplit(self.path).query)["code"][0]
        steps = jobs.get(code)
        if not steps or (FAKE == "forgets" and len(steps) == 1):
            return self.answer(10004, "任务不存在", {})
        if FAKE == "dies":
            os._exit(1)
        if FAKE == "stuck":
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
    HTTPServer(("127.0.0.1", int(config.get("http_server", "server_port"))), Handler).serve_forever()
