"""The Chinese texts of the command line: of the client's commands and of what the SDK raises.

Keys are the English texts of the code, with named placeholders (schemas/texts.py). tests/lamplighter/test_language.py
says which text lacks an entry. `help_texts_zh` has the help, `server_texts_zh` the commands of the server and the
settings.
"""

from collections.abc import Mapping

from lamplighter.cli.help_texts_zh import HELP_TEXTS_ZH
from lamplighter.cli.server_texts_zh import SERVER_TEXTS_ZH, SETTINGS_TEXTS_ZH

_COLUMNS: Mapping[str, str] = {
    "JOB": "任务",
    "ENDPOINT": "任务类型",
    "STATUS": "状态",
    "CREATED": "创建时间",
    "DETAIL": "详情",
    "HOST": "服务器",
    "STATE": "状态",
    "SINCE": "起始时间",
    "ENGINE": "引擎",
    "ENDPOINTS": "任务类型",
    "GPUS": "显卡",
    "GPU ACCESS": "显卡接入",
    "{host} is on: {why}": "{host} 保持开机：{why}",
    "GPU": "显卡",
    "POSITION": "排队位置",
    "ELAPSED": "已用时",
    "ETA": "预计剩余",
    "IMAGES": "镜像",
    "WARM": "预热",
    "JOBS": "任务数",
    "LABELS": "标签",
    "REVISION": "版本",
    "AT": "时间",
    "EVENT": "事件",
    "SHA256": "SHA256",
    "SIZE": "大小",
    "TYPE": "类型",
    "NAME": "名称",
    "HOSTS": "服务器",
    "DESCRIPTION": "说明",
    "FIELD": "字段",
    "REQUIRED": "必填",
    "KEY": "密钥",
    "OWNER": "用户",
    "SCOPES": "权限",
    "TOKEN": "令牌",
    "USED": "已用",
    "PREFIX": "前缀",
    "POOL": "池",
    "EXPIRES": "到期时间",
    "LAST USED": "最近使用",
    "SECRET": "机密信息",
    "SET": "设置时间",
    "BY KEY": "设置者密钥",
    "GPU TIME": "显卡时间",
    "ENERGY": "耗电",
    "COST": "费用",
    "HOURS ON": "开机小时",
    "CHECK": "检查项",
    "FOUND": "结果",
    "FIX": "处理方法",
    # Names of the facts of one job.
    "job": "任务",
    "endpoint": "任务类型",
    "status": "状态",
    "detail": "详情",
    "position": "排队位置",
    "attempt": "尝试",
    "host": "服务器",
    "engine": "引擎",
    "created": "创建",
    "started": "开始",
    "finished": "结束",
    "ran": "运行",
    "output": "结果",
    # Small words in cells.
    "yes": "是",
    "file": "文件",
    "any": "任意",
    "none": "无",
    "total": "合计",
    "nothing": "无",
    "automatic": "自动",
    "override: on": "强制开机",
    "override: off": "强制关机",
    "waiting": "等待中",
    "running": "运行中",
    "uploading {name}": "正在上传 {name}",
    "fetching {name}": "正在下载 {name}",
    "{count} ready": "{count} 个就绪",
    "{count} loading": "{count} 个加载中",
    "{attempt} of {limit}, round {round}": "第 {attempt} 次，共 {limit} 次，第 {round} 轮",
    "{engine} as {user}, away": "{engine}（用户 {user}），无响应",
    "{engine} as {user}": "{engine}（用户 {user}）",
    "{engine}, away": "{engine}，无响应",
}

