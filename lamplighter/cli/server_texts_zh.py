"""The Chinese texts of the server's commands: `up`, `edge`, `runner`, `relay`, `install`, `backup`, `restore`."""

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
    "{url} does not answer: {why}": "{url} 没有响应：{why}",
    "the {process} is healthy": "{process} 正常",
    "the {process} is not healthy: {why}": "{process} 不正常：{why}",
    "no answer from {url} ({why}): read its log": "{url} 没有响应（{why}）：请查看其日志",
    "{url} answers {status}: {answer}": "{url} 返回 {status}：{answer}",
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

SERVER_TEXTS_ZH: Mapping[str, str] = {**_UP, **_PROCESSES, **_INSTALL, **_BACKUP, **_AUTHORS, **_TRACES}
