"""The Chinese texts about settings and about a start that fails because of them."""

from collections.abc import Mapping

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
    "the key is encrypted with a password": "密钥有密码保护",
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
