"""The Chinese texts of the server's commands (`up`, `edge`, `runner`, `relay`, `install`, `backup`…), and of settings.

The second table is about settings, and about a start that fails because of them.
"""

from collections.abc import Mapping

_UP: Mapping[str, str] = {
    "{host} starts no jobs until {engine} answers there ({why}): {remedy}": (
        "{host} 上的 {engine} 没有响应（{why}），恢复前不会开始任务：{remedy}"
    ),
    "start it, or choose --engine process, which runs jobs without containers": (
        "请启动它，或选择 --engine process，不用容器运行任务"
    ),
    "{host} runs jobs as plain processes of {who}, not in containers: {more}": (
        "{host} 以 {who} 的普通进程运行任务，不在容器中：{more}"
    ),
    "{host} runs jobs in sandboxes of bubblewrap": "{host} 在 bubblewrap 沙箱中运行任务",
    "{host} runs jobs as plain processes of the user {user}, not in containers: {more}": (
        "{host} 以用户 {user} 的普通进程运行任务，不在容器中：{more}"
    ),
    "they have that user's access to the machine and its network": "任务拥有该用户对本机和网络的访问权限",
    "the user {user}": "用户 {user}",
    "{host} runs jobs in containers, by {engine}": "{host} 用 {engine} 在容器中运行任务",
    "http://127.0.0.1:{port}/easy/ needs no key: every program and user of this "
    "machine may submit jobs there; do not expose it through a proxy or tunnel": (
        "http://127.0.0.1:{port}/easy/ 不需要密钥：本机的所有程序和用户都可以提交任务；请勿通过代理或隧道对外开放"
    ),
    "Lamplighter is running.": "Lamplighter 已启动。",
    "(clients elsewhere: --url {url} --pin {pin})": "（其他机器上的客户端：--url {url} --pin {pin}）",
    "console {url}": "控制台 {url}",
    "The key above is for administration. For a program: {command}": "上面的密钥用于管理。供程序使用的密钥：{command}",
    "key": "密钥",
    "in {file}": "在 {file} 中",
    "Try: {command}   (logs: {folder}; stop with Ctrl-C)": "试一试：{command}   （日志：{folder}；按 Ctrl-C 停止）",
    "Try: {command}   (stop with Ctrl-C)": "试一试：{command}   （按 Ctrl-C 停止）",
    "edge or runner did not start within {limit} s: read {what}": (
        "edge 或 runner 在 {limit} 秒内没有启动：请查看{what}"
    ),
    "the logs in {folder}": " {folder} 中的日志",
    "the lines above": "上面的输出",
    "{process} cannot start with its settings: its last line above says why": (
        "{process} 无法以当前设置启动：原因见上面的最后一行"
    ),
    "{process} ended without output": "{process} 没有输出就结束了",
    "the data folder {folder} cannot be used ({why}): choose another with --data": (
        "无法使用数据文件夹 {folder}（{why}）：请用 --data 选择其他文件夹"
    ),
    "another `up` serves {folder}: stop it, or choose another --data": (
        "另一个 up 正在使用 {folder}：请停止它，或用 --data 选择其他文件夹"
    ),
    "port {port} cannot be opened ({why}): choose another with --port": (
        "无法打开端口 {port}（{why}）：请用 --port 选择其他端口"
    ),
    "cannot create a certificate for {names} ({why}): correct --public": (
        "无法为 {names} 创建证书（{why}）：请更正 --public"
    ),
    "the file {file} cannot be read ({why}): correct its name": "无法读取文件 {file}（{why}）：请更正文件名",
    "the command {command} is in lamplighter-server: {hint}": "命令 {command} 属于 lamplighter-server：{hint}",
    "--cert and --key belong together: give both, or neither": "--cert 和 --key 必须一起使用：请同时给出，或都不给出",
    "--cert and --key need --public NAME: a name for which the certificate is valid": (
        "--cert 和 --key 需要 --public 名称：证书对该名称有效"
    ),
    "give a certificate and its key": "请给出证书及其密钥",
    "{url} rejected the key: join again with a token of `lamplighter hosts add --relay`, or correct relay.key": (
        "{url} 拒绝了密钥：请用 lamplighter hosts add --relay 的令牌重新接入，或更正 relay.key"
    ),
    "{file} cannot be read ({why}): join again with a new token": "无法读取 {file}（{why}）：请用新的令牌重新接入",
    "{program} is not on this machine: install it, or use --print": "本机没有 {program}：请安装，或使用 --print",
    "{program} cannot be run ({why}): correct that, or use --print": (
        "无法运行 {program}（{why}）：请先处理，或使用 --print"
    ),
    "the variable {name} is not set: set it for the edge, and name it in `inherit` of [hosts.NAME]": (
        "未设置变量 {name}：请为 edge 设置，并写入 [hosts.NAME] 的 inherit"
    ),
    "LAMPLIGHTER_HOST or SLURM_PILOT is not set: the edge sets the first, `env` of [hosts.NAME] the second": (
        "未设置 LAMPLIGHTER_HOST 或 SLURM_PILOT：前者由 edge 设置，后者由 [hosts.NAME] 的 env 设置"
    ),
    "{url} does not answer: {why}": "{url} 没有响应：{why}",
    "the {process} is healthy": "{process} 正常",
    "the {process} is not healthy: {why}": "{process} 不正常：{why}",
    "no answer from {url} ({why}): read its log": "{url} 没有响应（{why}）：请查看其日志",
    "{url} answers {status}: {answer}": "{url} 返回 {status}：{answer}",
    "health_file is not set: set it for the process and for this command, as LAMPLIGHTER_HEALTH_FILE": (
        "未设置 health_file：请为该进程和此命令都设置，即 LAMPLIGHTER_HEALTH_FILE"
    ),
    "{file} cannot be read ({why}): the process has not connected yet, or names another file": (
        "无法读取 {file}（{why}）：该进程尚未连接，或设置了另一个文件"
    ),
    "{file} was last renewed {seconds} s ago: the process hangs or has lost its connection; read its log": (
        "{file} 上次更新是在 {seconds} 秒前：该进程已停止响应或连接已断开；请查看其日志"
    ),
}

