"""The Chinese of the sentences with which the edge refuses a request. Keys are the English sentences of the code.

Each value is a placeholder (schemas/texts.py). tests/test_texts.py says which sentence of the code lacks an entry.
"""

from collections.abc import Mapping

from edge.core.record_texts_zh import CONSOLE_REFUSALS_ZH, FACADE_REFUSALS_ZH

_BODIES: Mapping[str, str] = {
    "a JSON body may have at most 1 MiB: upload large files as assets": "JSON 请求体最大 1 MiB：大文件请先单独上传",
    "the body is not JSON ({error}): send a JSON object": "请求体不是 JSON（{error}）：请发送 JSON 对象",
    "the body is not a JSON object: send one": "请求体不是 JSON 对象：请发送 JSON 对象",
    "'input' in the field 'job' must be an object": "表单字段 job 中的 input 必须是 JSON 对象",
    "the key lacks the scope {scope}, which files in a form need": "密钥缺少权限 {scope}，在表单中上传文件需要该权限",
    "a multipart submit needs exactly one field 'job', with the JSON of the job": (
        "用表单提交时，必须有且只有一个字段 job，内容为任务的 JSON"
    ),
    "is not a file: a form has the field 'job' and a file for each asset input": (
        "不是文件：表单只能包含字段 job，以及每个文件输入对应的文件"
    ),
    "occurs twice: send it once": "重复出现：请只发送一次",
    "a form may have at most {limit} files: upload the others one by one": (
        "表单最多包含 {limit} 个文件：其余文件请逐个上传"
    ),
    "the texts of a form may have at most 1 MiB: send large values as files": (
        "表单中的文本合计最大 1 MiB：较大的内容请以文件发送"
    ),
    "the files of a form may have at most {limit} bytes: send smaller or fewer files": (
        "表单中的文件合计最大 {limit} 字节：请减小文件或减少文件数量"
    ),
    "the multipart body cannot be parsed: its Content-Type names no boundary": (
        "无法解析表单：Content-Type 中没有 boundary"
    ),
    "the multipart body cannot be parsed: {why}": "无法解析表单：{why}",
    "the form has no file: add one": "表单中没有文件：请添加一个文件",
    "the request does not match this path: see GET /openapi.json for its parameters": (
        "请求与该路径不符：参数请见 GET /openapi.json"
    ),
    "this path does not exist: see GET /openapi.json for all paths": ("路径不存在：全部路径请见 GET /openapi.json"),
    "this path does not support the method: the header Allow lists those that it does": (
        "该路径不支持此请求方法：支持的方法见响应头 Allow"
    ),
    "the body exceeds the limit of this path: upload large files as assets, and split large batches": (
        "请求体超出该路径的大小限制：大文件请先单独上传，大批量请拆分"
    ),
    "the head of the request did not arrive within {limit} s: send it again": (
        "请求头未在 {limit} 秒内完整到达：请重新发送"
    ),
    "the request is not valid HTTP/1.1 ({why}): correct it (RFC 9112)": (
        "请求不是有效的 HTTP/1.1（{why}）：请更正（RFC 9112）"
    ),
    "the head of a request may have at most {limit} bytes: send less": "请求头最大 {limit} 字节：请缩短",
    "the header {name} occurs more than once": "请求头 {name} 出现多次",
}