_JOBS: Mapping[str, str] = {
    "accepted: job {job}\nfollow it with: {command}": "已接受：任务 {job}\n跟踪进度：{command}",
    "job {job}": "任务 {job}",
    "job {job} {status}: {why}": "任务 {job} {status}：{why}",
    "job {job} {status}, round {round}": "任务 {job} {status}，第 {round} 轮",
    "job {job} {status}": "任务 {job} {status}",
    "job {job} deleted": "任务 {job} 已删除",
    "+{count} hosts": "另有 {count} 台服务器",
    "+{count} waiting": "另有 {count} 个任务等待中",
    "+{count} waiting, or more": "另有至少 {count} 个任务等待中",
    "+{count} jobs, {waiting} of them waiting": "另有 {count} 个任务，其中 {waiting} 个等待中",
    "cancel {job}? y: yes  n: no": "取消任务 {job}？y：是  n：否",
    "up/down: choose  c: cancel  l: log  q: quit": "上下键：选择  c：取消  l：日志  q：退出",
    "up/down, page up/page down: scroll  q: back": "上下键、翻页键：滚动  q：返回",
    "log of {job}: line {line} of {count}": "任务 {job} 的日志：第 {line} 行，共 {count} 行",
    "saved {path}": "已保存 {path}",
    "no jobs yet": "还没有任务",
    "no job waits or runs": "没有等待或运行中的任务",
    "it is empty": "值为空",
    "no reason was recorded": "没有记录原因",
    "the whole log: {command}": "完整日志：{command}",
    "\nThe job continues. Watch it again with: {command}": "\n任务仍在继续。再次查看：{command}",
    "--tag {text} is not NAME:VALUE: put a colon between name and value": (
        "--tag {text} 的格式不是 NAME:VALUE：请在名称与值之间加冒号"
    ),
    "{word} has no field: give inputs as --FIELD VALUE": "{word} 没有对应的字段：请用 --字段 值 的形式给出输入",
    "--{name} has no value: give inputs as --FIELD VALUE": "--{name} 没有值：请用 --字段 值 的形式给出输入",
    "--{name} {text} is not a value of the type {kind}": "--{name} {text} 不是 {kind} 类型的值",
    "--{name} {text}: the file does not exist": "--{name} {text}：文件不存在",
    "{endpoint} has no --{name}: it takes {names}": "{endpoint} 没有 --{name}：可用的有 {names}",
    "give the options after {verb}, not before it": "选项请写在 {verb} 之后，而不是之前",
    "no assets yet": "还没有文件",
    "; {hosts} will delete its copy before the next job": "；{hosts} 会在下一个任务前删除其副本",
    "no host yet": "尚无服务器",
    "no host offers an endpoint yet": "还没有服务器提供任务类型",
    "takes no input": "不需要输入",
    "one of {choices}": "可选值：{choices}",
    "default {value}": "默认 {value}",
}