_PROCESSES: Mapping[str, str] = {
    "a relay needs --join TOKEN, or urls and key under [relay]; and [hosts.NAME] with a driver": (
        "relay 需要 --join TOKEN，或 [relay] 中的 urls 和 key，以及带驱动的 [hosts.NAME]"
    ),
    "{url} rejected the key: create one with the scope relay and set LAMPLIGHTER_RELAY__KEY": (
        "{url} 拒绝了密钥：请创建有 relay 权限的密钥，并设置 LAMPLIGHTER_RELAY__KEY"
    ),
    "this relay does not know {host}: declare [hosts.{name}] here": "此 relay 不认识 {host}：请在此声明 [hosts.{name}]",
    "the switch of {host} did not answer in {limit} s": "{host} 的电源驱动在 {limit} 秒内没有响应",
}

_INSTALL: Mapping[str, str] = {
    "--system writes to /etc/systemd/system and makes a user, which only root may do: use sudo, or --user": (
        "--system 会写入 /etc/systemd/system 并创建用户，只有 root 可以执行：请使用 sudo，或改用 --user"
    ),
    "there is no user {user} on this machine: create it, or omit --run-as": (
        "本机没有用户 {user}：请创建该用户，或不使用 --run-as"
    ),
    "wrote {path}": "已写入 {path}",
    "kept  {path}": "已保留 {path}",
    "kept    {path}": "已保留 {path}",
    "removed {path}": "已删除 {path}",
    "systemd does not run here, so nothing was started: systemctl {user}enable --now {unit}": (
        "此处没有运行 systemd，未启动任何服务：systemctl {user}enable --now {unit}"
    ),
    "Its log: {command}": "查看日志：{command}",
    "To start it at boot, before you log in: sudo loginctl enable-linger $USER": (
        "如需开机（登录前）即启动：sudo loginctl enable-linger $USER"
    ),
    "To delete these too: {program} uninstall --data": "如需一并删除：{program} uninstall --data",
    "nothing is installed here: {file} names no service": "此处没有安装任何服务：{file} 中没有记录",
    "{role} is not installed here: {what} is": "此处没有安装 {role}，已安装：{what}",
    "{file} cannot be read ({why}): restore it, or remove the units by hand": (
        "无法读取 {file}（{why}）：请恢复该文件，或手动移除服务单元"
    ),
    "the user {user} cannot run {program}, because {folder} is closed to others: install Lamplighter in a folder "
    "that all may enter, such as /opt/lamplighter, or give --run-as root": (
        "用户 {user} 无法运行 {program}，因为 {folder} 不对其他用户开放：请将 Lamplighter 安装在所有用户都能进入的"
        "文件夹，例如 /opt/lamplighter，或使用 --run-as root"
    ),
    "{program} cannot be run ({why}): install it, or give --print and do it by hand": (
        "无法运行 {program}（{why}）：请安装它，或用 --print 后手动操作"
    ),
    "`{command}` failed ({why}): correct that first": "{command} 失败（{why}）：请先处理",
}