_FIELDS: Mapping[str, str] = {
    "is required": "必填，但未提供",
    "is not a field of this request": "不是此请求的字段",
    "is not a field of this request: it takes {names}": "不是此请求的字段：可用字段为 {names}",
    "is not a field of this request: did you mean {name}? It takes {names}": (
        "不是此请求的字段：是否想写 {name}？可用字段为 {names}"
    ),
    "is not a query parameter of this path: it takes {names}": "不是此路径的查询参数：可用参数为 {names}",
    "is not a query parameter of this path: did you mean {name}? It takes {names}": (
        "不是此路径的查询参数：是否想写 {name}？可用参数为 {names}"
    ),
    "the reference page has no such file: open /docs": "参考页面没有此文件：请打开 /docs",
    "a name in it: {message}": "其中的一个名称：{message}",
    "nested deeper than {limit} levels: move data into assets": "嵌套超过 {limit} 层：请将数据放入文件",
    "{size} bytes of JSON, at most {limit}: move data into assets": (
        "JSON 为 {size} 字节，最多 {limit} 字节：请将数据放入文件"
    ),
    "takes more than {limit} steps to check, or is nested too deep to be checked: "
    "send less, or ask the operator to simplify the schema of {endpoint}": (
        "校验超过 {limit} 步，或嵌套过深而无法校验：请减少内容，或请管理员简化 {endpoint} 的 schema"
    ),
    "the schema of {endpoint} refers to a schema that it does not contain: {reference}": (
        "{endpoint} 的 schema 引用了其中不存在的 schema：{reference}"
    ),
    "{count} asset(s) of the input have not been uploaded: PUT them to /v1/assets/<sha256>, then submit": (
        "输入中有 {count} 个文件尚未上传：请先 PUT 到 /v1/assets/<sha256>，再提交"
    ),
    "is not an object": "不是 JSON 对象",
    "must be an object": "必须是 JSON 对象",
    "must be text": "必须是文本",
    "must be 1 to 64 of A-Z a-z 0-9 _ -": "必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
    "a job id must have 1 to 64 characters of A-Z a-z 0-9 _ -": "任务编号必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
    "an owner must have 1 to 64 characters of A-Z a-z 0-9 _ -": "用户名必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
    "?owner= must have 1 to 64 characters of A-Z a-z 0-9 _ -": "?owner= 必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
    "cannot be expressed in UTC": "无法用 UTC 时间表示",
    "is more than a hundred years in the future": "在一百多年以后：请更正",
    "is in the past": "早于当前时间",
    "is before not_before: the job could never start": "早于 not_before：任务将永远无法开始",
    "must be before `to`, and in the past": "必须早于 to，且早于当前时间",
    "a batch has 1 to {limit} jobs, this one has {count}": "一批为 1 到 {limit} 个任务，本次有 {count} 个",
    "?tag= must be name:value": "?tag= 的格式必须为 名称:值",
    "{text} has no colon": "{text} 中没有冒号",
    "is not a cursor of this server: leave it out to start with the first page": (
        "不是本服务器的游标：省略该参数即从第一页开始"
    ),
    "is not whsec_ followed by 24 to 64 bytes in base64": "必须是 whsec_ 加上 24 到 64 字节的 base64",
    # msgspec
    "Expected `{wanted}`, got `{got}`": "应为 {wanted}，实际为 {got}",
    "Expected `{wanted}`": "应为 {wanted}",
    "Invalid enum value {value}: it is one of {choices}": "无效的值 {value}：可选值为 {choices}",
    "Invalid enum value {value}": "无效的值 {value}",
    "Invalid RFC3339 encoded datetime": "不是 RFC 3339 格式的时间，格式如 2026-11-22T23:00:00Z",
    "Invalid RFC3339 encoded date": "不是 RFC 3339 格式的日期，格式如 2026-11-22",
    "Expected `str` of length >= {limit}": "文本长度至少为 {limit}",
    "Expected `str` of length <= {limit}": "文本长度最多为 {limit}",
    "Expected `array` of length >= {limit}": "列表长度至少为 {limit}",
    "Expected `array` of length <= {limit}": "列表长度最多为 {limit}",
    "Expected `object` of length <= {limit}": "对象最多有 {limit} 个字段",
    "Expected `int` >= {limit}": "应为不小于 {limit} 的整数",
    "Expected `int` <= {limit}": "应为不大于 {limit} 的整数",
    "Expected `float` >= {limit}": "应为不小于 {limit} 的数",
    "Expected `float` > {limit}": "应为大于 {limit} 的数",
    "Expected `float` <= {limit}": "应为不大于 {limit} 的数",
    "Expected `datetime` with a timezone component": "时间必须带时区，格式如 2026-11-22T23:00:00Z",
    "Expected `str` of 1 to 64 characters A-Z a-z 0-9 _ -": "必须为 1 到 64 个字符，可用 A-Z a-z 0-9 _ -",
    "Expected `str` matching regex {pattern}": "文本必须匹配正则表达式 {pattern}",
    "Input data was truncated": "数据不完整",
    "JSON is malformed: {detail}": "JSON 格式错误：{detail}",
    # jsonschema
    "Additional properties are not allowed ({names} was unexpected)": "不支持的字段：{names}",
    "Additional properties are not allowed ({names} were unexpected)": "不支持的字段：{names}",
    "{value} is not of type {kind}": "{value} 的类型不是 {kind}",
    "{value} is not one of {choices}": "{value} 不是可选值，可选值为 {choices}",
    "{value} does not match {pattern}": "{value} 不匹配 {pattern}",
    "{value} is too long": "{value} 过长",
    "{value} is too short": "{value} 过短",
    "{value} should be non-empty": "{value} 不能为空",
    "{value} is less than the minimum of {limit}": "{value} 小于最小值 {limit}",
    "{value} is greater than the maximum of {limit}": "{value} 大于最大值 {limit}",
    "{value} is not a multiple of {step}": "{value} 不是 {step} 的倍数",
    "{value} was expected": "应为 {value}",
    "{value} is not valid under any of the given schemas": "{value} 不符合任何一种允许的格式",
    "{text} names no asset: give sha256: and 64 lower-case hex digits": (
        "{text} 不是文件引用：请写 sha256: 加 64 位小写十六进制数"
    ),
}

