"""The Chinese help of the command line: of the program, its commands and their options."""

from collections.abc import Mapping

# The words of click: headings of the help, and errors about the usage.
_CLICK: Mapping[str, str] = {
    "Usage: ": "用法：",
    "Options": "选项",
    "Commands": "命令",
    "Commands of the server{more}": "服务端命令{more}",
    "Show this message and exit.": "显示此帮助并退出。",
    "Show the version and exit.": "显示版本并退出。",
    "default: {value}": "默认：{value}",
    "required": "必填",
    "Try '{command} {option}' for help.": "运行 {command} {option} 查看帮助。",
    "Error: {message}": "错误：{message}",
    "Aborted!": "已中止。",
    "No such option {name}.": "没有选项 {name}。",
    "No such option {name}. Did you mean {choice}?": "没有选项 {name}。您是否想用 {choice}？",
    "No such option {name}. (Did you mean one of: {choices}?)": "没有选项 {name}。（您是否想用：{choices}）",
    "No such option: {name}": "没有选项 {name}",
    "No such option: {name} Did you mean {choice}?": "没有选项 {name}，您是否想用 {choice}？",
    "No such option: {name} (Possible options: {choices})": "没有选项 {name}（相近的有：{choices}）",
    "No such command {name}.": "没有命令 {name}。",
    "No such command {name}. Did you mean {choice}?": "没有命令 {name}。您是否想用 {choice}？",
    "No such command {name}. (Did you mean one of: {choices}?)": "没有命令 {name}。（您是否想用：{choices}）",
    "Missing command.": "缺少命令。",
    "Missing argument {name}.": "缺少参数 {name}。",
    "Missing option {name}.": "缺少选项 {name}。",
    "Got unexpected extra argument ({names})": "多余的参数：{names}",
    "Got unexpected extra arguments ({names})": "多余的参数：{names}",
    "Invalid value for {name}: {why}": "{name} 的值无效：{why}",
    "Invalid value: {why}": "值无效：{why}",
    "Option {name} requires an argument.": "选项 {name} 需要一个值。",
    "Option {name} does not take a value.": "选项 {name} 不带值。",
    "{value} is not one of {choices}.": "{value} 不是可选值：{choices}。",
    "{value} is not a valid {kind}.": "{value} 不是有效的 {kind}。",
    "{value} is not in the range {range}.": "{value} 不在范围 {range} 内。",
    "File {name} does not exist.": "文件 {name} 不存在。",
    "Directory {name} does not exist.": "文件夹 {name} 不存在。",
    "Path {name} does not exist.": "路径 {name} 不存在。",
    "File {name} is a directory.": "{name} 是文件夹，不是文件。",
    "Directory {name} is a file.": "{name} 是文件，不是文件夹。",
    "File {name} is not readable.": "文件 {name} 不可读。",
    "Directory {name} is not readable.": "文件夹 {name} 不可读。",
}

