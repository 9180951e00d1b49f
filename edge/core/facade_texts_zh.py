"""The Chinese of the sentences with which the facades and the console refuse a request: see `refusal_texts_zh`."""

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