_KEYS: Mapping[str, str] = {
    "send a valid key as 'Authorization: Bearer lamp_…' or 'X-API-Key'": (
        "缺少有效的密钥：请用请求头 Authorization: Bearer lamp_… 或 X-API-Key 发送"
    ),
    "the key lacks the scope {scope}: use a key that has it": "密钥缺少权限 {scope}：请使用有该权限的密钥",
    "the key lacks the scope {scope}: a token cannot do more than its key": (
        "密钥缺少权限 {scope}：令牌的权限不能超过其密钥"
    ),
    "?owner= needs a key with the scope admin, or runner for the files of its jobs": (
        "使用 ?owner= 需要有 admin 权限的密钥；runner 的密钥只能用于其任务的文件"
    ),
    "the key {key} does not exist": "密钥 {key} 不存在",
    "this key belongs to that owner: use an admin key of another owner": (
        "此密钥属于要删除的用户：请使用其他用户的 admin 密钥"
    ),
    "{reason}: a runner's key may store only files of such a job": "{reason}：runner 的密钥只能保存此类任务的文件",
    "{reason}: a runner's key may read only such inputs": "{reason}：runner 的密钥只能读取此类输入",
    "this host runs no job of {owner}": "此服务器没有运行 {owner} 的任务",
    "no job of {owner} that this host runs or may run has this file as input": (
        "此服务器正在运行或可以运行的 {owner} 的任务中，没有以该文件为输入的"
    ),
    "send a key: as 'Authorization: Bearer lamp_…', 'X-API-Key' or '?key='": (
        "缺少密钥：请用 Authorization: Bearer lamp_…、X-API-Key 或 ?key= 发送"
    ),
    "the key is not valid, or was revoked: send another": "密钥无效或已吊销：请更换密钥",
    "the key is missing or not valid: send one as a bearer header, as ?key=, or in a first message `auth`": (
        "缺少密钥或密钥无效：请用 Bearer 请求头、?key= 或首条消息 auth 发送"
    ),
    "no key arrived within {limit} s: send the message `auth` first": "{limit} 秒内未收到密钥：请先发送消息 auth",
    "the first message must be `auth` with payload.license_key": "首条消息必须是 auth，并带有 payload.license_key",
}