_COMMANDS: Mapping[str, str] = {
    "A self-hosted GPU job runner: the edge is always on, the GPU only when there is work.": (
        "自托管的 GPU 任务系统：edge 始终在线，GPU 只在有任务时开机。"
    ),
    "Exit codes: 0 success, 1 the job failed, 2 wrong usage or an unusable file, 3 the server cannot be "
    "reached, 4 refused, 130 stopped by Ctrl-C.": (
        "退出码：0 成功，1 任务失败，2 用法错误或文件无法使用，3 无法连接服务，4 被拒绝，130 被 Ctrl-C 停止。"
    ),
    "Serve broker, edge and runner on this machine until stopped.": "在本机运行 broker、edge 和 runner，直到停止。",
    "Serve the edge.": "运行 edge。",
    "Run jobs on this host.": "在本机运行任务。",
    "Power hosts of this network on and off when an edge asks.": "按 edge 的要求为本网络的服务器开关机。",
    "Set up edge, runner, relay or backups as systemd services.": "将 edge、runner、relay 或备份设为 systemd 服务。",
    "Remove what `install` set up.": "移除 install 设置的内容。",
    "Check whether an edge, runner or relay of this machine works.": "检查本机的 edge、runner 或 relay 是否正常。",
    "Back up the installation to one file, or verify a backup.": "将整个系统备份到一个文件，或校验备份。",
    "Restore an installation from a backup.": "从备份恢复系统。",
    "Submit a job.": "提交任务。",
    "A pilot in a Slurm cluster, submitted by this user (deploy/slurm).": (
        "Slurm 集群中的 pilot 作业，由当前用户提交（deploy/slurm）。"
    ),
    "The host; the edge sets it.": "服务器，由 edge 设置。",
    "The batch script of the pilot.": "pilot 作业的批处理脚本。",
    "An option for sbatch. May be repeated.": "sbatch 的选项，可重复。",
    "Power a rented GPU box, as a program of [hosts.NAME].": "为租用的 GPU 机器开关机，供 [hosts.NAME] 调用。",
    'Power a rented GPU box on or off, for `[hosts.NAME]` with `driver = "command"`.': (
        '为租用的 GPU 机器开关机，供设有 driver = "command" 的 [hosts.NAME] 调用。'
    ),
    "Print a link that opens the console in a browser, signed in.": "输出在浏览器中打开控制台并已登录的链接。",
    "Print a link that opens the console in a browser, signed in with this key. It works once, for 15 minutes.": (
        "输出在浏览器中打开控制台并以此密钥登录的链接。链接只能使用一次，15 分钟内有效。"
    ),
    "ID is a relay, which powers hosts of its network on and off (docs/gateway.md).": (
        "ID 是 relay，为其网络中的服务器开关机（docs/gateway.md）。"
    ),
    "A box at UCloud CompShare. Reads COMPSHARE_PUBLIC_KEY and COMPSHARE_PRIVATE_KEY.": (
        "优云智算（UCloud CompShare）的机器。读取 COMPSHARE_PUBLIC_KEY 和 COMPSHARE_PRIVATE_KEY。"
    ),
    'A container instance "Pro" at AutoDL. Reads AUTODL_TOKEN.': "AutoDL 的容器实例 Pro。读取 AUTODL_TOKEN。",
    "The id of the box, uhost-…": "机器的编号，uhost-…",
    "The id of the container instance, pro-…": "容器实例的编号，pro-…",
    "Its region, such as cn-wlcb.": "所在地域，例如 cn-wlcb。",
    "Its zone, such as cn-wlcb-01.": "所在可用区，例如 cn-wlcb-01。",
    "The port on loopback [that of the settings, or 8000].": "本机回环地址上的端口 [设置中的端口，或 8000]。",
    "With --public: your own certificate, as PEM, with its chain.": (
        "与 --public 一起使用：自己的证书，PEM 格式，包含证书链。"
    ),
    "With --public: the key of --cert, as PEM.": "与 --public 一起使用：--cert 的密钥，PEM 格式。",
    "List jobs.": "列出任务。",
    "Show one job.": "显示一个任务。",
    "Follow a job to its end.": "跟踪任务直到结束。",
    "List the events of a job.": "列出任务的事件。",
    "Print a job's log.": "输出任务的日志。",
    "Stop a job.": "停止任务。",
    "Run a job again that did not succeed.": "重新运行未成功的任务。",
    "Remove a job that has ended.": "删除已结束的任务。",
    "Upload files.": "上传文件。",
    "List files, delete some.": "列出或删除文件。",
    "List, add and remove GPU hosts, or put one into maintenance.": "列出、添加和移除 GPU 服务器，或使其进入维护状态。",
    "Keep a host on or off, or switch it automatically.": "让服务器保持开机或关机，或自动开关机。",
    "Show usage and cost.": "显示用量和费用。",
    "Show who did what to keys, hosts, owners, jobs and settings.": "显示谁对密钥、服务器、用户、任务和设置做了什么。",
    "Show who did what to keys, hosts, owners, jobs, files and settings, newest first. 400 days are kept.": (
        "显示谁对密钥、服务器、用户、任务、文件和设置做了什么，最新的在前。记录保留 400 天。"
    ),
    "Only what the key with this id did.": "只显示该 ID 的密钥所做的操作。",
    "Only this action, such as key_created.": "只显示该操作，例如 key_created。",
    "Only what was done to this key, host, owner, job or file.": "只显示对该密钥、服务器、用户、任务或文件的操作。",
    "Only actions on what this owner has.": "只显示对该用户名下对象的操作。",
    "Start, such as 2026-11-01T00:00:00Z [all that is kept].": "例如 2026-11-01T00:00:00Z；不填则显示全部保留的记录。",
    "Call a URL when jobs end: list, add, delete and test webhooks.": (
        "任务结束时调用网址：列出、添加、删除和测试 Webhook。"
    ),
    "Call a URL when any of your jobs ends: list, add, delete and test webhooks.": (
        "您的任何任务结束时调用网址：列出、添加、删除和测试 Webhook。"
    ),
    "List the webhooks for all jobs.": "列出所有任务共用的 Webhook。",
    "Add a webhook: URL is called with the final states of all your jobs. Prints its id.": (
        "添加 Webhook：您的所有任务结束时调用 URL。输出其 ID。"
    ),
    "Only jobs of this endpoint. May be repeated.": "只限该任务类型的任务。可重复。",
    "Only jobs that end like this. May be repeated.": "只限以该状态结束的任务。可重复。",
    "Delete a webhook. Its waiting deliveries are not sent.": "删除 Webhook。等待中的推送不再发送。",
    "Send one test message to a webhook and show the answer. Exit code 1 unless it is 2xx.": (
        "向 Webhook 发送一条测试消息并显示响应。响应不是 2xx 时退出码为 1。"
    ),
    "Show the conditions that hold, and test the targets of messages.": "显示会通知运维人员的情况，并测试通知目标。",
    "Show the conditions that hold, and test the targets of messages (needs a key with the scope admin).": (
        "显示会通知运维人员的情况，并测试通知目标（需要 admin 权限的密钥）。"
    ),
    "List the conditions that hold now.": "列出当前存在的情况。",
    "Send one message to each target and show which failed and why. Exit code 1 if one failed.": (
        "向每个通知目标发送一条消息，显示哪些失败及原因。有失败时退出码为 1。"
    ),
    "Events to print.": "要显示的记录条数。",
    "Print the newest events, then new ones until Ctrl-C.": "先显示最新的记录，再持续显示新记录，直到按 Ctrl-C。",
    "List the endpoints, show the fields of one, pause or resume one.": "列出任务类型，显示字段，暂停或恢复任务类型。",
    "Create, list, rotate and revoke API keys.": "创建、列出、更换和吊销 API 密钥。",
    "Delete all data of an owner.": "删除某个用户的所有数据。",
    "Watch hosts and jobs.": "实时查看服务器和任务。",
    "Check this installation and show how to fix it.": "检查系统，并给出处理方法。",
}

