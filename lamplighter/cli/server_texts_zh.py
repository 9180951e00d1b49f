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

SERVER_TEXTS_ZH: Mapping[str, str] = {**_UP, **_PROCESSES, **_INSTALL, **_BACKUP}