_JOBS: Mapping[str, str] = {
    "job {job} does not exist": "任务 {job} 不存在",
    "another request was accepted with this id or key: use a new one, or send the same body again": (
        "已有内容不同的请求使用了该编号或键：请换一个新的，或重新发送相同的内容"
    ),
    "the job has already ended: {status}": "任务已结束：{status}",
    "the job is {status}: only a finished job can be retried": "任务状态为 {status}：只有已结束的任务才能重试",
    "the job is {status}: cancel it first": "任务状态为 {status}：请先取消任务",
    "the job has succeeded: submit a new one to run it again": "任务已成功：如需再次运行，请提交新任务",
    "the job's deadline has passed: submit a new one": "任务的截止时间已过：请提交新任务",
    "the job has no output named {name}: output.files lists its files": (
        "任务没有名为 {name} 的结果文件：文件列表见 output.files"
    ),
    "the file was deleted from the store: run its job again to recreate it": (
        "文件已从存储中删除：重新运行任务即可再次生成"
    ),
    "no host offers the endpoint {name}; known: {what}": "没有服务器提供任务类型 {name}；已有：{what}",
    "none yet": "暂无",
    "a host offers {name}, but its schema is not valid: {why}": "有服务器提供 {name}，但其 schema 无效：{why}",
    "at most {limit} submits a minute: try again in {delay} s": "每分钟最多提交 {limit} 次：请 {delay} 秒后重试",
    "the key {key} may make {limit} requests a minute: try again in {delay} s": (
        "密钥 {key} 每分钟最多 {limit} 个请求：请 {delay} 秒后重试"
    ),
    "{limit} jobs of yours are waiting, which is the limit: let some start, or cancel them": (
        "您有 {limit} 个任务在排队，已达上限：请等待部分任务开始，或取消一些任务"
    ),
    "{limit} {what} of {who} are open, which is the limit: close some": (
        "{who} 已打开 {limit} 个{what}，已达上限：请关闭一些"
    ),
    "event streams": "事件流",
    "gateway sockets": "网关连接",
    "the key {key}": "密钥 {key}",
    "the edge is not reachable ({kind} {why}): check its address and the network": (
        "无法连接 edge（{kind} {why}）：请检查地址和网络"
    ),
    "{owner} is being deleted: wait until the deletion is done, then try again": (
        "{owner} 的数据正在删除：请等待删除完成后重试"
    ),
    "{owner} has the key of a host: first remove that host, or revoke the key": (
        "{owner} 持有某台服务器的密钥：请先移除该服务器，或吊销密钥"
    ),
    "no deletion of {owner} was requested: DELETE /v1/owners/{name} starts one": (
        "没有对 {owner} 的删除请求：用 DELETE /v1/owners/{name} 开始删除"
    ),
    "this delivery does not exist: GET /v1/jobs/{{id}}/deliveries lists those of a job": (
        "该推送记录不存在：任务的推送记录见 GET /v1/jobs/{{id}}/deliveries"
    ),
    "the webhook of this delivery was deleted: read the job instead": "该推送所属的 Webhook 已被删除：请改为读取任务",
    "an owner has at most {limit} webhooks: delete one, then try again": (
        "每个用户最多 {limit} 个 Webhook：请先删除一个再重试"
    ),
    "there is no webhook {webhook}: GET /v1/webhooks lists them": (
        "没有 Webhook {webhook}：全部 Webhook 见 GET /v1/webhooks"
    ),
    "an owner has at most {limit} secrets: delete one, then try again": (
        "每个用户最多 {limit} 条机密信息：请先删除一条再重试"
    ),
    "there is no secret {name}: GET /v1/secrets lists the names": "没有机密信息 {name}：全部名称见 GET /v1/secrets",
    "the name of a secret must have 1 to 64 characters of A-Z a-z 0-9 _, the first one no digit": (
        "机密信息的名称须为 1 至 64 个字符（A-Z a-z 0-9 _），且不能以数字开头"
    ),
    "must be a text of {least} to {most} bytes without NUL: a shorter one could not be masked in logs, and anything "
    "else can be encoded, for example with base64": (
        "须为 {least} 至 {most} 字节、不含 NUL 的文本：更短的值无法在日志中遮盖，其他内容可先编码，例如 base64"
    ),
    "secrets of the installation need the scope admin: use a key that has it": (
        "整个系统共用的机密信息需要 admin 权限：请使用具有该权限的密钥"
    ),
    "{endpoint} needs secrets that are not set ({names}): lamplighter secrets set NAME": (
        "{endpoint} 所需的机密信息尚未设置（{names}）：请运行 lamplighter secrets set NAME"
    ),
    "{endpoint} runs jobs of several owners in one container and needs secrets of the installation that are not set "
    "({names}): lamplighter secrets set NAME --installation": (
        "{endpoint} 在同一容器中运行多个用户的任务，所需的系统机密信息尚未设置（{names}）："
        "请运行 lamplighter secrets set NAME --installation"
    ),
    "the secret {name} cannot be read: {why}": "无法读取机密信息 {name}：{why}",
    "this edge cannot store secrets: {why}": "该 edge 无法保存机密信息：{why}",
    "{count} secrets cannot be read by this edge: {why}": "该 edge 无法读取 {count} 条机密信息：{why}",
    "the key {key} sealed them, and the key file of this edge ([secrets] key_file) does not have it: copy that file "
    "from an edge that can read them, or delete them and set them again": (
        "加密所用的密钥 {key} 不在该 edge 的密钥文件（[secrets] key_file）中：请从能够读取的 edge 复制该文件，"
        "或删除后重新设置"
    ),
    "the stored bytes are damaged: set the secret again": "保存的数据已损坏：请重新设置",
    "this host does not run the job: a runner's key may read only secrets of such": (
        "该服务器没有运行此任务：runner 的密钥只能读取其任务的机密信息"
    ),
    "the edge does not know yet what {host} offers: try again": "edge 尚不清楚 {host} 提供哪些任务类型：请重试",
    "is not a final state: use {states}": "不是结束状态：请使用 {states}",
    "{endpoint} has no job {job}": "{endpoint} 没有任务 {job}",
}