_SERVER: Mapping[str, str] = {
    "Make a folder with a new image.": "创建新镜像的文件夹。",
    "Run one job of an image folder here, and check it.": "在本机运行镜像文件夹的一个任务并检查。",
    "Make a folder with a new image: program, endpoint.toml, Dockerfile, README.": (
        "创建新镜像的文件夹：程序、endpoint.toml、Dockerfile、README。"
    ),
    "Where to make it [a folder of that name].": "创建在哪里 [同名文件夹]。",
    "Run one job of the image in FOLDER here, and check the container contract. Inputs are --FIELD VALUE.": (
        "在本机运行 FOLDER 中镜像的一个任务，并检查是否遵守容器约定。输入写为 --FIELD VALUE。"
    ),
    "Copy the result files there.": "把结果文件复制到该文件夹。",
    "Run again whenever a file of the folder is saved, until Ctrl-C.": (
        "文件夹中的文件每次保存后重新运行，按 Ctrl-C 停止。"
    ),
    "What runs the job [Docker if this machine has it, else a process].": (
        "用什么运行任务 [本机有 Docker 则用 Docker，否则用普通进程]。"
    ),
    "Build the image before, if Docker runs the job [--build].": "用 Docker 运行时先构建镜像 [--build]。",
    "Use FOLDER as the volume NAME, without a check.": "将 FOLDER 原样作为卷 NAME 使用。",
    "Run the job once more and check that it obeys SIGTERM [--stop].": (
        "再运行一次任务，检查是否响应 SIGTERM [--stop]。"
    ),
    "Serve broker, edge and runner on this machine until Ctrl-C. Listens only on loopback, unless --public is given.": (
        "在本机运行 broker、edge 和 runner，按 Ctrl-C 停止。除非给出 --public，否则只监听本机回环地址。"
    ),
    "0 picks a free one [8000].": "0 表示自动选择空闲端口 [8000]。",
    "Folder for everything that is stored [{folder}].": "保存所有数据的文件夹 [{folder}]。",
    "What runs jobs [auto]. auto decides once, at the first start: Docker if this machine has it.": (
        "用什么运行任务 [auto]。auto 在首次启动时决定一次：本机有 Docker 就用 Docker。"
    ),
    "Folder of an image (its endpoint.toml), or of several [this project's images]. May be repeated.": (
        "镜像所在的文件夹（含 endpoint.toml），或包含多个镜像的文件夹 [本项目的镜像]。可重复。"
    ),
    "Folder of an image (its endpoint.toml), or of several [images]. May be repeated.": (
        "镜像所在的文件夹（含 endpoint.toml），或包含多个镜像的文件夹 [images]。可重复。"
    ),
    "Jobs that run at the same time [1].": "同时运行的任务数 [1]。",
    "Seconds for running jobs to end [10].": "停止时等待运行中任务结束的秒数 [10]。",
    "Answer HeyGem's /easy/ calls without a key on this port of 127.0.0.1. Opens them to every program and user "
    "of this machine: they can submit jobs, and read all jobs that were submitted this way.": (
        "在 127.0.0.1 的此端口上响应 HeyGem 的 /easy/ 请求，不需要密钥。本机的所有程序和用户都可以由此提交任务，"
        "并读取由此提交的所有任务。"
    ),
    "Run no jobs on this machine; other hosts join.": "不在本机运行任务，由其他服务器接入。",
    "Let other machines join: a name or address under which they reach this one. May be repeated.": (
        "允许其他机器接入：它们访问本机所用的域名或地址。可重复。"
    ),
    "With --public: the address to bind.": "与 --public 一起使用：监听的地址。",
    "With --public: the port of the edge with TLS.": "与 --public 一起使用：edge 的 TLS 端口。",
    "With --public: the port of the broker.": "与 --public 一起使用：broker 的端口。",
    "Lowest level to log.": "日志的最低级别。",
    "Format of the log of `up`.": "up 的日志格式。",
    "Write the logs of broker, edge and runner to files in --data, or all to stderr, for journald or Docker.": (
        "将 broker、edge 和 runner 的日志写入 --data 中的文件，或全部输出到 stderr（用于 journald 或 Docker）。"
    ),
    "When ready, print one line of JSON: url, key, data.": "就绪后输出一行 JSON：url、key、data。",
    "Serve the edge: HTTP and WebSocket for clients, in front of the broker.": (
        "运行 edge：在 broker 之前，为客户端提供 HTTP 和 WebSocket。"
    ),
    "The settings file. LAMPLIGHTER_* variables override it.": "设置文件。LAMPLIGHTER_* 环境变量优先。",
    "Lowest level to log [info].": "日志的最低级别 [info]。",
    "Format of the log [text].": "日志格式 [text]。",
    "The token that `lamplighter hosts add` printed. Later starts reuse it. -: standard input; @FILE: a file.": (
        "lamplighter hosts add 输出的令牌，以后启动会记住。-：标准输入；@FILE：文件。"
    ),
    "Power hosts of this network on and off when an edge asks.": "按 edge 的要求，为本网络的服务器开关机。",
    "Set up edge, runner, relay or backups as services of systemd that start with the machine.": (
        "将 edge、runner、relay 或备份设为随机器启动的 systemd 服务。"
    ),
    "Install the edge with its broker: `lamplighter up --no-runner`.": (
        "安装 edge 及其 broker：lamplighter up --no-runner。"
    ),
    "Print the files, and change nothing.": "只输出文件内容，不做任何更改。",
    "Start the service now, if systemd runs.": "如果 systemd 正在运行，立即启动服务。",
    "Services of the machine (needs root), or of this user [--system for root, else --user].": (
        "整机的服务（由 root 安装），或当前用户的服务。默认按您当前的身份。"
    ),
    "Write below this folder, for the image of another machine; nothing is started.": (
        "写入此文件夹之下，用于制作其他机器的系统镜像；不启动任何服务。"
    ),
    "Print one line of JSON.": "输出一行 JSON。",
    "The port on loopback.": "本机回环地址上的端口。",
    "Install the runner of this host.": ("安装本机的 runner。"),
    "It runs as the user lamplighter with the group docker. Where there is no Docker, it runs as root, and "
    "its jobs as the user nobody.": (
        "以用户 lamplighter 和组 docker 运行。没有 Docker 时以 root 运行，其任务以用户 nobody 运行。"
    ),
    "The token that `lamplighter hosts add` printed. -: standard input; @FILE: a file.": (
        "lamplighter hosts add 输出的令牌。-：标准输入；@FILE：文件。"
    ),
    "Install the relay, which powers hosts of this network on and off for an edge elsewhere.": (
        "安装 relay，为其他网络中的 edge 给本网络的服务器开关机。"
    ),
    "Install a timer that backs up the edge installed here, and keeps the newest backups.": (
        "安装定时器，备份安装在本机的 edge，并保留最新的备份。"
    ),
    "Where backups go.": "备份的保存位置。",
    "How many backups stay.": "保留的备份数量。",
    "When, in the format of systemd.time(7).": "时间，格式见 systemd.time(7)。",
    "Include the content of all files.": "包含所有文件的内容。",
    "Encrypt with the key in this file.": "用此文件中的密钥加密。",
    "Stop and remove what `install` set up: ROLEs, or all of them. Data and edited settings stay without --data.": (
        "停止并移除 install 设置的内容：指定的 ROLE 或全部。除非给出 --data，否则保留数据和改动过的设置。"
    ),
    "Delete the data too: jobs, keys, files, backups, settings.": "同时删除数据：任务、密钥、文件、备份、设置。",
    "Check whether the PROCESS with the same settings on this machine works. Exit code 0 if it does, else 1.": (
        "检查本机使用相同设置的 PROCESS 是否正常。正常时退出码为 0，否则为 1。"
    ),
    "The edge is asked for /readyz. Runner and relay renew the file that `health_file` names.": (
        "对 edge 查询 /readyz。runner 和 relay 会定期更新 health_file 指定的文件。"
    ),
    "Write all jobs, keys, file references, power records and usage to FILE, while the installation runs.": (
        "在系统运行时，将所有任务、密钥、文件引用、电源记录和用量写入 FILE。"
    ),
    "FILE contains secrets: protect it as you protect a key. Exit code 3 if the broker cannot be reached, 4 "
    "if there is nothing to back up, 1 if FILE cannot be written.": (
        "FILE 含有机密：请像保护密钥一样保护它。退出码 3 表示无法连接 broker，4 表示没有可备份的内容，1 表示无法"
        "写入 FILE。"
    ),
    "Check the settings, and show where each came from.": "检查设置，并显示每一项的来源。",
    "Check settings files, and show the effective settings.": "检查设置文件，并显示生效的设置。",
    "Check lamplighter.toml, or each FILE, and the variables. Exit code 2 if anything is wrong.": (
        "检查 lamplighter.toml 或每个 FILE，以及环境变量。有错误时退出码为 2。"
    ),
    "Only the settings of `lamplighter {role}`.": "只检查 lamplighter {role} 的设置。",
    "Print JSON.": "输出 JSON。",
    "Print the effective settings: file, variables and defaults. Secrets are masked.": (
        "显示生效的设置：文件、环境变量和默认值。机密内容会被隐藏。"
    ),
    "Options override the settings file.": "选项优先于设置文件。",
    "Data folder of an `up`.": "up 的数据文件夹。",
    "The edge's lamplighter.toml, if broker and edge were not started by `up`.": (
        "如果 broker 和 edge 不是由 up 启动的：edge 的 lamplighter.toml。"
    ),
    "Include the content of all files. Omit it where the store is a bucket.": (
        "包含所有文件的内容。文件存储为 bucket 时不需要。"
    ),
    "Print one line of JSON, and no progress.": "输出一行 JSON，不显示进度。",
    "Restore the installation in FILE into an empty place. No edge may run there in the meantime.": (
        "将 FILE 中的系统恢复到空的位置。恢复期间不能运行 edge。"
    ),
    "Jobs that were running are settled by the usual retry rules once the edge is up. Exit code 3 if the "
    "broker cannot be reached, 4 if FILE is damaged or the place is not empty, 1 if something cannot be "
    "written: then repeat it with --replace.": (
        "备份时正在运行的任务，会在 edge 启动后按重试规则处理。退出码 3 表示无法连接 broker，4 表示 FILE 已损坏或"
        "目标不为空，1 表示有内容无法写入：此时请加 --replace 重试。"
    ),
    "Delete the data that is there now.": "删除目标位置现有的数据。",
    "Back up the installation to one file, while it runs: `backup FILE`. Check a backup: `backup verify FILE`.": (
        "在系统运行时将其备份到一个文件：backup FILE。校验备份：backup verify FILE。"
    ),
    "The options of `backup FILE` are those of `backup write`.": "backup FILE 的选项与 backup write 相同。",
    "Keep at most this many backups in FILE, which is a folder.": "FILE 是文件夹：其中最多保留这么多个备份。",
    "Replace FILE if it exists.": "如果 FILE 已存在，将其替换。",
    "A file with the key that encrypts the backup, at least 16 characters. Keep a copy elsewhere.": (
        "保存备份加密密钥的文件，密钥至少 16 个字符。请在其他地方另存一份。"
    ),
    "The user of the service, with --system [{user}].": "使用 --system 时，服务的用户 [{user}]。",
}

