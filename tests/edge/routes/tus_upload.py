"""Upload a file with tuspy, in the environment of foreign clients (requirements-runpod.lock): tus_upload.py JSON.

The JSON object has `endpoint`, `file`, `key`, `chunk_size`, `metadata` and `checked`. With `stop`, only one chunk is
sent; with `url`, the upload there is resumed. Print a JSON object: `url`, `offset` at the start, and `asset`, or the
`status` and `body` of the response that ended the upload.
"""

import json
import sys
from pathlib import Path

from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed


def upload(wanted: dict) -> dict:
    client = TusClient(wanted["endpoint"], headers={"Authorization": f"Bearer {wanted['key']}"})
    with Path(wanted["file"]).open("rb") as stream:
        sending = client.uploader(
            file_stream=stream,
            chunk_size=wanted["chunk_size"],
            metadata=wanted.get("metadata"),
            upload_checksum=wanted.get("checked", False),
            url=wanted.get("url"),
        )
        offset = sending.offset
        try:
            sending.upload_chunk() if wanted.get("stop") else sending.upload()
        except TusUploadFailed as error:
            return {"status": error.status_code, "body": error.response_content.decode()}
        return {
            "url": sending.url,
            "offset": offset,
            "asset": sending.request.response_headers.get("lamplighter-asset"),
        }


json.dump(upload(json.loads(sys.argv[1])), sys.stdout)