_BACKUP: Mapping[str, str] = {
    "there is nothing to back up: no edge has used this broker yet": "没有可备份的内容：还没有 edge 使用过此 broker",
    "without the content of files": "不含文件内容",
    "backed up": "已备份",
    "{what} {jobs}, {files} ({more}) to {file}": "{what}：任务 {jobs}，文件 {files}（{more}），到 {file}",
    "{what} {jobs}, {files} ({more}) from {file}": "{what}：任务 {jobs}，文件 {files}（{more}），来自 {file}",
    "{what} {jobs}, {files} ({more}) in {file}": "{what}：任务 {jobs}，文件 {files}（{more}），在 {file}",
    "restored": "已恢复",
    "verified": "已校验",
    "{bytes} bytes, of {time}": "{bytes} 字节，{time}",
    "--keep needs a folder, and {file} is a file: name the folder of the backups": (
        "--keep 需要文件夹，而 {file} 是文件：请指定备份所在的文件夹"
    ),
    "{file} exists: choose another name, or give --overwrite": "{file} 已存在：请换一个名称，或使用 --overwrite",
    "{file} is encrypted: give the key file that it was made with, by --key-file": (
        "{file} 已加密：请用 --key-file 给出加密时使用的密钥文件"
    ),
    "the key file {file} cannot be read ({why}): correct --key-file": (
        "无法读取密钥文件 {file}（{why}）：请更正 --key-file"
    ),
    "the key in {file} is shorter than {limit} characters: make one with `openssl rand -base64 32 >{path}`": (
        "{file} 中的密钥少于 {limit} 个字符：请用 openssl rand -base64 32 >{path} 生成"
    ),
    "this backup was made with another key: give the key file that it was made with": (
        "此备份使用了另一个密钥：请给出加密时使用的密钥文件"
    ),
    "a position before the start of the backup": "位置早于备份的开头",
    "{file} is not a backup, or its end is missing: use another copy of it": (
        "{file} 不是备份，或不完整：请使用另一份副本"
    ),
    "the backup has format {format} (release {release}), this release reads up to format {limit}: "
    "restore it with that release or a newer one": (
        "备份的格式为 {format}（版本 {release}），当前版本最高支持格式 {limit}：请使用该版本或更新的版本恢复"
    ),
    "{part} is missing: the file is not a backup of Lamplighter": "缺少 {part}：该文件不是 Lamplighter 的备份",
    "{part} in the backup is damaged: use another copy of the file, or an earlier backup": (
        "备份中的 {part} 已损坏：请使用另一份副本，或更早的备份"
    ),
    "there is nothing to back up in {folder}: name the folder of an `up`, or give --config": (
        "{folder} 中没有可备份的内容：请指定 up 的数据文件夹，或给出 --config"
    ),
    "an `up` serves {folder}: stop it first, or choose another --data": (
        "up 正在使用 {folder}：请先停止它，或用 --data 选择其他文件夹"
    ),
    "an `up` serves {folder}, but {file} is not written yet: try again": (
        "up 正在使用 {folder}，但尚未写入 {file}：请重试"
    ),
    "{part} of the backup is outside the data folder: the file was changed, use another copy": (
        "备份中的 {part} 位于数据文件夹之外：文件被改动过，请使用另一份副本"
    ),
    "an edge uses this broker: stop every edge first": "有 edge 正在使用此 broker：请先停止所有 edge",
    "this installation is not empty ({count}): restore into a new one, or give --replace to delete its data": (
        "目标系统不为空（{count}）：请恢复到新的系统，或用 --replace 删除现有数据"
    ),
}