_CLIENT: Mapping[str, str] = {
    "Submit a job. Inputs are --FIELD VALUE; a field that takes a file takes its path.": (
        "提交任务。输入以 --字段 值 的形式给出；文件字段请给出文件路径。"
    ),
    "Follow the job and return when it has ended.": "跟踪任务，结束后返回。",
    "Save the outputs there (implies --wait).": "将结果保存到此处（同时启用 --wait）。",
    "Queue priority.": "排队优先级。",
    "Your own id for the job (unique per owner).": "自定的任务编号（同一用户内唯一）。",
    "The same key with the same inputs returns the same job.": "相同的键和相同的输入返回同一个任务。",
    "A label to find the job by. May be repeated.": "便于查找任务的标签。可重复。",
    "Further fields of the request: policy, deadline, …": "请求的其他字段：policy、deadline 等。",
    "Address of the edge [LAMPLIGHTER_URL, or what `up` left in --data].": (
        "edge 的地址 [LAMPLIGHTER_URL，或 up 保存在 --data 中的地址]。"
    ),
    "API key [LAMPLIGHTER_KEY, or what `up` left in --data].": (
        "API 密钥 [LAMPLIGHTER_KEY，或 up 保存在 --data 中的密钥]。"
    ),
    "PEM file with the certificates to trust [LAMPLIGHTER_CA].": "受信任证书的 PEM 文件 [LAMPLIGHTER_CA]。",
    "sha256:… of the edge's public key or certificate to trust [LAMPLIGHTER_PIN].": (
        "受信任的 edge 公钥或证书的 sha256:… [LAMPLIGHTER_PIN]。"
    ),
    "Data folder of `up`.": "up 的数据文件夹。",
    "Print JSON, one value on each line.": "输出 JSON，每行一个值。",
    "List jobs, newest first.": "列出任务，最新的在前。",
    "Only jobs with this status.": "只列出此状态的任务。",
    "Only jobs of this endpoint.": "只列出此任务类型的任务。",
    "Only jobs with this tag.": "只列出有此标签的任务。",
    "How many.": "数量。",
    "Show the next page: `next_cursor` of the last one, which --json prints.": (
        "显示下一页：填写上一页的 next_cursor，由 --json 输出。"
    ),
    "Save the outputs there.": "将结果保存到此处。",
    "List the events of a job, oldest first.": "列出任务的事件，最早的在前。",
    "Print the output of the job's container.": "输出任务容器的日志。",
    "Stop a job, waiting or running.": "停止等待或运行中的任务。",
    "Run a failed, cancelled or expired job again, with the same inputs.": (
        "用相同的输入重新运行失败、已取消或已过期的任务。"
    ),
    "Remove a job that has ended: its record, outputs and logs.": "删除已结束的任务：记录、结果和日志。",
    "Upload files and print the digests that the inputs of jobs take.": "上传文件，并输出可用作任务输入的哈希值。",
    "List or delete your files.": "列出或删除您的文件。",
    "List your uploaded files and outputs.": "列出您上传的文件和任务结果。",
    "Delete your files. A file that an unfinished job needs is not deleted.": (
        "删除您的文件。未结束的任务所需的文件不会被删除。"
    ),
    "List, add or remove GPU hosts, or put one into maintenance.": "列出、添加或移除 GPU 服务器，或使其进入维护状态。",
    "Put host ID into maintenance: it starts no job, running jobs continue, and no power rule switches it.": (
        "使服务器 ID 进入维护状态：不再启动任务，运行中的任务会继续到结束，电源规则不会开关它。"
    ),
    "End the maintenance.": "结束维护。",
    "List the GPU hosts.": "列出 GPU 服务器。",
    "Create a join token for host ID and print the command to run there. The token is a secret of that host.": (
        "为服务器 ID 创建接入令牌，并输出要在那里运行的命令。令牌是该服务器的机密。"
    ),
    "Create, list and revoke join tokens that many hosts share. Each host gets credentials of its own.": (
        "创建、列出和吊销多台服务器共用的接入令牌。每台服务器都有自己的凭据。"
    ),
    "Create a join token for many hosts and print the command to run on each. The token is a secret.": (
        "为多台服务器创建一个接入令牌，并输出要在每台上运行的命令。令牌是机密。"
    ),
    "How many hosts may join with the token.": "可用它接入的服务器数量。",
    "How long it is valid, such as 90s, 30m, 12h or 7d.": "有效时长，如 90s、30m、12h、7d。",
    "The ids of its hosts begin with NAME and a hyphen [host].": "其服务器的编号以 NAME 加连字符开头 [host]。",
    "Its hosts offer only endpoints of this pool.": "其服务器只提供该池的任务类型。",
    "Its hosts stay enrolled when they end.": "其服务器结束后仍保持接入。",
    "Print only the token, for a file that `--join @FILE` reads.": "只输出令牌，供 --join @FILE 读取的文件使用。",
    "List the join tokens that hosts share, without their secrets.": "列出多台服务器共用的接入令牌，不含机密。",
    "Stop further hosts from joining with token ID. Without --hosts, those that have joined stay.": (
        "不再允许用令牌 ID 接入。已接入的服务器保留，除非使用 --hosts。"
    ),
    "Also remove the hosts that have joined with it.": "同时移除用它接入的服务器。",
    "End, with exit code 0, after this time without work.": "空闲达到该时长后结束，退出码为 0。",
    "Remove an enrolled host. Its key and its connection to the broker end immediately.": (
        "移除已接入的服务器。其密钥和与 broker 的连接立即失效。"
    ),
    "Keep a declared host on or off, or switch it automatically again. Off drains the host first.": (
        "让已声明的服务器保持开机或关机，或恢复自动开关机。关机前会先排空服务器。"
    ),
    "End of the override, such as 2026-11-22T23:00:00Z [until `auto`].": (
        "强制状态的结束时间，如 2026-11-22T23:00:00Z。默认直到设为 auto。"
    ),
    "Show jobs, GPU time, energy, cost, and how long the hosts were on and off.": (
        "显示任务数、显卡时间、耗电、费用，以及服务器开机和关机的时长。"
    ),
    "Start, such as 2026-11-01T00:00:00Z [30 days ago].": "如 2026-11-01T00:00:00Z；不给出则为最近 30 天。",
    "End, not included [now].": "截至（不含）；不给出则为现在。",
    "Only this owner. Needs a key with the scope admin, which shows all owners by default.": (
        "只显示此用户。需要有 admin 权限的密钥；不给出时显示所有用户。"
    ),
    "List the endpoints, show the input fields of one, pause or resume one.": (
        "列出任务类型，显示某个任务类型的输入字段，暂停或恢复任务类型。"
    ),
    "Pause the endpoint NAME: new jobs are accepted and wait, running jobs continue.": (
        "暂停任务类型 NAME：仍接受任务，但任务会等待；运行中的任务会继续到结束。"
    ),
    "End the pause of the endpoint NAME.": "恢复任务类型 NAME。",
    "List the endpoints, or the input fields of the endpoint NAME.": "列出任务类型，或任务类型 NAME 的输入字段。",
    "Create, list, rotate and revoke API keys (needs a key with the scope admin).": (
        "创建、列出、更换和吊销 API 密钥（需要有 admin 权限的密钥）。"
    ),
    "Create a key for OWNER. It is shown only once.": "为用户 OWNER 创建密钥。密钥只显示一次。",
    "May be repeated [{scopes}].": "可重复 [{scopes}]。",
    "What the key is for.": "密钥的用途。",
    "Language of messages, unless a client asks for another.": "信息的语言，除非客户端要求其他语言。",
    "Days until the key expires.": "密钥的有效天数。",
    "List the keys.": "列出密钥。",
    "Give a key a new secret, shown only once. The old secret stays valid for --grace hours.": (
        "为密钥更换新的内容，只显示一次。旧的内容在 --grace 小时内仍有效。"
    ),
    "How long the old secret stays valid.": "旧的内容继续有效的时长。",
    "Revoke a key immediately.": "立即吊销密钥。",
    "Delete all data of an owner, or show the progress (needs a key with the scope admin).": (
        "删除某个用户的所有数据，或显示进度（需要有 admin 权限的密钥）。"
    ),
    "Delete all jobs, files, uploads, keys, secrets, deliveries and usage of OWNER. First cancel running jobs.": (
        "删除用户 OWNER 的所有任务、文件、上传、密钥、机密信息、推送记录和用量。运行中的任务会先被取消。"
    ),
    "Set, list and delete secrets for the programs of jobs.": "设置、列出和删除任务程序使用的机密信息。",
    "Set, list and delete secrets, which programs of jobs read as files; replace the key that seals them.": (
        "设置、列出和删除机密信息，任务的程序以文件形式读取；更换加密它们的密钥。"
    ),
    "Of this owner [that of the key]. Needs the scope admin.": "属于该用户 [密钥所属用户]。需要 admin 权限。",
    "Of the installation, for jobs of every owner. Needs the scope admin.": (
        "属于整个系统，供所有用户的任务使用。需要 admin 权限。"
    ),
    "Read the value from FILE.": "从文件 FILE 读取值。",
    "Set the secret NAME to the text on stdin, without its last newline, in place of an earlier value.": (
        "将机密信息 NAME 设为标准输入的文本（去掉末尾换行），并替换原有的值。"
    ),
    "List the names. Values are never shown.": "列出名称。值永远不会显示。",
    "Seal all secrets with a new key (needs the scope admin). The old key stays valid until --finish.": (
        "用新密钥重新加密所有机密信息（需要 admin 权限）。在 --finish 之前，旧密钥仍可解密。"
    ),
    "Remove the old key from the key file.": "从密钥文件中删除旧密钥。",
    "Delete the secret NAME. Waiting jobs that need it fail when they start.": (
        "删除机密信息 NAME。需要它的等待中任务在启动时会失败。"
    ),
    "Do not ask.": "不询问。",
    "Return when the deletion has started. It continues in the background.": "开始删除后即返回，删除在后台继续。",
    "Show the progress of the deletion of OWNER, and what was deleted.": "显示删除用户 OWNER 的进度和已删除的内容。",
    "Show hosts and unfinished jobs until q; with --json or --once, or into a pipe, only once.": (
        "显示服务器和未结束的任务，按 q 停止；使用 --json、--once 或输出到管道时只显示一次。"
    ),
    "Keys: up and down choose a job, c cancels it, l shows its log.": (
        "按键：上下键选择任务，c 取消任务，l 查看日志。"
    ),
    "Print the screen once and end.": "只显示一次，然后退出。",
    "Check the edge, the network to it, and this machine. Exit code 0 if nothing failed, 3 without an edge, else 1.": (
        "检查 edge、到 edge 的网络和本机。没有失败项时退出码为 0，没有 edge 时为 3，否则为 1。"
    ),
    "Language of texts [LAMPLIGHTER_LANG, else LC_ALL, LC_MESSAGES or LANG].": (
        "文本的语言 [LAMPLIGHTER_LANG，其次为 LC_ALL、LC_MESSAGES 或 LANG]。"
    ),
}

HELP_TEXTS_ZH: Mapping[str, str] = {**_CLICK, **_COMMANDS, **_SERVER, **_CLIENT}