_CLIENT: Mapping[str, str] = {
    "stopped by Ctrl-C": "已被 Ctrl-C 停止",
    "{file} cannot be used ({why}): choose another, or check its rights and free space": (
        "无法使用 {file}（{why}）：请换一个，或检查权限和剩余空间"
    ),
    "no answer from {url} ({why}): is the edge running, and is the address right?": (
        "{url} 没有响应（{why}）：请确认 edge 已启动，且地址正确"
    ),
    "unauthorized: there is no key for {url}: give --data, the folder of `lamplighter up`, or set LAMPLIGHTER_KEY": (
        "unauthorized：没有 {url} 的密钥：请用 --data 指定 `lamplighter up` 的数据文件夹，或设置 LAMPLIGHTER_KEY"
    ),
    "unauthorized: {message}": "unauthorized：{message}",
    "the key contains a character that keys do not have, perhaps a line break: copy it again": (
        "密钥中含有不应有的字符，可能是换行：请重新复制"
    ),
    "{url} was redirected ({status}): use the address of the redirect, with its https": (
        "{url} 被重定向（{status}）：请直接使用重定向后的 https 地址"
    ),
    "{url} was not answered by an edge ({why}): is the address right?": (
        "{url} 的响应不是来自 edge（{why}）：请确认地址正确"
    ),
    "no text": "没有内容",
    "both ca and pin are given: give the authority's file, or the pin of the edge's own key": (
        "同时给出了 ca 和 pin：请只给出证书颁发机构的文件，或 edge 自身密钥的 pin"
    ),
    "{url} is not encrypted, so ca and pin protect nothing: use the https address of the edge": (
        "{url} 没有加密，ca 和 pin 不起作用：请使用 edge 的 https 地址"
    ),
    "the file {file} cannot be used for ca ({why}): correct it": "文件 {file} 不能用作 ca（{why}）：请更正",
    "{url} shows a certificate that is not trusted ({why}): give ca or pin": (
        "{url} 的证书不受信任（{why}）：请给出 ca 或 pin"
    ),
    "it is not the pinned one": "与 pin 不符",
    "{url} shows a certificate that is not trusted ({why}): {certificate}. If this is your edge's certificate, pass "
    "--pin {pin} (its public key), or --ca FILE with the certificate of its issuer": (
        "{url} 的证书不受信任（{why}）：{certificate}。如果这是您的 edge 的证书，请使用 --pin {pin}（其公钥），"
        "或用 --ca FILE 给出颁发者的证书"
    ),
    "no host has connected yet: start a runner": "还没有服务器接入：请启动 runner",
    "host {host} removed; revoked: {rights}": "服务器 {host} 已移除；已吊销：{rights}",
    "its key for files": "文件密钥",
    "its broker account and connections": "broker 账号和连接",
    "its power override": "电源的强制状态",
    "its maintenance": "维护状态",
    "host {host} {state}, {what}": "服务器 {host}：{state}，{what}",
    "no keys": "没有密钥",
    "no scopes": "没有权限",
    "key {key} of {owner} with {what}; it is not shown again": ("密钥 {key}，用户 {owner}，权限：{what}；不会再次显示"),
    "job {job} is still {status}, and continues: wait for it again, or cancel it": (
        "任务 {job} 的状态仍为 {status}，并继续运行：请再次等待，或取消任务"
    ),
    "its heartbeat and capabilities": "心跳和任务类型",
    "join token {token} revoked": "接入令牌 {token} 已吊销",
    "{number} of its hosts stay: {remedy} removes them": ("用它接入的 {number} 台服务器仍然保留：{remedy} 可移除它们"),
    "lamplighter hosts token revoke {token} --hosts": "lamplighter hosts token revoke {token} --hosts",
    "no join tokens": "没有接入令牌",
    "gpus of {host}": "{host} 的 GPU",
    "its runner uses {gpus}": "其 runner 使用 {gpus}",
    "GPUs for jobs: {gpus}": "供任务使用的 GPU：{gpus}",
    "correct the variable, or name the GPUs of this machine's runner with gpu.visible": (
        "请改正该变量，或用 gpu.visible 指定本机 runner 的 GPU"
    ),
    "{problem}: correct it, or name this runner's GPUs with gpu.visible": (
        "{problem}：请改正，或用 gpu.visible 指定此 runner 的 GPU"
    ),
    "{value} is not a duration: write it as 90s, 30m, 12h or 7d": "{value} 不是时长：请写成 90s、30m、12h 或 7d",
    "key {key} revoked": "密钥 {key} 已吊销",
    "Delete all data of {owner}? This cannot be undone.": "确定删除 {owner} 的所有数据吗？此操作无法撤销。",
    "nothing was deleted: add --yes to delete without a question": "没有删除任何数据：如需直接删除，请加 --yes",
    "\nThe deletion continues. Show it with: lamplighter owners show {owner}": (
        "\n删除仍在继续。查看进度：lamplighter owners show {owner}"
    ),
    "{count} deleted, {waiting} to be cancelled first": "已删除 {count}，还有 {waiting} 个需先取消",
    "all deleted; checking for data that arrived in the meantime": "已全部删除；正在检查期间新到的数据",
    "{jobs} and {files} deleted": "已删除 {jobs} 和 {files}",
    "{hosts}: copies are deleted within a minute, or before the next job once the host is on": (
        "{hosts}：副本会在一分钟内删除；未开机的服务器会在开机后、下一个任务前删除"
    ),
    "jobs": "个任务",
    "of them cancelled first": "个先被取消",
    "files": "个文件",
    "unfinished upload": "个未完成的上传",
    "unfinished uploads": "个未完成的上传",
    "key": "个密钥",
    "keys": "个密钥",
    "webhook delivery": "条 webhook 推送",
    "webhook deliveries": "条 webhook 推送",
    "message to followers": "条推送消息",
    "messages to followers": "条推送消息",
    "row of usage": "条用量记录",
    "rows of usage": "条用量记录",
    "no events": "没有记录",
    "secret": "条机密信息",
    "secrets": "条机密信息",
    "no secrets": "没有机密信息",
    "secret {name} is set": "机密信息 {name} 已设置",
    "the key {key} of {file} seals all secrets ({count})": "{file} 中的密钥 {key} 现已加密所有机密信息（{count} 条）",
    "the old key is still in that file. Copy the file to every edge that has its own, and keep a copy outside the "
    "backups; then, after a minute: lamplighter secrets rotate-key --finish": (
        "该文件中仍有旧密钥。请将文件复制到每个自有密钥文件的 edge，并在备份之外另存一份；一分钟后运行："
        "lamplighter secrets rotate-key --finish"
    ),
    "no old key is in that file any more: keep a copy of it outside the backups": (
        "该文件中已没有旧密钥：请在备份之外另存一份"
    ),
    "secret {name} is deleted": "机密信息 {name} 已删除",
    "the installation": "整个系统",
    "Value": "值",
    "the value is not UTF-8 text: encode it, for example with base64": "值不是 UTF-8 文本：请先编码，例如使用 base64",
    "--owner and --installation exclude each other: give one of them": (
        "--owner 与 --installation 不能同时使用：请只用一个"
    ),
    "no webhooks for all jobs": "没有所有任务共用的 Webhook",
    "webhook {webhook} deleted": "Webhook {webhook} 已删除",
    "the receiver answered {status}": "接收方返回 {status}",
    "no answer: {why}": "没有响应：{why}",
    "active": "启用",
    "disabled": "已停用",
    "all": "全部",
    "nothing is wrong": "一切正常",
    "sent": "已发送",
    "not sent": "未发送",
    "no targets: add [notify.targets.NAME] to the edge's settings": (
        "没有通知目标：请在 edge 的设置中添加 [notify.targets.NAME]"
    ),
    "all owners": "所有用户",
    "{owner}, {start} to {end}": "{owner}，{start} 至 {end}",
    "no job has ended in this time": "此期间没有任务结束",
    "hosts on {on} h, off {off} h": "服务器开机 {on} 小时，关机 {off} 小时",
}