_FILES: Mapping[str, str] = {
    "you have no asset sha256:{sha256}": "您没有文件 sha256:{sha256}",
    "{count} job(s) still need it ({jobs}): cancel them or let them end": (
        "仍有 {count} 个任务需要该文件（{jobs}）：请取消这些任务，或等待其结束"
    ),
    "{room} bytes are left of your quota: delete assets or jobs that you no longer need": (
        "您的配额还剩 {room} 字节：请删除不再需要的文件或任务"
    ),
    "you have no upload {upload}, or it has expired: start it again": "上传 {upload} 不存在或已过期：请重新开始上传",
    "another request is sending to this upload: wait for it to end": "另一个请求正在写入此上传：请等待其结束",
    "another edge has received bytes of this upload: ask for its offset, and continue from there": (
        "另一个边缘节点已收到此上传的内容：请查询偏移量，并从该位置继续"
    ),
    "the upload was removed while its bytes arrived: start it again": "接收内容时此上传已被删除：请重新开始上传",
    "an upload may have at most {limit} bytes: make the file smaller": "上传的文件最大 {limit} 字节：请减小文件",
    "the length is less than the offset, or differs from the one named before: correct it": (
        "长度小于当前偏移量，或与之前声明的不同：请更正"
    ),
    "{sent} bytes are sent, but only {room} are missing": "发送了 {sent} 字节，但只差 {room} 字节",
    "the bytes' sha256 is {got}, not {wanted}: it was damaged in transit, or the file changed": (
        "内容的 sha256 为 {got}，而不是 {wanted}：传输中损坏，或文件已改变"
    ),
    "the body's sha256 is {got}, not {wanted}: it was damaged in transit, or it is another file": (
        "内容的 sha256 为 {got}，而不是 {wanted}：传输中损坏，或不是同一个文件"
    ),
    "{count} uploads are open: finish or delete some of them first": "已有 {count} 个未完成的上传：请先完成或删除一些",
    "the offset of the upload is {offset}: continue from there": "上传的当前偏移量为 {offset}：请从该位置继续",
    "the bytes do not match their checksum: send them again": "内容与校验值不符：请重新发送",
    "the file has more than the {limit} bytes allowed: make it smaller or ask for a higher limit": (
        "文件超过允许的 {limit} 字节：请减小文件，或申请更高的上限"
    ),
    "the asset store is full: delete assets or give it more space, then try again": (
        "文件存储空间已满：请删除文件或增加空间后重试"
    ),
    "the asset store failed ({why}): check its disk or network folder": "文件存储出错（{why}）：请检查磁盘或网络文件夹",
    "the asset store's bucket {why} ({detail})": "文件存储的 bucket {why}（{detail}）",
    "rejected the credentials: check those in the edge's environment": "拒绝了凭据：请检查 edge 环境变量中的凭据",
    "denied access: its policy must let the edge get, put, copy, list and delete": (
        "拒绝访问：其策略必须允许 edge 读取、写入、复制、列出和删除"
    ),
    "does not exist: create it, or correct [store] url": "不存在：请创建，或更正 [store] url",
    "failed: check it and the network": "出错：请检查 bucket 和网络",
    "an asset became shorter while it was read: check the store's disk": "读取时文件变短：请检查存储磁盘",
    "the state of upload {upload} cannot be read ({why}): start it again": (
        "无法读取上传 {upload} 的状态（{why}）：请重新开始上传"
    ),
    "this is not an asset digest: send the 64 hex digits of its sha256": (
        "不是文件的哈希值：请发送 sha256 的 64 位十六进制数"
    ),
    "a request may name at most {limit} digests: split it": "一次请求最多包含 {limit} 个哈希值：请拆分",
    "send the header Tus-Resumable: {version}, the only supported version": (
        "请发送请求头 Tus-Resumable: {version}，目前只支持该版本"
    ),
    "send the header Content-Type: {kind}": "请发送请求头 Content-Type: {kind}",
    "the header {name} must be a number of bytes": "请求头 {name} 必须是字节数",
    "send either Upload-Length or Upload-Defer-Length: 1": "请发送 Upload-Length 或 Upload-Defer-Length: 1，二者选一",
    "sha256 in Upload-Metadata must be 64 hex digits, base64-encoded like all values": (
        "Upload-Metadata 中的 sha256 必须是 64 位十六进制数，并与其他值一样用 base64 编码"
    ),
    "Upload-Metadata may have at most {limit} bytes": "Upload-Metadata 最大 {limit} 字节",
    "a value in Upload-Metadata is not base64 of UTF-8": "Upload-Metadata 中有值不是 UTF-8 的 base64 编码",
    "Upload-Checksum must be one of {algorithms}, a space, and the digest in base64": (
        "Upload-Checksum 的格式为：算法（{algorithms}）、空格、base64 编码的校验值"
    ),
    "the header Upload-Offset is missing: send the offset of this chunk": (
        "缺少请求头 Upload-Offset：请发送本片段的偏移量"
    ),
    "a POST to this path needs the header X-HTTP-Method-Override: PATCH or DELETE": (
        "对该路径 POST 需要请求头 X-HTTP-Method-Override: PATCH 或 DELETE"
    ),
}