_AUTHORS: Mapping[str, str] = {
    "{name} cannot be the name of an image: use at most 40 of a-z and 0-9, with - or _ between them": (
        "{name} 不能用作镜像名称：最多 40 个字符，可用 a-z、0-9，中间可用 - 或 _"
    ),
    "{folder} is not empty: choose another name, or another folder with --folder": (
        "{folder} 不是空文件夹：请换一个名称，或用 --folder 指定其他文件夹"
    ),
    "made {folder}. Next: lamplighter try {path}": "已创建 {folder}。下一步：lamplighter try {path}",
    "there is no {file} in {folder}: make a folder with `lamplighter new NAME`": (
        "{folder} 中没有 {file}：请用 lamplighter new NAME 创建文件夹"
    ),
    "the input does not fit {file}: {why}": "输入不符合 {file}：{why}",
    "a secret has {sizes} bytes, as `secrets set` checks: correct the variables {names}": (
        "机密信息须为 {sizes} 字节（`secrets set` 也会检查）：请更正变量 {names}"
    ),
    "the endpoint needs secrets, which `try` reads from the environment: set {names}": (
        "该任务类型需要机密信息，`try` 从环境变量读取：请设置 {names}"
    ),
    "a file must be a path on this machine: `try` fetches nothing": "文件必须是本机上的路径：try 不会下载任何内容",
    "docker cannot be run ({why}): install it, or give --no-build": (
        "无法运行 docker（{why}）：请安装，或使用 --no-build"
    ),
    "{image} cannot be built from {folder}: the lines above say why. If it is built elsewhere, give --no-build": (
        "无法从 {folder} 构建 {image}：原因见上面的输出。如在别处构建，请使用 --no-build"
    ),
    "warning: a host like this machine would not run its jobs, it lacks {what}": (
        "警告：与本机相同的服务器不会运行其任务，缺少{what}"
    ),
    "{file} of the volume {name} has no `url`, and there is no edge here that has it: "
    "give a folder with --volume {volume}=FOLDER": (
        "卷 {name} 的文件 {file} 没有 url，而本机没有保存它的 edge：请用 --volume {volume}=FOLDER 指定一个文件夹"
    ),
    "filling the volume {names}: {percent} %": "正在下载卷 {names}：{percent} %",
    "--volume {text}: give NAME=FOLDER, the name of a volume in {file} ({names}) and a folder": (
        "--volume {text}：请给出 NAME=FOLDER，即 {file} 中卷的名称（{names}）和一个文件夹"
    ),
    "running one job of {name}: {engine}": "正在运行 {name} 的一个任务：{engine}",
    "waiting for a change; stop with Ctrl-C": "等待文件改动；按 Ctrl-C 停止",
    "the job failed as {code}: {message}": "任务失败，代码 {code}：{message}",
    "install the module where the program runs: in an image, with a line RUN pip install": (
        "请在程序运行的环境中安装该模块：在镜像中加一行 RUN pip install"
    ),
    "the job succeeded in {took}": "任务成功，用时 {took}",
    "SIGTERM: {what}": "SIGTERM：{what}",
    "breaks the rule {rule}: {what}": "违反规则 {rule}：{what}",
    "no rule of the contract is broken": "没有违反任何规则",
    "{name} cannot start on this machine ({reason}): {why}; free the GPU, or set gpu_optional = true in [resources]": (
        "{name} 无法在本机启动（{reason}）：{why}；请释放 GPU，或在 [resources] 中设置 gpu_optional = true"
    ),
    "not checked": "未检查",
    "not checked: the job failed": "未检查：任务失败",
    "not checked: the job ended before it could be stopped": "未检查：任务在停止之前已结束",
    "killed after {time} s": "{time} 秒后被强制结束",
    "stopped after {time} s": "{time} 秒后停止",
    "it did not accept the start line": "容器没有接受启动消息",
    "a trial uploads nothing": "试运行不会上传任何内容",
    "asset {digest} is not a local file": "文件 {digest} 不在本机",
    "it ended with exit code {code}: end with one of {codes}, which say whether the job is tried again": (
        "程序以退出码 {code} 结束：请使用 {codes} 之一，退出码决定任务是否重试"
    ),
    "it failed without an error line: print one on stdout first, or nobody learns the reason": (
        "程序失败但没有输出错误消息：请先在 stdout 输出一行错误消息，否则无法得知原因"
    ),
    "it reported no progress: print a progress line at each step, or a longer job is ended as stalled": (
        "程序没有报告进度：请在每一步输出进度消息，否则较长的任务会因没有进展而被结束"
    ),
    "a line on stdout looks like a message and is not one: {line}": "stdout 中有一行像消息但无法识别：{line}",
    "it left {name} in out/, which is never an output: rename the file when it is complete": (
        "out/ 中留有 {name}，该文件不会成为结果：写完后请改名"
    ),
    "it left no usable output: write output.json or a file with a plain name into out/": (
        "没有可用的结果：请在 out/ 中写入 output.json 或文件名普通的文件"
    ),
    "it still ran {time} s after SIGTERM and was killed: end on SIGTERM within grace_s, also while a library works": (
        "收到 SIGTERM 后仍运行了 {time} 秒，已被强制结束：请在 grace_s 内响应 SIGTERM，包括库函数运行期间"
    ),
    "warm = true, and the warm container was not ready ({why}): load, listen on start.sock, print the ready line": (
        "已设置 warm = true，但预热容器没有就绪（{why}）：请加载、监听 start.sock，并输出 ready 消息"
    ),
    "it changed {file} in its own folder, which is read-only in a container: write to the job's tmp/": (
        "程序修改了自己文件夹中的 {file}，该文件夹在容器中是只读的：请写入任务的 tmp/"
    ),
    "it writes to the root, which is read-only ({line}): write to the job's tmp/ or to /tmp": (
        "程序写入只读的根文件系统（{line}）：请写入任务的 tmp/ 或 /tmp"
    ),
    "it needs rights of root or of another user ({line}): make its files readable for everybody": (
        "程序需要 root 或其他用户的权限（{line}）：请让所有用户都能读取其文件"
    ),
}