_DOCTOR: Mapping[str, str] = {
    "edge": "edge",
    "clock": "时钟",
    "version": "版本",
    "edge {edge}, this command {command}": "edge {edge}，本命令 {command}",
    "version of {host}": "{host} 的版本",
    "its runner is {runner} and the edge {edge}, more than one release apart: upgrade the older one": (
        "其 runner 为 {runner}，edge 为 {edge}，相差超过一个版本：请升级较旧的一方"
    ),
    "LAMPLIGHTER_HOST or SLURM_PILOT is not set: the edge and `env` set them": (
        "未设置 LAMPLIGHTER_HOST 或 SLURM_PILOT：它们由 edge 和 `env` 设置"
    ),
    "host {host}: {why}": "服务器 {host}：{why}",
    "broker": "broker",
    "hosts": "服务器",
    "disk": "磁盘",
    "valid": "有效",
    "start Docker on that host; its runner continues without a restart": (
        "请在该服务器上启动 Docker；其 runner 会自动继续，无需重启"
    ),
    "build or pull its image on that host, under the name in its endpoint.toml": (
        "请在该服务器上构建或拉取镜像，名称与 endpoint.toml 一致"
    ),
    "free some space on that host": "请在该服务器上清理磁盘空间",
    "image on {host}": "{host} 的镜像",
    "{hosts} (they differ)": "{hosts}（版本不一致）",
    "{hosts} (paused)": "{hosts}（已暂停）",
    "endpoint {name} is paused: `lamplighter endpoints resume` ends that": (
        "任务类型 {name} 已暂停：恢复请运行 `lamplighter endpoints resume`"
    ),
    "endpoint {name} is not paused any more": "任务类型 {name} 已恢复",
    "host {host} is in maintenance": "服务器 {host} 正在维护",
    "host {host} is no longer in maintenance": "服务器 {host} 已结束维护",
    "{state}, in maintenance": "{state}，维护中",
    "endpoint {name}": "任务类型 {name}",
    "its hosts differ ({versions})": "各服务器的版本不一致（{versions}）",
    "give these hosts the same endpoint.toml and the same image, best by its digest": (
        "请让这些服务器使用相同的 endpoint.toml 和相同的镜像，最好用摘要指定镜像"
    ),
    "give these hosts the same folder, and build its image again if it has one": (
        "请让这些服务器使用相同的文件夹，如有镜像请重新构建"
    ),
    "{image} is pulled: {progress}": "正在拉取 {image}：{progress}",
    "{registry} refuses {image} to this login, or does not have it ({why})": (
        "{registry} 拒绝以此登录提供 {image}，或没有该镜像（{why}）"
    ),
    "{registry} has no {image} ({why})": "{registry} 没有 {image}（{why}）",
    "the engine's disk is full ({why})": "容器引擎的磁盘已满（{why}）",
    "{registry} cannot be reached from the host ({why})": "该服务器无法连接 {registry}（{why}）",
    "the connection to {registry} broke ({why})": "与 {registry} 的连接中断（{why}）",
    "the engine could not pull {image} ({why})": "容器引擎无法拉取 {image}（{why}）",
    'set username and password_file under [registries."{registry}"], or run docker login on that host': (
        '请在 [registries."{registry}"] 下设置 username 和 password_file，或在该服务器上运行 docker login'
    ),
    "correct egress.image in the settings of that host, or push it": (
        "请更正该服务器设置中的 egress.image，或推送该镜像"
    ),
    "correct `image` in endpoint.toml, or push it": "请更正 endpoint.toml 中的 image，或推送该镜像",
    "check its name, the network and its certificate": "请检查名称、网络和证书",
    "nothing, it is tried again": "无需处理，会自动重试",
    "read the engine's log on that host": "请查看该服务器上容器引擎的日志",
    "this host pulls no images ([images] pull = false)": "该服务器不拉取镜像（[images] pull = false）",
    "build or pull {image} there": "请在该服务器上构建或拉取 {image}",
    "is being downloaded: {progress}": "正在下载：{progress}",
    "volume {names} on {host}": "{host} 上的卷 {names}",
    "see the volumes of that host in this list": "请查看本列表中该服务器的卷",
    "{server} has no {file} of the volume {name} ({why})": "{server} 没有卷 {name} 的文件 {file}（{why}）",
    "{server} refuses {file} of the volume {name} ({why})": "{server} 拒绝提供卷 {name} 的文件 {file}（{why}）",
    "{server} sent another file in place of {file} of the volume {name} ({why})": (
        "{server} 发送的文件与卷 {name} 的 {file} 不符（{why}）"
    ),
    "the disk for volumes has no room for {file} of the volume {name} ({why})": (
        "存放卷的磁盘没有空间存放卷 {name} 的文件 {file}（{why}）"
    ),
    "{file} of the volume {name} does not fit into [volumes] max_gb beside what that host needs ({why})": (
        "卷 {name} 的文件 {file} 加上该服务器的任务类型所需的文件超过了 [volumes] max_gb（{why}）"
    ),
    "the disk for volumes has no room for the volume {name} ({why})": "存放卷的磁盘没有空间存放卷 {name}（{why}）",
    "the volume {name} does not fit into [volumes] max_gb beside what that host needs ({why})": (
        "卷 {name} 加上该服务器的任务类型所需的文件超过了 [volumes] max_gb（{why}）"
    ),
    "{server} cannot be reached from the host for {file} of the volume {name} ({why})": (
        "该服务器无法连接 {server} 以下载卷 {name} 的文件 {file}（{why}）"
    ),
    "the connection to {server} broke at {file} of the volume {name} ({why})": (
        "下载卷 {name} 的文件 {file} 时与 {server} 的连接中断（{why}）"
    ),
    "{file} of the volume {name} cannot be had from {server} ({why})": (
        "无法从 {server} 取得卷 {name} 的文件 {file}（{why}）"
    ),
    "upload it with a key of the owner lamplighter-volumes, or correct its `sha256`": (
        "请使用用户 lamplighter-volumes 的密钥上传该文件，或更正其 sha256"
    ),
    "give that host a new key: run lamplighter hosts add for it, and the command that it prints": (
        "请为该服务器创建新密钥：运行 lamplighter hosts add，再在该服务器上运行它显示的命令"
    ),
    "correct its `url` in endpoint.toml, or put the file there": "请更正 endpoint.toml 中的 url，或将文件放到该处",
    "check the login in its `url` in endpoint.toml": "请检查 endpoint.toml 中 url 里的登录信息",
    "correct its `sha256` in endpoint.toml, or the file there": "请更正 endpoint.toml 中的 sha256，或该处的文件",
    "free some space on that host, or set [volumes] folder to another disk": (
        "请清理该服务器的磁盘，或将 [volumes] folder 设为其他磁盘"
    ),
    "raise it, or offer fewer endpoints there": "请调大该值，或在该服务器上减少任务类型",
    "check the address, the network and its certificate": "请检查地址、网络和证书",
    "nothing, it goes on from there": "无需处理，会从中断处继续",
    "look at that server, or at the disk of that host": "请检查提供下载的服务器，或运行 runner 的机器的磁盘",
    "filling": "下载中",
    "pulling": "拉取中",
    "missing": "缺少",
    "disk full": "磁盘已满",
    "install Docker on that host and set engine = docker, or run only images that you trust": (
        "请在该服务器上安装 Docker 并设置 engine = docker，或只运行可信的镜像"
    ),
    "install the NVIDIA container toolkit on that host and restart its runner": (
        "请在该服务器上安装 NVIDIA container toolkit，并重启其 runner"
    ),
    "{url} is not a Lamplighter edge (HTTP {status})": "{url} 不是 Lamplighter 的 edge（HTTP {status}）",
    "give the right address with --url": "请用 --url 给出正确的地址",
    "answers at {url}": "{url} 有响应",
    "synchronize both clocks with NTP": "请用 NTP 同步两边的时钟",
    "differs by {seconds} s from the edge's": "与 edge 相差 {seconds} 秒",
    "reachable, synced, and its store has room": "可连接，写入已同步，存储空间充足",
    "read the logs of the edge and the broker": "请查看 edge 和 broker 的日志",
    "give --key or LAMPLIGHTER_KEY, or create a key with: lamplighter keys create OWNER": (
        "请给出 --key 或 LAMPLIGHTER_KEY，或创建密钥：lamplighter keys create OWNER"
    ),
    "refused with {status}": "被拒绝（{status}）",
    "this key may not list them": "此密钥无权列出",
    "use a key with the scope hosts:read": "请使用有 hosts:read 权限的密钥",
    "no host has connected yet": "还没有服务器接入",
    "start one with: lamplighter runner": "启动一台：lamplighter runner",
    "{state}, offers {what}": "{state}，提供 {what}",
    "host {host}": "服务器 {host}",
    "gpu {gpu}": "显卡 {gpu}",
    "{share} of it free": "剩余 {share}",
    "engine of {host}": "{host} 的引擎",
    "secrets of {host}": "{host} 的机密信息",
    "files of secrets are on its disk while a job has them, not in memory": (
        "任务使用机密信息期间，其文件保存在该服务器的磁盘上，而不在内存中"
    ),
    "name a folder of a tmpfs as secrets_folder in the settings of that runner": (
        "请在该 runner 的设置中用 secrets_folder 指定一个 tmpfs 文件夹"
    ),
    "{engine} does not answer, jobs wait: {why}": "{engine} 没有响应，任务等待中：{why}",
    "jobs run as plain processes of the runner's user, not in containers": (
        "任务以 runner 自身用户的普通进程运行，不在容器中"
    ),
    "jobs run as plain processes of {user}, not in containers": "任务以用户 {user} 的普通进程运行，不在容器中",
    "jobs ran in a sandbox on this host, and that does not work any more ({why}): fix it, or set "
    '[process] sandbox = "none" to run them without one': (
        "此服务器上的任务曾在沙箱中运行，现已无法运行（{why}）：请修复，"
        '或设置 [process] sandbox = "none" 以不用沙箱运行'
    ),
    "jobs run as processes of {user}, each in a sandbox of bubblewrap": (
        "任务以用户 {user} 的进程运行，每个任务在 bubblewrap 沙箱中"
    ),
    "the runner's user": "runner 自身的用户",
    "jobs run by {engine}, isolated by {isolation}; it has {runtimes}": (
        "任务由 {engine} 运行，由 {isolation} 隔离；可用的有 {runtimes}"
    ),
    "runner of {host}": "{host} 的 runner",
    "cannot {what}": "无法执行：{what}",
    "correct that file; until then the host keeps its endpoints as they were": (
        "请更正该文件；在此之前，服务器沿用原来的任务类型"
    ),
    "host {host} keeps its endpoints as they were, because a file is not valid: {why}": (
        "服务器 {host} 沿用原来的任务类型，因为有文件无效：{why}"
    ),
    "start its runner, or declare [hosts.{host}] so that the edge can power it on": (
        "请启动其 runner，或声明 [hosts.{host}]，以便 edge 为其开机"
    ),
    "off, and the edge cannot power it on": "已关机，且 edge 无法为其开机",
    "{why}; when it is repaired: lamplighter power {host} auto": "{why}；修复后运行：lamplighter power {host} auto",
    "of {url} ends in {days} days ({date})": "{url} 的证书将在 {days} 天后（{date}）到期",
    "renew it: edge and broker read the new files by themselves": "请更新证书：edge 和 broker 会自动读取新文件",
    "read that runner's log": "请查看该 runner 的日志",
    "{endpoint} on {host}": "{host} 上的 {endpoint}",
    "cannot start now: {reason}": "目前无法启动：{reason}",
    "cannot start there, the host lacks {what}": "无法在该服务器上启动，缺少{what}",
    "offer it on another host, or correct the requirements in its endpoint.toml": (
        "在其他服务器上提供它，或更正其 endpoint.toml 中的要求"
    ),
    "{host} (lacks {what})": "{host}（缺少{what}）",
    "{endpoint} (unmet)": "{endpoint}（要求未满足）",
    "gpu access of {host}": "{host} 的显卡接入",
    "given to containers by {method}": "通过 {method} 提供给容器",
    "fix the image, or set warm = false in its endpoint.toml": "请修复镜像，或在其 endpoint.toml 中设置 warm = false",
    "warm slots of {host}": "{host} 的预热容器",
    "free some space, or move the data folder with --data": "请清理磁盘空间，或用 --data 更换数据文件夹",
    "{size} GB free under {folder}": "{folder} 剩余 {size} GB",
    "start it with: lamplighter up, or choose another with --url": "启动：lamplighter up；或用 --url 选择其他地址",
    "no answer from {url}: {why}": "{url} 没有响应：{why}",
    "the edge did not answer in time ({why})": "edge 没有按时响应（{why}）",
    "fix the checks above first": "请先处理上面的问题",
    "nothing checked": "没有检查任何内容",
    "install or start Docker, or run jobs unisolated with --engine process": (
        "请安装或启动 Docker，或用 --engine process 不隔离地运行任务"
    ),
    "no Docker engine: {why}": "没有 Docker 引擎：{why}",
    "{state}: no GPU is monitored": "{state}：没有监测到显卡",
    "GPU endpoints cannot run here": "需要显卡的任务类型不能在此运行",
    "driver {version}, {count} GPU": "驱动 {version}，{count} 块显卡",
    "driver {version}, {count} GPUs": "驱动 {version}，{count} 块显卡",
    "{gpu}, {free} MB free": "{gpu}，剩余显存 {free} MB",
}

TEXTS_ZH: Mapping[str, str] = {
    **_COLUMNS,
    **_JOBS,
    **_CLIENT,
    **_DOCTOR,
    **HELP_TEXTS_ZH,
    **SERVER_TEXTS_ZH,
    **SETTINGS_TEXTS_ZH,
}