_URLS: Mapping[str, str] = {
    "a URL has at most {limit} characters, no spaces and no backslashes": (
        "网址最多 {limit} 个字符，且不能包含空格和反斜杠"
    ),
    "the URL cannot be read: {why}": "无法解析网址：{why}",
    "only http and https are supported, not {scheme}": "只支持 http 和 https，不支持 {scheme}",
    "a URL must not contain a user or password: use a signed URL instead": (
        "网址中不能包含用户名或密码：请改用带签名的网址"
    ),
    "the URL has no host, or its port is not valid": "网址中没有主机名，或端口无效",
    "the URL's host is neither a name nor an address": "网址中的主机既不是域名也不是地址",
    "{host} is neither a name nor an address: write an address as four decimal numbers": (
        "{host} 既不是域名也不是地址：地址请写成四个十进制数"
    ),
    "{host} is {reason}; outbound.allow in the edge's settings can open it": (
        "{host} 是{reason}；可在 edge 的设置 outbound.allow 中放行"
    ),
    "{host} resolves to {reason}; outbound.allow in the edge's settings can open it": (
        "{host} 解析为{reason}；可在 edge 的设置 outbound.allow 中放行"
    ),
    "{host} has no address": "{host} 没有地址",
    "{host} cannot be resolved: {why}": "{host} 无法解析：{why}",
    "the target of a redirect is not a valid URL: {why}": "重定向的目标不是有效网址：{why}",
    "more than {limit} redirects": "重定向超过 {limit} 次",
    "its server answered {status}": "对方服务器返回 {status}",
    "its server sent it as {coding} although identity was requested": "对方服务器以 {coding} 编码发送，而不是原始内容",
    "its server does not answer properly ({why})": "对方服务器没有正常响应（{why}）",
    "it has {size} bytes, {limit} are allowed": "文件为 {size} 字节，最多允许 {limit} 字节",
    "an unspecified address": "未指定地址",
    "a private address": "内网地址",
    "a carrier's shared address": "运营商共享地址",
    "a loopback address": "本机回环地址",
    "a cloud's metadata address": "云服务元数据地址",
    "a link-local address": "链路本地地址",
    "a reserved address": "保留地址",
    "a documentation address": "文档示例地址",
    "a relay's address": "中继地址",
    "a benchmarking address": "测试用地址",
    "a multicast address": "组播地址",
    "an IPv4 address in IPv6": "IPv6 中的 IPv4 地址",
    "an address behind NAT64": "NAT64 地址",
    "a Teredo address": "Teredo 地址",
}