_TRACES: Mapping[str, str] = {
    "traces.endpoint is set, but OpenTelemetry is not installed: pip install '{extra}', or remove the setting": (
        "已设置 traces.endpoint，但未安装 OpenTelemetry：请运行 pip install '{extra}'，或删除该设置"
    ),
}

# A runner that is in a container itself.
_OWN_CONTAINER: Mapping[str, str] = {
    "the Docker socket {path} is not in the runner's container": "runner 的容器里没有 Docker 套接字 {path}",
    "add the volume {source}:{target} to it": "给它加上卷 {source}:{target}",
    "the user {uid} of the runner's container may not use {path}": "runner 容器的用户 {uid} 无权使用 {path}",
    'set user: "0:0", or group_add: ["{group}"], for it': '为它设置 user: "0:0"，或 group_add: ["{group}"]',
    "{path} in the runner's container is not a socket": "runner 容器里的 {path} 不是套接字",
    "start Docker on the host, then create it again": "先在主机上启动 Docker，再重新创建该容器",
    "the data folder {folder} must have the same path on the host, where it {more}": (
        "数据目录 {folder} 在主机上的路径必须相同，而它{more}"
    ),
    "is {source} there": "在那里是 {source}",
    "is not a folder of the host": "不是主机的目录",
    "add the volume {source}:{target} to the runner's container": "给 runner 的容器加上卷 {source}:{target}",
    "the runner's container does not see the processes of the host": "runner 的容器看不到主机的进程",
    "set pid: host for it": "为它设置 pid: host",
}


