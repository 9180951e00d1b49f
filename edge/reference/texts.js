// The texts of this page, and the operations in Chinese. What is not named here stays in the document's English.

const PAGE = {
  search: ["Search", "搜索"],
  sections: ["Sections", "目录"],
  about_key: ["Field", "字段"],
  name: ["Name", "名称"],
  type: ["Type", "类型"],
  meaning: ["Meaning", "说明"],
  optional: ["optional", "可选"],
  parameters: ["Parameters", "参数"],
  body: ["Body", "请求体"],
  answer: ["Answer", "响应体"],
  refusals: ["Refusals", "错误响应"],
  status: ["Status", "状态码"],
  codes: ["Codes", "错误代码"],
  types: ["types", "数据类型"],
  list_of: ["list of ", "列表："],
  or: [" or ", " 或 "],
  any: ["any", "任意"],
  version: ["Version", "版本"],
  english: ["", "字段与参数的说明为英文。"],
  unavailable: ["/openapi.json was answered with {status}: reload the page", "/openapi.json 返回了 {status}：请重新加载页面"],
};

const ABOUT = "在自己的机器上运行 GPU 任务。时间采用 RFC 3339 格式（UTC）。请求中出现未知字段或查询参数会被拒绝；响应可能增加新字段。";

const TAGS = {
  jobs: "提交、读取、列出、取消、重试和删除任务，以及任务的日志和结果文件",
  events: "跟踪任务",
  assets: "文件，以 SHA-256 标识",
  uploads: "断点续传（tus 1.0.0）",
  webhooks: "所有任务共用的 Webhook、任务状态的推送，以及用于签名的密钥",
  endpoints: "可以运行的任务类型",
  hosts: "GPU 服务器及其电源",
  usage: "任务数、GPU 秒数、耗电与费用",
  keys: "API 密钥、令牌与操作记录",
  session: "浏览器会话",
  owners: "用户、其拥有的数据，以及数据的删除",
  health: "服务是否在线、状态如何",
};

const OPERATIONS = {
  submitJob: "提交任务",
  listJobs: "列出任务，最新的在前",
  submitJobWithId: "用自定的编号提交任务",
  getJob: "读取一个任务",
  deleteJob: "删除已结束的任务及其结果和日志",
  getJobHistory: "读取任务的全部事件",
  cancelJob: "取消任务",
  retryJob: "重试已结束的任务",
  getJobLog: "读取任务的日志",
  downloadJobFile: "下载任务的结果文件",
  startJobAction: "批量取消、重试或删除任务",
  listJobActions: "列出批量操作",
  getJobAction: "读取批量操作的进度与报告",
  submitBatch: "一次提交多个任务",
  followJob: "跟踪一个任务：状态、进度与日志",
  followJobs: "跟踪用户的全部任务，以及服务器通知",
  uploadAsset: "上传文件",
  listAssets: "列出文件，最新的在前",
  uploadAssetByDigest: "按 SHA-256 上传文件",
  downloadAsset: "下载文件，可只取一部分",
  deleteAsset: "删除文件",
  checkAssets: "检查哪些文件已经存在",
  createUpload: "开始断点续传",
  getUpload: "读取已上传的字节数",
  appendToUpload: "继续上传",
  deleteUpload: "放弃上传",
  listDeliveries: "列出一个任务的 Webhook 推送",
  listAllDeliveries: "列出所有任务的 Webhook 推送",
  replayDelivery: "重新发送一次推送",
  listWebhooks: "列出所有任务共用的 Webhook",
  addWebhook: "添加所有任务共用的 Webhook",
  deleteWebhook: "删除所有任务共用的 Webhook",
  testWebhook: "向 Webhook 发送一条测试消息",
  getWebhookSecret: "读取推送的签名密钥",
  rotateWebhookSecret: "更换推送的签名密钥",
  listEndpoints: "列出任务类型及其输入的 JSON Schema",
  getEndpoint: "读取一个任务类型",
  listHosts: "列出服务器",
  addHost: "添加服务器并取得接入令牌",
  getHost: "读取一台服务器",
  removeHost: "移除服务器",
  getHostSamples: "读取服务器的负载、显存、温度与功耗曲线",
  setHostPower: "手动开机、关机，或恢复自动",
  addRelay: "添加唤醒中继",
  getUsage: "读取用量与费用",
  listKeys: "列出 API 密钥",
  createKey: "创建 API 密钥",
  revokeKey: "吊销 API 密钥",
  rotateKey: "更换 API 密钥",
  createToken: "创建短期令牌",
  listAudit: "列出操作记录",
  startSession: "登录控制台",
  getSession: "读取当前会话",
  endSession: "退出登录",
  createSessionTicket: "创建一次性的登录链接",
  listOwners: "列出用户",
  getOwner: "统计一个用户拥有的数据",
  deleteOwner: "删除一个用户的全部数据",
  getOwnerDeletion: "读取删除的进度",
  getLiveness: "服务是否在运行",
  getReadiness: "服务是否就绪",
  getMetrics: "Prometheus 指标",
};

/** The language, as the console chooses it: what the reader has set there, else that of the browser. */
let chosen = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const language = () => chosen;

/** Choose a language, also for the next visit and for the console. */
export function chooseLanguage(name) {
  chosen = name;
  localStorage.setItem("language", name);
}

const inChinese = () => chosen === "zh";

export const t = (key, values = {}) => PAGE[key][inChinese() ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
export const about = (english) => (inChinese() ? ABOUT : english);
export const tagText = (name, english) => (inChinese() && TAGS[name]) || english;
export const operationText = (id, english) => (inChinese() && OPERATIONS[id]) || english;
