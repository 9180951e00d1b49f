"""The Chinese of the sentences about hosts: why a host changed its power state, and what a power driver reported."""

from collections.abc import Mapping

HOST_TEXTS_ZH: Mapping[str, str] = {
    "{host} lacks {what}": "{host} 缺少{what}",
    "ask the power driver for its state ({why}): see that driver's settings": (
        "向电源驱动查询其状态（{why}）：请查看该驱动的设置"
    ),
    "send heartbeats that this edge can read ({why}): upgrade the edge to the release of that runner": (
        "发送该 edge 能读取的心跳（{why}）：请将 edge 升级到与该 runner 相同的版本"
    ),
    "label {name} = {value} (it has no such label)": "标签 {name} = {value}（该服务器没有此标签）",
    "label {name} = {value} (it has {offered})": "标签 {name} = {value}（其值为 {offered}）",
    "a GPU ({cards}) (it has {found})": "GPU（{cards}）（现有 {found}）",
    "there is no box {box}": "没有机器 {box}",
    "it does not answer": "没有响应",
    "its disk did not accept a write, and it stores nothing until it is restarted": (
        "磁盘写入失败，重启前不再存储任何内容"
    ),
    "it does not sync every write": "没有同步每次写入",
    "job {id} waits in Slurm's queue: {reason}": "作业 {id} 在 Slurm 队列中等待：{reason}",
    "Pod {pod} waits for a node: {reason}": "Pod {pod} 正在等待节点：{reason}",
    "{program} cannot be run ({why}): install slurm-client": "无法运行 {program}（{why}）：请安装 slurm-client",
    "Slurm's controller is away: {why}": "Slurm 控制器没有响应：{why}",
    "Slurm's controller does not answer {program} within {seconds} s": (
        "Slurm 控制器在 {seconds} 秒内没有响应 {program}"
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
        "队列池 {pool} 中有 {number} 个任务在等待：更少的服务器无法在 {limit} 秒内开始运行它们"
    ),
    "1 job waits in pool {pool}: fewer hosts cannot start it within {limit} s": (
        "队列池 {pool} 中有 1 个任务在等待：更少的服务器无法在 {limit} 秒内开始运行它"
    ),
    "pool {pool} keeps 1 host on": "队列池 {pool} 保持 1 台服务器开机",
    "pool {pool} keeps {number} hosts on": "队列池 {pool} 保持 {number} 台服务器开机",
    "its pools need fewer hosts": "其队列池需要的服务器减少",
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