SERVER_TEXTS_ZH: Mapping[str, str] = {
    **_UP,
    **_PROCESSES,
    **_INSTALL,
    **_BACKUP,
    **_AUTHORS,
    **_TRACES,
    **_OWN_CONTAINER,
}


_FAULTS: Mapping[str, str] = {
    "{setting} {problem}: correct it in {where}": "{setting}{problem}：请在 {where} 中更正",
    "is {value}: it must be {what}": " 的值是 {value}：必须是{what}",
    "is missing: set it to {what}": " 缺失：请设为{what}",
    "is refused: {why}": " 无效：{why}",
    "has a name that is not allowed: it must be {what}": " 的名称无效：必须是{what}",
    "is not a setting{more}": " 不是设置项{more}",
    " (did you mean {choice}?)": "（您是否想用 {choice}？）",
    "{file} is not valid TOML: {why}: correct it there": "{file} 不是有效的 TOML：{why}：请更正",
    "{file} is not valid TOML: it is not UTF-8 text ({why}): correct it": (
        "{file} 不是有效的 TOML：不是 UTF-8 文本（{why}）：请更正"
    ),
    " ({count} more: `lamplighter config check`)": "（另有 {count} 处：lamplighter config check）",
    "{name} is set together with a variable that is its prefix: set only one of the two": (
        "同时设置了 {name} 和作为其前缀的变量：请只设置其中一个"
    ),
    "{name} starts like JSON but cannot be read as JSON: {why}": "{name} 看起来是 JSON，但无法解析：{why}",
    "{old} is the old name of {new}, and both are set: remove {name}": (
        "{old} 是 {new} 的旧名称，而两者都已设置：请删除 {name}"
    ),
    "{old} is the old name of {new}: use the new name": "{old} 是 {new} 的旧名称：请使用新名称",
    "a setting of type {kind} cannot be read from {value}": "无法从 {value} 读取类型为 {kind} 的设置",
    "{name} is not read any more ({why}): remove it": "{name} 已不再使用（{why}）：请删除",
    "the variable {name} is not read by any process: correct its spelling, or unset it": (
        "没有进程读取变量 {name}：请更正拼写，或取消设置"
    ),
    "the settings file {file} cannot be read ({why}): correct --config or LAMPLIGHTER_CONFIG": (
        "无法读取设置文件 {file}（{why}）：请更正 --config 或 LAMPLIGHTER_CONFIG"
    ),
    "{file}: valid for {roles}": "{file}：对 {roles} 有效",
    "warning: {message}": "警告：{message}",
    "no settings": "没有设置",
    "VALUE": "值",
    "FROM": "来源",
    "{setting} is {value} in {where}, but `up` decides it: {remedy}": (
        "{where} 中的 {setting} 为 {value}，但该项由 up 决定：{remedy}"
    ),
    "remove it; `lamplighter edge` and `lamplighter runner` work with a broker of your own": (
        "请删除；如需使用自己的 broker，请用 lamplighter edge 和 lamplighter runner"
    ),
    "remove it; `up` opens itself to other machines with --public NAME": (
        "请删除；如需对其他机器开放，请用 up --public 名称"
    ),
    "--easy-port needs /easy/, but heygem.enabled is false: remove one of the two": (
        "--easy-port 需要 /easy/，但 heygem.enabled 为 false：请去掉其中一个"
    ),
}