_SERVICE: Mapping[str, str] = {
    "the broker's store is full: delete jobs or give it more space, then try again": (
        "broker 的存储空间已满：请删除任务或增加空间后重试"
    ),
    "the broker does not answer: try again, with the same key or id nothing doubles; /readyz says what is wrong": (
        "broker 没有响应：请重试，使用相同的键或编号不会重复提交；原因见 /readyz"
    ),
    "the broker does not answer: try again in a few seconds": "broker 没有响应：请几秒后重试",
    "other requests keep changing this at the same time: try again": "其他请求正在同时修改此数据：请重试",
    "the request is larger than the broker accepts: move data into assets": (
        "请求超出 broker 允许的大小：请将数据放入文件"
    ),
    "the broker user of the edge lacks a permission: check nats.conf": "edge 的 broker 用户缺少权限：请检查 nats.conf",
    "a stored row cannot be read: the edge's log names it; delete it or write it again": (
        "有一条存储的记录无法读取：edge 的日志中有其名称；请删除或重新写入"
    ),
    "the stored record cannot be read: a newer version may have written it": (
        "无法读取存储的记录：可能由更新的版本写入"
    ),
    "the server failed to handle this request: its log has the cause": "服务器处理此请求时出错：原因见服务日志",
    "the broker could not write because its disk is full or broken, and it stores nothing until a restart: "
    "make room on that disk, then restart nats-server (`lamplighter up` restarts it by itself)": (
        "broker 的磁盘已满或损坏，无法写入，重启前不再保存数据："
        "请清理该磁盘，然后重启 nats-server（lamplighter up 会自动重启）"
    ),
    "the broker does not sync every write, so a power cut could lose accepted jobs: "
    "set sync_interval: always in nats.conf, or allow_unsynced at the edge": (
        "broker 没有同步每次写入，断电可能丢失已接受的任务："
        "请在 nats.conf 中设置 sync_interval: always，或在 edge 设置 allow_unsynced"
    ),
    "the broker's store is {used} full, and new work is refused from {limit} on: delete jobs or give it more space": (
        "broker 的存储空间已用 {used}，达到 {limit} 即拒绝新任务：请删除任务或增加空间"
    ),
    "the list of jobs is still being rebuilt: wait": "任务列表仍在重建：请稍候",
    "the edge is still reading its jobs: try again": "edge 仍在读取任务：请重试",
    "the edge is starting or stopping: try again": "edge 正在启动或停止：请重试",
    "the edge has just started and is still reading its jobs: try again": "edge 刚刚启动，仍在读取任务：请重试",
    "the edge cannot use its disk ({why}): free some space on it": "edge 无法使用磁盘（{why}）：请清理磁盘空间",
    "the server has {count} open connections, which is the limit: try again later": (
        "服务器已有 {count} 个连接，达到上限：请稍后重试"
    ),
    "{client} has {count} open connections, which is the limit: close some": (
        "{client} 已有 {count} 个连接，达到上限：请关闭一些"
    ),
    "there is no host with this id: GET /v1/hosts lists all hosts": "没有该编号的服务器：全部服务器见 GET /v1/hosts",
    "{host} is enrolled already: run `lamplighter hosts remove {name}` first": (
        "{host} 已接入：请先运行 lamplighter hosts remove {name}"
    ),
    "{host} is being enrolled at this moment: try again": "{host} 正在接入：请重试",
    "{host} is not enrolled: `lamplighter hosts list` shows the hosts": (
        "{host} 未接入：可用 lamplighter hosts list 查看服务器"
    ),
    "the join token {id} was revoked: {remedy}": "接入令牌 {id} 已被吊销：{remedy}",
    "the join token {id} expired at {time} UTC: {remedy}": "接入令牌 {id} 已于 {time} UTC 过期：{remedy}",
    "{count} hosts have joined with the join token {id}, its limit: {remedy}": (
        "已有 {count} 台服务器用接入令牌 {id} 接入，达到上限：{remedy}"
    ),
    "make a new one with `lamplighter hosts token`": "请用 lamplighter hosts token 创建新令牌",
    "there is no join token {id}: `lamplighter hosts token list`": (
        "没有接入令牌 {id}：可用 lamplighter hosts token list 查看"
    ),
    "the join token is not known here: copy the whole line again": "此处没有该接入令牌：请重新复制整行",
    "{host} is enrolled already, and not with this token: choose another id, or remove that host": (
        "{host} 已接入，且不是用该令牌：请换一个编号，或移除该服务器"
    ),
    "another runner is online as {host}: stop it, or wait until its heartbeat has expired": (
        "另一个 runner 正以 {host} 在线：请停止它，或等待其心跳过期"
    ),
    "{host} stays enrolled: `lamplighter hosts remove {name}` removes it": (
        "{host} 保持接入：可用 lamplighter hosts remove {name} 移除"
    ),
    "a host that joins with this token cannot be called {host}: its id must begin with {prefix}-": (
        "用该令牌接入的服务器不能叫 {host}：编号必须以 {prefix}- 开头"
    ),
    "only the host itself may leave, with its own key: an admin removes it": (
        "只有服务器自己可以用自己的密钥退出：请由管理员移除"
    ),
    "the console is switched off here: set console.enabled to true": (
        "此处未启用控制台：请将 console.enabled 设为 true"
    ),
    "no other machine can enroll here: start `lamplighter up` with --public NAME": (
        "其他机器无法接入：请用 lamplighter up --public 名称 启动"
    ),
    "{message}, or set {what}": "{message}，或设置 {what}",
    "url and broker of [public], and nats_conf_dir and reload_command of [enrollment]": (
        "[public] 的 url 和 broker，以及 [enrollment] 的 nats_conf_dir 和 reload_command"
    ),
    "{host} has no power driver: declare it under [hosts.{name}] in the edge's settings": (
        "{host} 没有电源驱动：请在 edge 设置的 [hosts.{name}] 中声明"
    ),
}

_RELAYS: Mapping[str, str] = {
    "{message}: start `up` with --public NAME, or set public.url": (
        "{message}：请用 up --public 名称 启动，或设置 public.url"
    ),
    "no address is known under which a relay reaches this edge": "不知道 relay 可以用什么地址访问此 edge",
}

REFUSALS_ZH: Mapping[str, str] = {
    **CONSOLE_REFUSALS_ZH,
    **_BODIES,
    **_FIELDS,
    **_KEYS,
    **_JOBS,
    **_FILES,
    **_URLS,
    **_SERVICE,
    **_RELAYS,
    **FACADE_REFUSALS_ZH,
}