_VALUES: Mapping[str, str] = {
    "a whole number": "整数",
    "a whole number from {low} to {high}": " {low} 到 {high} 的整数",
    "a whole number of at least {low}": "不小于 {low} 的整数",
    "a whole number above {low}": "大于 {low} 的整数",
    "a number": "数字",
    "a number from {low} to {high}": " {low} 到 {high} 的数字",
    "a number of at least {low}": "不小于 {low} 的数字",
    "a number above {low}": "大于 {low} 的数字",
    "true or false": " true 或 false",
    "a list, each item {what}": "列表，每一项为{what}",
    "a list of {low} to {high} items, each item {what}": "{low} 到 {high} 项的列表，每一项为{what}",
    "a list of at least {low} items, each item {what}": "至少 {low} 项的列表，每一项为{what}",
    "a list of at most {high} items, each item {what}": "最多 {high} 项的列表，每一项为{what}",
    "a table, each value {what}": "表，每个值为{what}",
    "a table": "表",
    "a path": "路径",
    "text": "文本",
    "`min` is {min} and `max` is {max}: `max` must not be smaller than `min`": (
        "min 为 {min}，max 为 {max}：max 不得小于 min"
    ),
    "`listen` is {value}: it must be address:port, as in 0.0.0.0:8443": (
        "listen 的值是 {value}：必须是 地址:端口，例如 0.0.0.0:8443"
    ),
    'a list of words, as in ["program", "argument"]': '词的列表，例如 ["program", "argument"]',
    "a span of the day, as in 23:00-07:00": "时间段，例如 23:00-07:00",
    "the name of an environment variable": "环境变量的名称",
    "six bytes in hex, as in a4:bb:6d:00:11:22": "六个十六进制字节，例如 a4:bb:6d:00:11:22",
    "an address that starts with http:// or https://": "以 http:// 或 https:// 开头的地址",
    "a price needs both `per_kwh` and `watts`, or per_hour alone: add the missing one": (
        "价格需要同时给出 per_kwh 和 watts，或只给出 per_hour：请补上缺少的一项"
    ),
    "a budget in money needs `price`: add price = {{ per_hour = … }}": (
        "按金额计算的预算需要 price：请添加 price = {{ per_hour = … }}"
    ),
    "{name} is not a time zone that this machine knows: use a name like Asia/Shanghai": (
        "{name} 不是本机支持的时区：请使用 Asia/Shanghai 这样的名称"
    ),
    "`inherit` names {name}: that is a setting of the edge, which programs never get: remove it": (
        "inherit 中有 {name}：这是 edge 的设置，不会传给程序：请删除"
    ),
    "`server` also needs `token_file` and `namespace`: add what is missing": (
        "`server` 还需要 `token_file` 和 `namespace`：请补全"
    ),
    "`secret` must be whsec_ and base64, the format of Standard Webhooks": (
        "secret 必须是 whsec_ 加 base64，即 Standard Webhooks 的格式"
    ),
    "`username` and `password_file` belong together: set both, or neither": (
        "`username` 和 `password_file` 必须一起使用：请同时设置，或都不设置"
    ),
    '`dead_man` needs a program to run: set poweroff, as in ["systemctl", "poweroff"]': (
        'dead_man 需要可以运行的程序：请设置 poweroff，例如 ["systemctl", "poweroff"]'
    ),
    "this is not a join token ({why}): copy the whole line of `{command}`": (
        "这不是接入令牌（{why}）：请复制 {command} 输出的整行"
    ),
}

_STARTS: Mapping[str, str] = {
    "the data folder {folder} cannot be created ({why})": "无法创建数据文件夹 {folder}（{why}）",
    "{message}: choose another with LAMPLIGHTER_DATA": "{message}：请用 LAMPLIGHTER_DATA 选择其他文件夹",
    "first admin key (shown once): {key}": "首个管理员密钥（只显示一次）：{key}",
    "the certificate cannot be created in {folder} ({why}): correct its owner and permissions": (
        "无法在 {folder} 中创建证书（{why}）：请更正其所有者和权限"
    ),
    "{setting} answers programs of {address} without a key, and server.trusted_proxies has a proxy at that "
    "address: let the proxy connect from 127.0.0.2 and trust that (docs/proxy.md), or close the port": (
        "{setting} 对 {address} 的程序不要求密钥，而 server.trusted_proxies 中有该地址的代理："
        "请让代理从 127.0.0.2 连接并信任该地址（docs/proxy.md），或关闭此端口"
    ),
    "{what} port {port} cannot be opened ({why})": "无法打开{what}端口 {port}（{why}）",
    "the broker has not answered for {seconds} s, after which this runner ends": (
        "broker 已有 {seconds} 秒没有响应，本 runner 就此结束"
    ),
    "{message}: choose another with metrics.listen": "{message}：请用 metrics.listen 选择其他端口",
    "{message}: choose another with {option}": "{message}：请用 {option} 选择其他端口",
    "correct cert and key in [public]": "请更正 [public] 中的 cert 和 key",
    "restore both files, or delete both for a new certificate, with which every host enrolls again": (
        "请恢复这两个文件，或将两者删除以生成新的证书，此后每台服务器都需要重新接入"
    ),
    "{first} {cert} and {second} {key} are not a certificate and its key as PEM ({why}): {remedy}": (
        "{first} {cert} 和 {second} {key} 不是 PEM 格式的证书及其密钥（{why}）：{remedy}"
    ),
    "it is not PEM text": "不是 PEM 文本",
    "{setting} {file} cannot be read ({why}): {remedy}": "无法读取 {setting} {file}（{why}）：{remedy}",
    "the key is encrypted with a password: store it without one": "密钥有密码保护：请保存为不带密码的密钥",
    "{setting} {file} is not a certificate as PEM: {remedy}": "{setting} {file} 不是 PEM 格式的证书：{remedy}",
    "{message}: join again with a new token, or correct edge.pin": "{message}：请用新的令牌重新接入，或更正 edge.pin",
    "idle for {seconds} s: the runner ends": "已空闲 {seconds} 秒：runner 结束运行",
    "{what}; until now it was {previous}, and jobs that still run there start again": (
        "{what}；此前为 {previous}，仍在那里运行的任务会重新开始"
    ),
    "another runner uses {folder}: stop it, or choose another data folder": (
        "另一个 runner 正在使用 {folder}：请停止它，或选择其他数据文件夹"
    ),
    "jobs run in Docker containers ({why}; engine at {address})": (
        "任务在 Docker 容器中运行（{why}；引擎地址 {address}）"
    ),
    "jobs run as plain processes of the user {user}, not in containers ({why}): they see this machine and its network "
    "as that user does, and no images are pulled. engine = docker runs them in containers": (
        "任务以用户 {user} 的普通进程运行，不在容器中（{why}）：任务能访问该用户在本机和网络上可以访问的内容，"
        "且不拉取镜像。设置 engine = docker 可在容器中运行"
    ),
    "jobs run as plain processes of the user {user}, not in containers ({why}) or a sandbox ({problem}): they see this "
    "machine and its network as that user does, and no images are pulled. engine = docker runs them in containers": (
        "任务以用户 {user} 的普通进程运行，不在容器中（{why}），也不在沙箱中（{problem}）："
        "任务能访问该用户在本机和网络上可以访问的内容，且不拉取镜像。设置 engine = docker 可在容器中运行"
    ),
    "jobs run as processes of the user {user}, each in a sandbox of bubblewrap, not in containers ({why}): no images "
    "are pulled. engine = docker runs them in containers": (
        "任务以用户 {user} 的进程运行，每个任务在 bubblewrap 沙箱中，不在容器中（{why}）：不拉取镜像。"
        "设置 engine = docker 可在容器中运行"
    ),
    'jobs cannot run in a sandbox ({problem}): fix that, or set [process] sandbox = "none"': (
        '任务无法在沙箱中运行（{problem}）：请解决此问题，或设置 [process] sandbox = "none"'
    ),
    "asked for by name: engine = {engine}": "按设置 engine = {engine}",
    "this machine had no Docker client at the first start": "首次启动时本机没有 Docker 客户端",
    "{program} is installed": "已安装 {program}",
    "{file}, which records the engine of this host, cannot be read ({why}): "
    "delete it, and start with engine = docker or engine = process": (
        "无法读取记录本机引擎的 {file}（{why}）：请删除该文件，并以 engine = docker 或 engine = process 启动"
    ),
}

SETTINGS_TEXTS_ZH: Mapping[str, str] = {**_FAULTS, **_VALUES, **_STARTS}
